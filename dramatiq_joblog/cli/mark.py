"""``mark``: record a change, for charts and comparisons."""

from __future__ import annotations

import click

from dramatiq_joblog.reading.search import instant

from .app import NOTHING, Session, command
from .confirm import myself
from .style import age, exact, line
from .table import Column

#: The most marks that are shown.
_SHOWN = 50


@command(
    "mark",
    "Record a deployment, or another change.",
    examples=[
        ("mark v412", "as the last step of a deployment"),
        ('mark "new feed" --at 14:05', "a change that was not recorded at the time"),
        ("mark", "the marks, newest first"),
    ],
)
@click.argument("name", required=False)
@click.option(
    "--at", metavar="TIME", help="When it happened: 14:05, 30m for 30 minutes ago, or a date."
)
@click.option("--who", help="Who did it; by default you.")
def mark(session: Session, *, name: str | None, at: str | None, who: str | None) -> None:
    """Record that something changed, such as a new version, for charts and problems.

    Without NAME it shows the newest 50 marks.
    """
    joblog, screen = session.joblog, session.screen
    if name is not None:
        moment = None if at is None else instant(at, joblog.now())
        marked = joblog.mark(name, at=moment, who=who or myself())
        if session.json:
            screen.json(marked.as_dict())
        else:
            screen.write(f"{line(marked.name)} is marked at {exact(marked.at)}.")
        return
    rows = list(joblog.marks.limit(_SHOWN))
    if session.json:
        screen.json([row.as_dict() for row in rows])
    elif rows:
        now = joblog.now()
        screen.table(
            [
                Column("Mark", lambda row: row.name, keep=9, least=12),
                Column("At", lambda row: exact(row.at), lambda row: row.as_dict()["at"], keep=8),
                Column("Age", lambda row: age(row.at, now), keep=5, right=True, seen_only=True),
                Column("Who", lambda row: row.who, keep=6, least=8),
            ],
            rows,
        )
    if not rows:
        raise click.exceptions.Exit(NOTHING)
