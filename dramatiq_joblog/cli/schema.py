"""``migrate``: make the log's tables, or bring them up to date."""

from __future__ import annotations

from dramatiq_joblog.database.url import describe

from .app import Session, command
from .confirm import progress


@command(
    "migrate",
    "Create the tables, or upgrade them.",
    examples=[
        ("--database sqlite:///jobs.db migrate", "make a new log, or bring an old one up to date"),
        ("--app shop.jobs:joblog migrate", "the same with the columns of the application's model"),
    ],
)
def migrate(session: Session) -> None:
    """Make the log's tables, or bring them to this version; nothing is lost.

    It is safe to repeat, to run on several machines at once, and to run beside workers.
    """
    joblog = session.new_joblog
    with progress("making the tables"):
        joblog.create_tables()
    table = joblog.Job._meta.table_name
    if session.json:
        session.screen.json({"table": table})
    else:
        session.screen.write(f"The log's tables are up to date on {describe(joblog.database)}.")
