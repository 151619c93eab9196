"""``python -m example_app.web``: the page of what the example did."""

from __future__ import annotations

import os
import secrets
from typing import Any

import uvicorn

from dramatiq_joblog.web import dashboard

from .data import FOLDER, User, database
from .jobs import broker, joblog

#: Where the page is.
PORT = int(os.environ.get("PORT", "8000"))


def links(job: Any) -> list[tuple[str, str]]:
    """Lead from a job to a page of the application's own: here, to its feed."""
    with database.connection_context():
        user = User.get_or_none(User.id == job.user_id)
    return [] if user is None else [(f"{user.name} in the shop", f"https://shop.example/{user.id}")]


def main() -> None:
    """Serve the page until it is stopped."""
    FOLDER.mkdir(exist_ok=True)
    joblog.create_tables()
    key = secrets.token_urlsafe(24)
    page = dashboard(joblog, broker=broker, environment="example", job_links=links, key=key)
    print(f"The page is at http://localhost:{PORT}/?key={key} until Ctrl-C.")  # noqa: T201
    if not joblog.jobs.exists():
        print("The log is empty so far: run `make demo` beside it, and watch.")  # noqa: T201
    uvicorn.run(page, port=PORT, log_level="warning", ws="none")


if __name__ == "__main__":
    main()
