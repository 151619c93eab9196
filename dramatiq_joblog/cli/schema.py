"""``migrate``: create the log's tables, or upgrade them."""

from __future__ import annotations

from dramatiq_joblog.database.url import describe

from .app import Session, command
from .confirm import progress


@command(
    "migrate",
    "Create the tables, or upgrade them.",
    examples=[
        ("--database sqlite:///jobs.db migrate", "create a new log, or upgrade an old one"),
        ("--app shop.jobs:joblog migrate", "with the columns of the application's model"),
    ],
)
def migrate(session: Session) -> None:
    """Create the log's tables, or upgrade them to this version, without losing data.

    It is safe to repeat, to run on several machines at once, and to run while workers run.
    """
    joblog = session.new_joblog
    with progress("making the tables"):
        joblog.create_tables()
    table = joblog.Job._meta.table_name
    if session.json:
        session.screen.json({"table": table})
    else:
        session.screen.write(f"The log's tables are up to date on {describe(joblog.database)}.")
