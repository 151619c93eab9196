"""The queues: their backlog, their workers, and what the threads run."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.broker.options import DELAY_SUFFIX
from dramatiq_joblog.reading.counts import Count
from dramatiq_joblog.reading.story import sent_at
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.schema.query import word
from dramatiq_joblog.states import ACTIVE, State
from dramatiq_joblog.statistics.series import Percentiles

from . import axes, charts
from .common import marks_in
from .formats import plain_duration
from .periods import RANGES, Period
from .presenters import JobRow, WorkerRow
from .unusual import past

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.responses import Response

    from .context import Visit

#: The maximum number of unfinished jobs that are read, for each state, and of the newest jobs.
MOST_ACTIVE, NEWEST = 2_000, 5_000
#: The maximum number of workers and threads shown.
MOST_WORKERS, MOST_THREADS = 200, 40
#: The period of the charts, one hour in milliseconds, and their bars, one per minute.
WINDOW, BARS = 3_600_000, 60
#: Milliseconds after which a due job is late.
LATE = 60_000
#: The height of the chart of a queue's depth.
_HIGH = 60
_MINUTE = 60_000
#: The maximum number of threads drawn in one line.
_SLOTS = 12


@dataclass
class Queue:
    """A queue, as known from the log."""

    name: str
    due: int = 0
    #: Since when the oldest due job has been due, in milliseconds since 1970.
    oldest: int | None = None
    oldest_jid: str | None = None
    later: int = 0
    running: int = 0
    workers: list[WorkerRow] = field(default_factory=list)
    threads: int = 0
    came: list[int] = field(default_factory=lambda: [0] * BARS)
    went: list[int] = field(default_factory=lambda: [0] * BARS)
    depth: list[int] = field(default_factory=lambda: [0] * BARS)


def queues(visit: Visit) -> Response:
    """Respond with all queues, or with one and its jobs."""
    only = visit.request.path_params.get("name")
    now = to_millis(visit.now)
    known: dict[str, Queue] = {}
    active = _active(visit)
    _add_active(known, active, now)
    workers = _add_workers(visit, known)
    since = _add_flow(visit, known, active, now)
    running = [job for job in active if job.state == State.STARTED]
    if only is not None:
        only = visit.read_suffix(only, is_name=only in known)
        known = {only: known.get(only, Queue(only))}
        running = [job for job in running if job.queue == only]
    ordered = sorted(known.values(), key=lambda q: (-_rank(q, now), -q.due, q.name))
    if visit.wants_json:
        return visit.json({"queues": [_plain(queue, now) for queue in ordered]})
    usual = _usual(visit)
    busy, threads = sum(row.busy for row in workers), sum(row.threads for row in workers)
    due = sum(queue.due for queue in ordered)
    rows = [_row(queue, now) for queue in ordered]
    top = max((charts.flow_top(each) for q in ordered for each in (q.came, q.went)), default=0)
    waiting = [row for row in active if row.queue == only and _is_due(row, now)]
    waiting.sort(key=_due_since)
    hour = Period("1h", visit.now - timedelta(milliseconds=WINDOW), visit.now, visit.now, "")
    facts = {
        "only": only,
        "rows": rows,
        "flow_top": top,
        "sub": f"{len(rows)} queue{'s' * (len(rows) != 1)}, {due} job{'s' * (due != 1)} due, "
        f"{busy} of {threads} thread{'s' * (threads != 1)} busy",
        "depths": [_depth(queue) for queue in ordered if queue.due or any(queue.depth)][:12],
        "depth_since": since,
        "axis": axes.time_axis(
            [visit.now - timedelta(minutes=BARS - n) for n in range(BARS)], _MINUTE, visit.zone
        ),
        "deploys": axes.deploys(marks_in(visit, hour), hour, visit.zone),
        "high": _HIGH,
        "threads": [
            _thread(job, visit.now, usual) for job in _whole(visit, running[:MOST_THREADS])
        ],
        "busy": len(running),
        "oldest": [
            JobRow(job, visit.now, seen=visit.access.sees_arguments)
            for job in _whole(visit, waiting[:20])
        ],
    }
    title = f"Queue {only}" if only is not None else "Queues"
    return visit.page("queues.html", title, facts, live=True, section="queues")


def _active(visit: Visit) -> list[Any]:
    """Return the unfinished jobs, the oldest of each state first."""
    log, job = visit.joblog, visit.joblog.Job
    columns = job.jid, job.queue, job.state, job.eta, job.enqueued_at, job.created_at

    def ask() -> list[Any]:
        found: list[Any] = []
        for state in ACTIVE:
            query = log.jobs.in_state(state).order_by(job.created_at).limit(MOST_ACTIVE)
            found.extend(query.select(*columns).namedtuples())
        return found

    none: list[Any] = []
    return visit.part("the jobs in queues", lambda: visit.site.keep("active", ask), none)


def _whole(visit: Visit, rows: list[Any]) -> list[Any]:
    """Return the complete rows of jobs, in the same order."""
    job = visit.joblog.Job
    jids = [row.jid for row in rows]
    found = visit.rows(None, lambda: visit.joblog.jobs.where(job.jid.in_(jids))) if jids else []
    by_jid = {row.jid: row for row in found}
    return [by_jid[jid] for jid in jids if jid in by_jid]


def _is_due(job: Any, now: int) -> bool:
    if job.state == State.ENQUEUED:
        return True
    waits = job.state in {State.DELAYED, State.RETRYING} and job.eta is not None
    return waits and to_millis(job.eta) <= now


def _due_since(job: Any) -> int:
    """Return since when a job has been due, in milliseconds since 1970."""
    at = to_millis(sent_at(job))
    return at if job.eta is None or job.state == State.ENQUEUED else to_millis(job.eta)


def _add_active(known: dict[str, Queue], active: Iterable[Any], now: int) -> None:
    for job in active:
        queue = known.setdefault(job.queue, Queue(job.queue))
        if job.state == State.STARTED:
            queue.running += 1
        elif not _is_due(job, now):
            queue.later += 1
        else:
            queue.due += 1
            since = _due_since(job)
            if queue.oldest is None or since < queue.oldest:
                queue.oldest, queue.oldest_jid = since, job.jid


def _add_workers(visit: Visit, known: dict[str, Queue]) -> list[WorkerRow]:
    worker = visit.joblog.Worker
    alive = visit.joblog.workers.where(worker.ended_at.is_null(), worker.swept_at.is_null())
    found = visit.rows("the workers", lambda: alive.limit(MOST_WORKERS))
    names = [each.process for each in found]
    job = visit.joblog.Job
    runs_of_them = visit.joblog.jobs.started().where(job.process.in_(names)).limit(MOST_ACTIVE)
    started = visit.rows(None, lambda: runs_of_them) if names else []
    rows = []
    for each in found:
        runs = [one for one in started if one.process == each.process]
        row = WorkerRow(each, runs, visit.now)
        if not row.alive:
            continue
        rows.append(row)
        for name in each.queues or ():
            if not name.endswith(DELAY_SUFFIX):
                queue = known.setdefault(name, Queue(name))
                queue.workers.append(row)
                queue.threads += row.threads
    return rows


def _add_flow(visit: Visit, known: dict[str, Queue], active: Iterable[Any], now: int) -> int:
    """Add arrivals, departures and depth to each queue; return since when they are known."""
    log, job = visit.joblog, visit.joblog.Job
    begin = now - WINDOW

    def ask() -> list[Any]:
        newest = (
            log.jobs.where(job.created_at >= begin)
            .order_by(job.created_at.desc())
            .select(job.queue, job.created_at, job.queue_time, job.state, job.started_at)
            .limit(NEWEST)
        )
        return list(newest.tuples())

    none: list[Any] = []
    rows = visit.part("the flow", lambda: visit.site.keep("flow", ask, times=3), none)
    since = to_millis(rows[-1][1]) if len(rows) >= NEWEST else begin
    for name, created, queue_time, state, started in rows:
        queue = known.setdefault(name, Queue(name))
        came = to_millis(created)
        _count(queue.came, came, begin)
        if queue_time is not None or started is not None:
            went = came + (queue_time or 0) if queue_time is not None else to_millis(started)
            _count(queue.went, went, begin)
            _stood(queue.depth, came, went, begin)
        elif state in {State.ENQUEUED.value, State.ENQUEUED}:
            _stood(queue.depth, came, now, begin)
    for waiting in active:
        # Not among the arrivals: those of before the hour, and what is due again or was delayed.
        is_early = to_millis(waiting.created_at) < since
        if _is_due(waiting, now) and (is_early or waiting.state != State.ENQUEUED):
            _stood(known[waiting.queue].depth, _due_since(waiting), now, begin)
    return since


def _count(bars: list[int], at: int, begin: int) -> None:
    index = (at - begin) // _MINUTE
    if 0 <= index < BARS:
        bars[index] += 1


def _stood(bars: list[int], came: int, went: int, begin: int) -> None:
    """Count a job in each minute at whose end it was in its queue."""
    first = max(0, (came - begin) // _MINUTE)
    last = min(BARS, (went - begin) // _MINUTE)
    for index in range(first, last):
        bars[index] += 1


def _usual(visit: Visit) -> dict[str, int]:
    """Return the usual p95 of each job type, in milliseconds."""
    since = visit.now - timedelta(milliseconds=RANGES["24h"])
    found = past(visit, Period("24h", since, None, visit.now, ""))
    if found is None:
        return {}
    groups = found.before[0].groups if found.before else found.now.groups
    usual = {group.name: Percentiles.of(group.durations).p95 for group in groups}
    return {name: p95 for name, p95 in usual.items() if p95 is not None}


def _age(queue: Queue, now: int) -> int:
    return 0 if queue.oldest is None else max(0, now - queue.oldest)


def _rank(queue: Queue, now: int) -> int:
    return {"behind": 3, "nobody": 4, "fine": 1, "idle": 0}[_state(queue, now)]


def _state(queue: Queue, now: int) -> str:
    late = queue.due and _age(queue, now) > LATE
    if not queue.workers and (queue.due or queue.later):
        return "nobody"
    if late:
        return "behind"
    return "fine" if queue.due or queue.running or any(queue.went[-15:]) else "idle"


_LOOKS = {
    "behind": ("waiting", "waiting", "Behind"),
    "nobody": ("lost", "lost", "No worker"),
    "fine": ("ok", "alive", "Keeps up"),
    "idle": ("skipped", "quiet", "Idle"),
}


def _row(queue: Queue, now: int) -> dict[str, Any]:
    state = _state(queue, now)
    look, shape, text = _LOOKS[state]
    come, gone = sum(queue.came[-15:]) / 15, sum(queue.went[-15:]) / 15
    growth = come - gone
    strong, trend = "", "as usual"
    if state == "nobody":
        strong, trend = "No consumer", f"start one: dramatiq … -Q {queue.name}"
    elif state == "behind" and growth > 0.05:
        strong, trend = f"Grows by {growth:.1f} a minute", "over 15 min"
    elif state == "behind":
        strong, trend = (
            "",
            "behind, and catching up" if growth < -0.05 else "behind, and not catching up",
        )
    elif state == "idle":
        trend = "nothing in the last hour" if not any(queue.came) else "nothing for 15 min"
    slots = min(_SLOTS, queue.threads)
    busy = min(queue.running, queue.threads)
    filled = -(-busy * slots // queue.threads) if queue.threads else 0
    return {
        "name": queue.name,
        "look": look,
        "shape": shape,
        "word": text,
        "due": Count.up_to(MOST_ACTIVE - 1, queue.due),
        "oldest": None if queue.oldest is None else _age(queue, now),
        "oldest_since": queue.oldest,
        "later": queue.later,
        "came": queue.came,
        "went": queue.went,
        "in_rate": f"{come:.1f}",
        "out_rate": f"{gone:.1f}",
        "strong": strong,
        "trend": trend,
        "workers": queue.workers,
        "threads": queue.threads,
        "busy": busy,
        "slots": ["b"] * filled + ["i"] * (slots - filled),
        "q": word("queue", queue.name),
    }


def _depth(queue: Queue) -> dict[str, Any]:
    top = max(*queue.depth, queue.due)
    width = axes.WIDE / BARS
    path = [f"M0 {_HIGH}"]
    for index, value in enumerate(queue.depth):
        y = round(_HIGH - (_HIGH - 4) * value / top, 1)
        path.append(f"L{index * width:g} {y}L{(index + 1) * width:g} {y}")
    return {
        "name": queue.name,
        "path": "".join(path) + f"L{axes.WIDE} {_HIGH}z",
        "note": f"at most {top} in the last hour",
        "now": queue.due,
    }


def _thread(job: Any, now: Any, usual: dict[str, int]) -> dict[str, Any]:
    row = JobRow(job, now)
    normal = usual.get(row.name)
    return {
        "jid": job.jid,
        "name": row.name,
        "queue": job.queue,
        "duration": row.duration,
        "since": row.running_since,
        "usual": "" if normal is None else plain_duration(normal),
        "long": normal is not None and (row.duration or 0) > normal,
    }


def _plain(queue: Queue, now: int) -> dict[str, Any]:
    return {
        "name": queue.name,
        "state": _state(queue, now),
        "due": queue.due,
        "later": queue.later,
        "running": queue.running,
        "oldest": _age(queue, now) if queue.oldest is not None else None,
        "in": queue.came,
        "out": queue.went,
        "depth": queue.depth,
        "threads": queue.threads,
        "workers": [f"{row.host}:{row.pid}" for row in queue.workers],
    }
