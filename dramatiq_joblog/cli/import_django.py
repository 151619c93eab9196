"""``import-django-dramatiq``: import the tasks of django_dramatiq."""

from __future__ import annotations

import click

from dramatiq_joblog.admin.import_django import DJANGO_TABLE, import_django_dramatiq
from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.joblog import JobLog

from .app import Refusal, Session, command
from .confirm import many, progress


@command(
    "import-django-dramatiq",
    "Import the tasks of django_dramatiq.",
    examples=[
        ("--app shop.jobs:joblog import-django-dramatiq", "from the log's own database"),
        ("import-django-dramatiq --from postgresql://user@host/shop", "from another one"),
    ],
)
@click.option(
    "--from", "source", metavar="URL", help="The database with the tasks; by default the log's."
)
@click.option("--table", default=DJANGO_TABLE, show_default=True, help="The table of the tasks.")
@click.option(
    "--user-from",
    metavar="PARAMETER",
    help="The parameter with each job's user; by default the actors' job_user.",
)
def import_django(
    session: Session, *, source: str | None, table: str, user_from: str | None
) -> None:
    """Copy the tasks of django_dramatiq's AdminMiddleware into the log.

    Stop the workers first. It is safe to repeat: jobs that are already in the log are not
    changed. Job types and users come from the options of the actors that --app declares.
    """
    joblog = session.joblog
    try:
        database = joblog.database if source is None else JobLog(source).database
    except ConfigurationError as e:
        raise Refusal(str(e)) from e
    with progress("tasks") as update:
        written = import_django_dramatiq(
            joblog,
            database,
            table=table,
            user_from=user_from,
            progress=lambda done: update(done, None),
        )
    if session.json:
        session.screen.json(dict(written))
        return
    total = sum(written.values())
    counts = ", ".join(f"{number} {state}" for state, number in sorted(written.items()))
    session.screen.write(f"{many(total, 'job')} written{': ' + counts if counts else ''}.")
