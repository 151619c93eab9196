"""The worker processes: which are alive, what they consume, and what they run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peewee import SQL, Select, fn

from dramatiq_joblog.database.clock import database_now, read_now
from dramatiq_joblog.recording.heartbeat import is_gone
from dramatiq_joblog.schema.models import instant_of
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import State

if TYPE_CHECKING:
    from datetime import datetime

    from dramatiq_joblog.schema.tables import Tables

#: The maximum number of worker processes and started jobs read.
LOOK = 20_000
#: Milliseconds within which a finished job proves that a worker is running.
_LATELY = 300_000


@dataclass(frozen=True)
class Runs:
    """The open runs of a process."""

    #: ``host:pid``.
    worker: str
    count: int
    #: The last heartbeat of the process; if it is unknown, the first start.
    since: datetime


@dataclass
class Fleet:
    """All worker processes at one moment."""

    #: How many are alive.
    alive: int = 0
    #: Threads of the processes that consume a queue, and jobs that they run, by queue.
    threads: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)
    #: Processes that are gone, with runs not yet marked as lost.
    gone: list[Runs] = field(default_factory=list)
    #: Processes without a row in the log.
    unknown: list[Runs] = field(default_factory=list)
    #: Whether processes without heartbeats run jobs.
    unseen: bool = False

    def consumes(self, queue: str) -> bool:
        """Return whether a live worker consumes a queue, as far as known."""
        return self.unseen or queue in self.threads

    def is_busy(self, queue: str) -> bool:
        """Return whether all threads that could run the jobs of a queue are busy."""
        return 0 < self.threads[queue] <= self.running[queue]


def look_at(tables: Tables[Any]) -> Fleet:
    """Return the worker processes of a log; needs an open connection."""
    # Any: peewee's queries are untyped.
    job: Any = tables.job
    worker: Any = tables.worker
    now = database_now(tables.database)
    silent = worker.heartbeat_at + worker.timeout < now
    rows = list(
        worker.select(worker, silent.alias("silent"))
        .where(worker.swept_at.is_null())
        .order_by(worker.id.desc())
        .limit(LOOK)
    )
    runs = _runs(job)
    fleet = Fleet()
    for row in rows:
        count, _ = runs.pop(row.process, (0, 0))
        if row.silent or is_gone(row):
            if count:
                fleet.gone.append(Runs(f"{row.host}:{row.pid}", count, row.heartbeat_at))
            continue
        fleet.alive += 1
        for queue in row.queues or ():
            fleet.threads[queue] += row.threads
            fleet.running[queue] += min(count, row.threads)
    _sort_others(fleet, runs, worker)
    if not rows and not worker.select().limit(1).exists():
        fleet.unseen = _somebody_works(job)
    return fleet


def _runs(job: Any) -> dict[str, tuple[int, int]]:
    """Return each process's number of started jobs, and when the first of them began."""
    started = (
        job.select(job.process.alias("process"), job.started_at.alias("at"))
        .where(job.state.in_(literal_states([State.STARTED])))
        .order_by(job.created_at)
        .limit(LOOK)
    )
    query = (
        Select(
            [started.alias("started")],
            [SQL("process"), fn.COUNT(SQL("*")), fn.MIN(SQL("started.at"))],
        )
        .where(SQL("process IS NOT NULL"))
        .group_by(SQL("process"))
    )
    found = job._meta.database.execute(query)
    return {process: (int(count), int(at or 0)) for process, count, at in found}


def _sort_others(fleet: Fleet, runs: dict[str, tuple[int, int]], worker: Any) -> None:
    """Sort runs of processes that are not alive into gone and unknown ones."""
    known = worker.select().where(worker.process.in_(list(runs)[:500])) if runs else ()
    for row in known:
        # It was considered gone as this run began; the process that decided so also marks the run.
        runs.pop(row.process)
    for process, (count, at) in runs.items():
        fleet.unknown.append(Runs(process, count, instant_of(at)))


def _somebody_works(job: Any) -> bool:
    # A bound that is re-evaluated during the statement could not use an index.
    now = read_now(job._meta.database)
    ended = job.state.in_(literal_states([State.FINISHED])), job.finished_at > now - _LATELY
    return bool(job.select(job.id).where(*ended).limit(1).exists())
