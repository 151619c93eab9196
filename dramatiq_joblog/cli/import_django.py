"""``import-django-dramatiq``: take over what another log has kept."""

from __future__ import annotations

import click
import peewee

from dramatiq_joblog.admin.import_django import DJANGO_TABLE, import_django_dramatiq
from dramatiq_joblog.database.url import describe
from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.joblog import JobLog

from .app import Refusal, Session, command
from .confirm import many, progress


@command(
    "import-django-dramatiq",
    "Take over the tasks of django_dramatiq.",
    examples=[
        ("--app shop.jobs:joblog import-django-dramatiq", "from the log's own database"),
        ("import-django-dramatiq --from postgresql://user@host/shop", "from another one"),
    ],
)
@click.option(
    "--from", "source", metavar="URL", help="The database with the tasks; by default the log's."
)
@click.option("--table", default=DJANGO_TABLE, show_default=True, help="Their table.")
def import_django(session: Session, *, source: str | None, table: str) -> None:
    """Copy what the AdminMiddleware of django_dramatiq kept into the log.

    Stop the workers first.  It is safe to repeat: a job that the log knows is left as it is.
    """
    joblog = session.joblog
    try:
        database = joblog.database if source is None else JobLog(source).database
    except ConfigurationError as e:
        raise Refusal(str(e)) from e
    try:
        with progress("tasks") as update:
            written = import_django_dramatiq(
                joblog, database, table=table, progress=lambda done: update(done, None)
            )
    except peewee.DatabaseError as e:
        raise Refusal(
            f"the table {table!r} of {describe(database)} cannot be read: {str(e).strip()}; "
            "name the database with --from, and the table with --table"
        ) from e
    if session.json:
        session.screen.json(dict(written))
        return
    total = sum(written.values())
    told = ", ".join(f"{number} {state}" for state, number in sorted(written.items()))
    session.screen.write(f"{many(total, 'job')} written{': ' + told if told else ''}.")
