"""The current locks and workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.locking.limits import said_of
from dramatiq_joblog.states import State

from .common import PER_PAGE
from .common import lines as lines_of
from .presenters import LockRow, WorkerRow

if TYPE_CHECKING:
    from datetime import datetime

    from starlette.responses import Response

    from .context import Visit

#: The maximum number of workers shown, and the hours for which ended ones are shown.
MOST_WORKERS, SHOWN_ENDED = 100, 1
#: The number of waiting jobs that are checked for free keys.
LOOKED_AT = 500


def locks(visit: Visit) -> Response:
    """Respond with the held keys, and the jobs that wait for them."""
    log = visit.joblog
    none: list[Any] = []
    # With real keys, which are needed to find the waiters.
    held = visit.part("the locks", lambda: list(log.locks.limit(PER_PAGE * 2)), none)
    owners = [lock.owner for lock in held]
    found = visit.rows("the holders", lambda: log.jobs.where(log.Job.jid.in_(owners)))
    holders = {job.jid: job for job in found}
    keys = dict.fromkeys(lock.key for lock in held)
    others = [key for key in _waiting_for(visit) if key not in keys][:PER_PAGE]
    lines = lines_of(visit, [*keys, *others])
    limits = [
        replace(limit, key=visit.visible.key(limit.key))
        for limit in visit.rows("the limits", lambda: log.limits)
    ]
    free = [_line_of(key, lines[key]) for key in others if key in lines]
    if visit.wants_json:
        rows_ = [
            {"waiters": [w.jid for w in lines.get(lock.key, ())]} | visit.visible.as_dict(lock)
            for lock in held
        ]
        waits = [
            {"key": visit.visible.key(line.key), "waiters": [w.jid for w in line.jobs]}
            for line in free
        ]
        return visit.json(
            {"locks": rows_, "free": waits, "limits": [each.as_dict() for each in limits]}
        )
    # The slots of a key are grouped at the position of the first one.
    first = {lock.key: lock.acquired_at for lock in reversed(held)}
    held.sort(key=lambda lock: (first[lock.key], lock.key, lock.slot))
    seen: set[str] = set()
    rows = []
    for lock in held:
        slots = sum(other.key == lock.key for other in held)
        line = None if lock.key in seen else lines.get(lock.key, [])
        rows.append(
            LockRow(
                lock,
                holders.get(lock.owner),
                line,
                slots,
                visit.now,
                key=visit.visible.key(lock.key),
            )
        )
        seen.add(lock.key)
    waiting = sum(len(lines.get(key, ())) for key in keys)
    waiting += sum(len(line.jobs) for line in free)
    some = f"{len(rows)} section{'s' * (len(rows) != 1)} held, "
    sub = f"{some}{waiting} job{'s' * (waiting != 1)} waiting"
    sub *= "the locks" not in visit.missing
    facts = {
        "free": [replace(line, key=visit.visible.key(line.key)) for line in free],
        "rows": rows,
        "sub": sub,
        "limits": [(each, said_of(each)) for each in limits],
    }
    return visit.page("locks.html", "Locks", facts, live=True, section="locks")


@dataclass(frozen=True)
class Line:
    """The jobs that wait for a free key: no thread is free, or none may start."""

    key: str
    #: In order, the next one first.
    jobs: list[Any]
    since: datetime


def _waiting_for(visit: Visit) -> list[str]:
    """Return the keys that jobs wait for, in order of the oldest job."""
    job = visit.joblog.Job
    oldest = (
        visit.joblog.jobs.in_state(State.WAITING)
        .order_by(job.created_at)
        .limit(LOOKED_AT)
        .select(job.section)
        .tuples()
    )
    rows = visit.rows("who waits", lambda: oldest)
    return list(dict.fromkeys(key for (key,) in rows if key))


def _line_of(key: str, jobs: list[Any]) -> Line:
    return Line(key, jobs, min(each.waiting_since or each.updated_at for each in jobs))


def workers(visit: Visit) -> Response:
    """Respond with the worker processes that are alive, and those that ended recently."""
    log = visit.joblog
    since = visit.now - timedelta(hours=SHOWN_ENDED)
    lately = (log.Worker.heartbeat_at >= since) | log.Worker.ended_at.is_null()
    found = visit.rows("the workers", lambda: log.workers.where(lately).limit(MOST_WORKERS))
    names = [worker.process for worker in found]
    running = visit.rows(
        "what they run",
        lambda: (
            log.jobs.in_state(State.STARTED, State.LOST)
            .where(log.Job.process.in_(names))
            .order_by(log.Job.started_at)
            .limit(PER_PAGE * 20)
        ),
    )
    if visit.wants_json:
        by_process = [
            worker.as_dict()
            | {"jobs": [job.jid for job in running if job.process == worker.process]}
            for worker in found
        ]
        return visit.json({"workers": by_process})
    rows = [
        WorkerRow(worker, [job for job in running if job.process == worker.process], visit.now)
        for worker in found
    ]
    order = {"lost": 0, "ok": 1, "skipped": 2}
    rows.sort(key=lambda row: (order[row.look], row.host, row.pid))
    alive = [row for row in rows if row.alive]
    hosts = len({row.host for row in alive})
    lost = sum(row.look == "lost" for row in rows)
    busy, threads = sum(row.busy for row in alive), sum(row.threads for row in alive)
    sub = f"{len(alive)} alive on {hosts} host{'s' * (hosts != 1)}, " * bool(alive)
    sub += f"{lost} possibly dead, " * bool(lost)
    sub += f"{busy} of {threads} threads busy" if alive else "none alive"
    sub *= "the workers" not in visit.missing
    return visit.page(
        "workers.html", "Workers", {"rows": rows, "sub": sub}, live=True, section="workers"
    )
