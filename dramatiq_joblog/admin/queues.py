"""The queues: which jobs are due in each, since when, and which workers serve it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.payload.values import iso_text

if TYPE_CHECKING:
    from datetime import datetime

    from .standstill import Standstill

#: Milliseconds after which a due job is late.
LATE = 60_000


@dataclass(frozen=True)
class Queue:
    """A queue that has due jobs or workers."""

    name: str
    #: How many jobs could run now; counted among the oldest 20,000 of each state.
    due: int
    #: Since when the first of them could run; None if none is due.
    since: datetime | None
    #: Threads of the live workers that consume it; they may consume other queues too.
    threads: int
    #: Jobs that those workers run, from any queue.
    running: int
    #: Milliseconds that the first due job has waited; None if none is due.
    age: int | None

    @property
    def state(self) -> str:
        """``no worker``, ``behind``, ``busy``, ``keeps up`` or ``idle``."""
        if not self.threads:
            return "no worker" if self.due else "idle"
        if self.age is not None and self.age > LATE:
            return "behind"
        if self.running >= self.threads:
            return "busy"
        return "keeps up" if self.due or self.running else "idle"

    def as_dict(self) -> dict[str, Any]:
        """Return it as a dictionary for JSON."""
        since = None if self.since is None else iso_text(self.since)
        return {
            "name": self.name,
            "state": self.state,
            "due": self.due,
            "since": since,
            "threads": self.threads,
            "running": self.running,
        }


def queues(standstill: Standstill, now: datetime) -> list[Queue]:
    """Return the queues, the furthest behind first; needs an open connection."""
    fleet, due = standstill.fleet, standstill.due()
    found = []
    for name in dict.fromkeys([*due, *fleet.threads]):
        some = due.get(name, ())
        since = min((one.since for one in some), default=None)
        age = None if since is None else max(0, round((now - since).total_seconds() * 1000))
        count = sum(one.count for one in some)
        found.append(Queue(name, count, since, fleet.threads[name], fleet.running[name], age))
    order = ["no worker", "behind", "busy", "keeps up", "idle"]
    return sorted(found, key=lambda queue: (order.index(queue.state), -queue.due, queue.name))
