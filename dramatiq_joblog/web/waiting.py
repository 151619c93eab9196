"""The waiting jobs by queue and section, and why: no worker, no thread, a holder, a pause."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.reading.display import number
from dramatiq_joblog.states import State

from .formats import plain_duration

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from dramatiq_joblog.admin.queues import Queue

    from .context import Visit

#: The maximum number of queues and sections shown, and of waiting jobs that are read.
MOST, LOOKED_AT = 6, 500
_MS = timedelta(milliseconds=1)
#: Why jobs wait in a queue, by its state.
_REASONS = {
    "no worker": "no worker takes from it",
    "behind": "although a thread is free",
    "busy": "no thread is free",
    "keeps up": "about to be taken by a thread",
}


@dataclass(frozen=True)
class Waiting:
    """The jobs that wait in one queue, or for one section."""

    name: str
    href: str
    #: The job state whose shape and colour it has.
    look: str
    count: int
    since: datetime
    age: str
    why: str

    @property
    def text(self) -> str:
        """How many wait, and why."""
        return f"{number(self.count)} job{'s' * (self.count != 1)}, {self.why}"


def waiting_now(visit: Visit) -> list[Waiting]:
    """Return what waits, longest first."""
    queues = visit.rows("the queues", lambda: visit.site.keep("waiting now", visit.joblog.queues))
    found = [_of_queue(visit, queue) for queue in queues if queue.since is not None]
    found += _sections(visit)
    return sorted(found, key=lambda one: one.since)[:MOST]


def _of_queue(visit: Visit, queue: Queue) -> Waiting:
    is_full = queue.threads and queue.running >= queue.threads
    why = _REASONS["busy" if is_full else queue.state]
    look = State.LOST.value if queue.state == "no worker" else State.ENQUEUED.value
    since = queue.since or visit.now
    href = visit.link.to_queue(queue.name)
    return Waiting(queue.name, href, look, queue.due, since, _age(since, visit.now), why)


def _sections(visit: Visit) -> list[Waiting]:
    """Return the sections that jobs wait for, with their holders."""
    job = visit.joblog.Job
    oldest = visit.joblog.jobs.waiting().order_by(job.created_at).limit(LOOKED_AT)
    rows = oldest.select(job.section, job.waiting_since, job.updated_at).tuples()
    waits: dict[str, list[datetime]] = {}
    for key, since, updated in visit.rows("who waits", lambda: rows):
        waits.setdefault(key or "", []).append(since or updated)
    first = sorted(waits, key=lambda key: min(waits[key]))[:MOST]
    why = _why(visit, first) if first else {}
    return [
        Waiting(
            *(visit.visible.key(key) or "a section", visit.link("locks"), State.WAITING.value),
            *(len(waits[key]), min(waits[key]), _age(min(waits[key]), visit.now)),
            why.get(key, "the key is free: the next one starts with the next free thread"),
        )
        for key in first
    ]


def _why(visit: Visit, keys: Iterable[str]) -> dict[str, str]:
    """Return the holder of each key, or who has paused it, as text."""
    log = visit.joblog
    some: list[Any] = []
    held = visit.part(
        None, lambda: list(log.locks.where(log.Lock.key.in_(list(keys))).limit(100)), some
    )
    owners = [lock.owner for lock in held]
    jobs = visit.rows(None, lambda: log.jobs.where(log.Job.jid.in_(owners))) if owners else []
    names = {job.jid: job.job_type or job.actor for job in jobs}
    found: dict[str, str] = {}
    for lock in held:
        name = names.get(lock.owner, "a manual lock")
        found.setdefault(lock.key, f"held by {name} for {_age(lock.acquired_at, visit.now)}")
    for limit in visit.rows(None, lambda: log.limits):
        if limit.limit == 0:
            found[limit.key] = f"paused by {limit.who}"
    return found


def _age(since: datetime, now: datetime) -> str:
    return plain_duration(max(0.0, (now - since) / _MS))
