"""``queues``: the backlog and the workers of each queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from dramatiq_joblog.states import State

from .app import Session, command
from .style import age, colour, number
from .table import Column

if TYPE_CHECKING:
    from dramatiq_joblog.admin.queues import Queue


#: The colour of each kind of queue.
_COLOURS = {"no worker": State.DEAD, "behind": State.WAITING, "busy": State.STARTED}


@command(
    "queues",
    "Show the backlog and the workers of each queue.",
    examples=[
        ("queues", "all queues, the furthest behind first"),
        ("queues --json | jq '.[] | select(.state == \"no worker\")'", "for programs"),
    ],
)
def queues(session: Session) -> None:
    """Show the queues with jobs that are due, or with workers, the furthest behind first.

    A queue is behind if a job has been due in it for more than a minute.  Threads may serve
    several queues. Exits with 1 if no queue is known.
    """
    now = session.joblog.now()
    columns: list[Column[Queue]] = [
        Column("Queue", lambda q: q.name, keep=9, least=12),
        Column("State", _state, lambda q: q.state, keep=8),
        Column("Due", lambda q: number(q.due), lambda q: q.due, keep=7, right=True),
        Column(
            "Oldest",
            lambda q: age(q.since, now),
            lambda q: q.as_dict()["since"],
            keep=6,
            right=True,
        ),
        Column("Running", lambda q: number(q.running), lambda q: q.running, right=True),
        Column("Threads", lambda q: number(q.threads), lambda q: q.threads, right=True),
    ]
    nothing = "no queue is known: none has a worker, or a job that is due"
    session.show(session.joblog.queues(), columns, nothing=nothing)


def _state(queue: Queue) -> Text:
    known = _COLOURS.get(queue.state)
    return Text(queue.state, "" if known is None else colour(known))
