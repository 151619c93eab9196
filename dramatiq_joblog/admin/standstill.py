"""Jobs that have stood still for too long: in queues, past their time, lost, behind busy threads.

Each question looks at a bounded number of the oldest jobs of one state, which an index has in
order: it costs the same however many jobs there are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peewee import SQL, Case, Select, fn

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.schema.models import instant_of
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import State

from .finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

#: Milliseconds that a job may wait in a queue, or be overdue, before someone should look.
MAX_WAIT = 3_600_000
#: Milliseconds that a job may wait in a queue while there is no worker, or none has a free thread.
MAX_UNSERVED = 60_000
#: Milliseconds until a job is lost for long: brokers deliver its message again much sooner.
MAX_LOST = 900_000
#: As many of the oldest jobs of a state are looked at.
LOOK = 20_000
#: At most as many are counted; what is beyond is shown as "or more".
MOST = 1_000
#: As many queues are named.
NAMED = 5

#: Milliseconds between a message's own time and its enqueuing, if nothing delays it.
_AT_ONCE = 1_000
_CANCEL = "cancel these jobs, and run them again"


@dataclass(frozen=True)
class Standing:
    """A job that stands still."""

    queue: str
    since: datetime


@dataclass(frozen=True)
class Live:
    """The live worker processes: what they consume, and how busy they are."""

    #: Threads of those that consume a queue, and jobs that they run, by queue.
    threads: dict[str, int]
    running: dict[str, int]
    #: How many processes there are.
    count: int


class Standstill:
    """Looks for jobs that stand still.

    Its methods are called with a connection open.

    Parameters:
      job: The bound job model.
      worker: The bound worker model.
    """

    def __init__(self, job: Any, worker: Any) -> None:
        self._job = job
        self._worker = worker
        self._database: Any = job._meta.database
        self._now: Any = database_now(self._database)

    def queues(self) -> Finding:
        """Look for jobs in queues that no live worker consumes, and for old ones in any queue."""
        live = self._live()
        unserved = [
            job
            for job in self._oldest(State.ENQUEUED, MAX_UNSERVED)
            if job.queue not in live.threads
        ]
        old = [job for job in self._oldest(State.ENQUEUED, MAX_WAIT) if job.queue in live.threads]
        if not unserved and not old:
            return Finding("queues", True, "no job waits in a queue for more than an hour")
        parts = []
        if unserved:
            counts = Counter(job.queue for job in unserved).most_common(NAMED)
            parts += [
                f"{_many(number)} in {queue!r}, from which no live worker takes jobs"
                for queue, number in counts
            ]
        if old:
            parts.append(_by_queue(old))
        return Finding(
            "queues",
            False,
            f"jobs wait since {_oldest([*unserved, *old])}: {'; '.join(parts)}",
            f"start workers that consume {_names([*unserved, *old])}; if the broker has lost the "
            f"messages, {_CANCEL}",
        )

    def threads(self) -> Finding:
        """Look for jobs that wait while each thread that could run them is busy."""
        live = self._live()
        waiting = [
            job
            for job in self._oldest(State.ENQUEUED, MAX_UNSERVED)
            if 0 < live.threads.get(job.queue, 0) <= live.running.get(job.queue, 0)
        ]
        if not waiting:
            return Finding("threads", True, "no job waits for more than a minute for a thread")
        busy = ", ".join(f"{live.threads[queue]} for {queue!r}" for queue in _queues(waiting))
        return Finding(
            "threads",
            False,
            f"all threads are busy ({busy}) while jobs wait since {_oldest(waiting)}: "
            f"{_by_queue(waiting)}",
            "start more workers or threads (dramatiq --processes, --threads), or give long jobs a "
            "queue and workers of their own; joblog.jobs.started() shows what runs",
        )

    def overdue(self) -> Finding:
        """Look for delayed, retrying and waiting jobs whose time has come long ago."""
        late = {
            state: self._oldest(state, MAX_WAIT)
            for state in (State.DELAYED, State.RETRYING, State.WAITING)
        }
        late = {state: jobs for state, jobs in late.items() if jobs}
        if not late:
            return Finding("overdue", True, "no job is overdue for more than an hour")
        parts = [
            f"{_many(len(jobs))} {state} since {_oldest(jobs)} in {_names(jobs)}"
            for state, jobs in late.items()
        ]
        cures = []
        if State.DELAYED in late or State.RETRYING in late:
            jobs = [*late.get(State.DELAYED, ()), *late.get(State.RETRYING, ())]
            cures.append(
                f"start workers for {_names(jobs)}, which hold and release delayed messages; if "
                f"the broker has lost them, {_CANCEL} (dramatiq-joblog cancel state:delayed)"
            )
        if State.WAITING in late:
            cures.append(
                "look at who holds the sections of the waiting jobs (dramatiq-joblog locks); if "
                f"they are free, the messages are lost: {_CANCEL} "
                "(dramatiq-joblog cancel state:waiting)"
            )
        return Finding("overdue", False, f"overdue jobs: {'; '.join(parts)}", "; ".join(cures))

    def lost(self) -> Finding:
        """Look for jobs that were lost with their worker and have not come back."""
        lost = self._oldest(State.LOST, MAX_LOST)
        if not lost:
            return Finding("lost", True, "no job is lost for more than a quarter of an hour")
        return Finding(
            "lost",
            False,
            f"{_many(len(lost))} job(s) were lost with their worker since {_oldest(lost)}, and "
            f"the broker has not delivered them again: {_by_queue(lost)}",
            f"start a worker for {_names(lost)}, which makes the broker deliver them; if it has "
            f"lost the messages, {_CANCEL} (dramatiq-joblog cancel)",
        )

    def _oldest(self, state: State, longer_than: int) -> list[Standing]:
        """Return jobs of a state that have stood still for more than so many milliseconds."""
        job = self._job
        oldest = (
            job.select(job.queue.alias("queue"), self._since(state).alias("since"))
            .where(job.state.in_(literal_states([state])))
            .order_by(job.created_at)
            .limit(LOOK)
        )
        query = (
            Select([oldest.alias("oldest")], [SQL("queue"), SQL("since")])
            .where(SQL("since") <= self._now - longer_than)
            .order_by(SQL("since"))
            .limit(MOST)
        )
        rows = self._database.execute(query)
        return [Standing(queue, instant_of(since)) for queue, since in rows]

    def _since(self, state: State) -> Any:
        """Return since when a job of a state could have gone on."""
        job = self._job
        if state in (State.DELAYED, State.RETRYING, State.WAITING):
            return job.eta
        if state == State.ENQUEUED:
            # One that was delayed has waited since it was let go, when its row last changed.
            was_delayed = job.updated_at > job.enqueued_at + _AT_ONCE
            return Case(None, [(was_delayed, job.updated_at)], job.created_at)
        return job.updated_at

    def _live(self) -> Live:
        worker, job = self._worker, self._job
        alive = list(
            worker.select().where(
                worker.ended_at.is_null(),
                worker.swept_at.is_null(),
                worker.heartbeat_at + worker.timeout > self._now,
            )
        )
        started = (
            job.select(job.process, fn.COUNT(job.id))
            .where(job.state.in_(literal_states([State.STARTED])), job.process.is_null(False))
            .group_by(job.process)
            .tuples()
        )
        runs: dict[str, int] = dict(started)
        threads, running = Counter[str](), Counter[str]()
        for process in alive:
            for queue in process.queues or ():
                threads[queue] += process.threads
                running[queue] += min(runs.get(process.process, 0), process.threads)
        return Live(dict(threads), dict(running), len(alive))


def _queues(jobs: Iterable[Standing]) -> list[str]:
    return [queue for queue, _ in Counter(job.queue for job in jobs).most_common(NAMED)]


def _names(jobs: Iterable[Standing]) -> str:
    return ", ".join(repr(queue) for queue in _queues(jobs))


def _by_queue(jobs: Iterable[Standing]) -> str:
    counts = Counter(job.queue for job in jobs).most_common(NAMED)
    return "; ".join(f"{_many(number)} in {queue!r}" for queue, number in counts)


def _oldest(jobs: Sequence[Standing]) -> str:
    return f"{min(job.since for job in jobs):%Y-%m-%d %H:%M} UTC"


def _many(number: int) -> str:
    return f"{number} or more" if number >= MOST else str(number)
