"""``import-django-dramatiq``: take over what another log has kept."""

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
@click.option("--table", default=DJANGO_TABLE, show_default=True, help="Their table.")
@click.option(
    "--user-from",
    metavar="PARAMETER",
    help="The parameter with the user of each job; by default as the actors say.",
)
def import_django(
    session: Session, *, source: str | None, table: str, user_from: str | None
) -> None:
    """Copy what the AdminMiddleware of django_dramatiq kept into the log.

    Stop the workers first.  It is safe to repeat: a job that the log knows is left as it is.
    Job types and users are those that the actors' options give, if --app declares them.
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
