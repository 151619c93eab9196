"""``web``: serve the dashboard."""

from __future__ import annotations

import importlib
import os
import secrets
import socket
from typing import Any

import click

from .app import AWAY, Refusal, Session, command

#: The variable with the password for --login.
PASSWORD = "JOBLOG_PASSWORD"  # noqa: S105
#: The variable with the metrics token: others can see a command line.
METRICS_TOKEN = "JOBLOG_METRICS_TOKEN"  # noqa: S105


@command(
    "web",
    "Serve the dashboard.",
    examples=[
        ("web", "on http://127.0.0.1:8000, opened with the key that it prints"),
        ("--app shop.jobs:joblog web --port 9000", "with the application, to run jobs again"),
        ("web --host 0.0.0.0 --login mira --read-only", "for others, with a password"),
        ("web --export copy", "write static files"),
    ],
)
@click.option(
    "--environment", metavar="WORD", help="A label next to the title, such as production."
)
@click.option(
    "--export",
    "folder",
    metavar="FOLDER",
    type=click.Path(file_okay=False),
    help="Write the dashboard as static files, with the current state of the log, and exit.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--login",
    metavar="NAME",
    help=f"The name to sign in with; the password is {PASSWORD}, or is asked for.",
)
@click.option(
    "--metrics-token",
    envvar=METRICS_TOKEN,
    metavar="TOKEN",
    help=f"A bearer token for /metrics and /health; better given as {METRICS_TOKEN}.",
)
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="The port to listen on; 0 picks a free one.",
)
@click.option("--read-only", is_flag=True, help="Disable all actions.")
def web(
    session: Session,
    *,
    environment: str | None,
    folder: str | None,
    host: str,
    login: str | None,
    metrics_token: str | None,
    port: int,
    read_only: bool,
) -> None:
    """Serve the dashboard until Ctrl-C.

    Without --login it prints an address with a key; opening it signs the browser in. To run jobs
    again from it, give the application: --app.

    With --export it serves nothing and writes files instead. They show everything, including the
    arguments of jobs, to anyone who can read them.
    """
    joblog = session.joblog
    # A query, so that an error of the database is reported here and not in the browser.
    joblog.jobs.first()
    joblog.release()
    page = _needed("dramatiq_joblog.web")
    if folder is not None:
        _export(session, page, folder, environment)
        return
    uvicorn = _needed("uvicorn")
    signing_in, key = None, None
    if login is None:
        key = secrets.token_urlsafe(24)
    else:
        password = os.environ.get(PASSWORD) or click.prompt("Password", hide_input=True, err=True)
        signing_in = (login, password)
    application = page.dashboard(
        joblog,
        environment=environment,
        key=key,
        login=signing_in,
        metrics_token=metrics_token,
        read_only=read_only,
    )
    with _listening(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}/" + (f"?key={key}" if key else "")
        if session.json:
            session.screen.json({"url": address})
        else:
            session.screen.write(f"The dashboard is at {address} until Ctrl-C.")
        session.screen.console.file.flush()
        config = uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])


def _export(session: Session, page: Any, folder: str, environment: str | None) -> None:
    done = page.export(session.joblog, folder, environment=environment)
    if session.json:
        session.screen.json({"index": str(done.index), "files": done.files})
    else:
        session.screen.write(f"{done.files} files are written. Open {done.index} in a browser.")


def _needed(module: str) -> Any:
    """Import a module that only this command needs, and that its extra installs.

    Raises:
      Refusal: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        raise Refusal(
            f"the dashboard needs {e.name}, which is not installed: "
            "pip install 'dramatiq-joblog[web]'"
        ) from None


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as e:
        raise Refusal(
            f"cannot listen on {host} port {port}: {e.strerror or e}; choose another --port",
            AWAY,
        ) from e
