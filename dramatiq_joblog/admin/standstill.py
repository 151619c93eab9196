"""Stuck jobs: in queues, overdue, lost, or behind busy threads.

Each query reads a bounded number of the oldest jobs of one state, in index order: its cost does not
depend on the number of jobs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peewee import SQL, Case, Select, fn

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.locking.limits import Limits
from dramatiq_joblog.schema.models import instant_of
from dramatiq_joblog.schema.query import literal_states, word
from dramatiq_joblog.states import DUE, ProblemKind, State

from .fleet import LOOK, Fleet, look_at
from .problem import Look, Problem, jobs, names, plural, quoted, said, seen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from dramatiq_joblog.schema.tables import Tables

#: Milliseconds that a job may wait in a queue before it is a problem.
MAX_WAIT = 3_600_000
#: Milliseconds that a job may wait in a queue while there is no worker, or none has a free thread.
MAX_UNSERVED = 60_000
#: Milliseconds that a job may be overdue while a worker of its queue has a free thread: after a
#: kill, the broker redelivers a delayed message within a few minutes.
MAX_OVERDUE = 300_000
#: Milliseconds that a job may be lost: brokers redeliver its message much sooner.
MAX_LOST = 900_000

#: Milliseconds between a message's timestamp and its enqueueing, if it has no delay.
_AT_ONCE = 1_000
_CANCEL = "cancel these jobs, and run them again"


@dataclass(frozen=True)
class Standing:
    """The stuck jobs of one state and queue, or of one worker."""

    #: The queue, or the worker: ``host:pid:thread``.
    name: str
    count: int
    #: Since when the first of them could have run.
    since: datetime
    state: State


class Standstill:
    """Finds stuck jobs.

    Its methods need an open connection; they share one query for the workers.

    Parameters:
      tables: The log's tables.
      patience: Milliseconds that jobs may wait for a worker, or for a thread.
      lost_for: Milliseconds that a job may be lost.
    """

    def __init__(
        self,
        tables: Tables[Any],
        *,
        patience: int = MAX_UNSERVED,
        lost_for: int = 0,
    ) -> None:
        self._tables = tables
        # Any: peewee's queries are untyped.
        self._job: Any = tables.job
        self._limits = Limits(tables.lock)
        self._patience = patience
        self._lost_for = lost_for
        #: All thresholds, which one query covers.
        self._times = (patience, lost_for, MAX_OVERDUE, MAX_WAIT)
        self._asked: dict[tuple[State, str], list[Any]] = {}
        self._database: Any = tables.database
        self._now: Any = database_now(self._database)

    @functools.cached_property
    def fleet(self) -> Fleet:
        """The worker processes."""
        return look_at(self._tables)

    def due(self) -> dict[str, list[Standing]]:
        """Return the jobs that could run now, by queue; requires a patience of 0."""
        states = (State.ENQUEUED, State.DELAYED, State.RETRYING)
        return _by_name(one for state in states for one in self._standing(state, self._patience))

    def workers(self) -> Look:
        """Check for runs whose process is gone, and that are not marked as lost yet."""
        fleet = self.fleet
        well = f"{fleet.alive} worker process{'es' * (fleet.alive != 1)} live"
        problems = []
        if fleet.gone:
            count = sum(runs.count for runs in fleet.gone)
            workers = ", ".join(
                f"{runs.worker} ({plural(runs.count, 'run')})" for runs in fleet.gone[:5]
            )
            since = min(runs.since for runs in fleet.gone)
            problems.append(
                seen(
                    ProblemKind.LOST,
                    "gone",
                    since=since,
                    count=count,
                    title=f"{jobs(count)} {'has' if count == 1 else 'have'} lost "
                    f"{'its' if count == 1 else 'their'} worker",
                    rest=f": {workers}, silent since {said(since)}; {well}.",
                    cure="start a worker: it marks these runs as lost at once, and the "
                    "broker delivers their messages again",
                    search=" ".join(
                        ["state:started", *(word("worker", runs.worker) for runs in fleet.gone)]
                    ),
                )
            )
        if fleet.unknown:
            count = sum(runs.count for runs in fleet.unknown)
            since = min(runs.since for runs in fleet.unknown)
            problems.append(
                seen(
                    ProblemKind.LOST,
                    "unknown",
                    since=since,
                    count=count,
                    title=f"{jobs(count)} {_is(count)} started whose worker process is not known",
                    rest=f", since {said(since)}; {well}.",
                    cure="their messages are gone if the broker does not deliver them "
                    "again: cancel these jobs, and run them again",
                    search="state:started",
                )
            )
        return Look("workers", well, tuple(problems))

    def queues(self) -> Look:
        """Check for jobs in queues that no live worker consumes, and for old ones in any queue."""
        fleet = self.fleet
        waiting = self._standing(State.ENQUEUED, self._patience)
        for state in DUE:
            waiting += self._standing(state, self._patience)
        unserved = [one for one in waiting if not fleet.consumes(one.name)]
        problems = [self._unserved(queue, some) for queue, some in _by_name(unserved).items()]
        problems += [
            self._forgotten(one)
            for one in self._standing(State.ENQUEUED, MAX_WAIT)
            if fleet.consumes(one.name) and not fleet.is_busy(one.name)
        ]
        return Look("queues", "no job waits in a queue for more than an hour", tuple(problems))

    def _unserved(self, queue: str, some: Sequence[Standing]) -> Problem:
        count, since = _sum(some), _oldest(some)
        states = " ".join(word("state", one.state) for one in some)
        return seen(
            ProblemKind.QUEUES,
            queue,
            since=since,
            count=count,
            title=f"{jobs(count)} {_wait(count)} in the queue {quoted(queue)}",
            rest=f", which no live worker consumes, since {said(since)}.",
            cure=f"start workers that consume {quoted(queue)} (dramatiq -Q); if the broker "
            f"has lost the messages, {_CANCEL}",
            search=f"{word('queue', queue)} {states}",
        )

    def _forgotten(self, one: Standing) -> Problem:
        return seen(
            ProblemKind.QUEUES,
            one.name,
            since=one.since,
            count=one.count,
            title=f"{jobs(one.count)} {_wait(one.count)} in the queue {quoted(one.name)}",
            rest=f" since {said(one.since)}, although a worker consumes it.",
            cure="check whether its workers keep up; if the broker has lost the messages, "
            f"{_CANCEL}",
            search=f"{word('queue', one.name)} state:enqueued",
        )

    def threads(self) -> Look:
        """Check for jobs that wait while all threads that could run them are busy."""
        fleet = self.fleet
        waiting = [
            one
            for state in (State.ENQUEUED, State.RETRYING)
            for one in self._standing(state, self._patience)
            if fleet.is_busy(one.name)
        ]
        well = "no job waits for more than a minute for a thread"
        if not waiting:
            return Look("threads", well)
        count, since = _sum(waiting), _oldest(waiting)
        queues = list(_by_name(waiting))
        busy = ", ".join(f"{fleet.threads[queue]} for {quoted(queue)}" for queue in queues[:5])
        problem = seen(
            ProblemKind.THREADS,
            "",
            since=since,
            count=count,
            title="All threads are busy",
            rest=f" ({busy}), and {jobs(count)} {_wait(count)} since {said(since)}.",
            cure="start more workers or threads (dramatiq --processes, --threads), or give "
            "long jobs a "
            "queue and workers of their own; dramatiq-joblog list state:started shows what runs",
            search=" ".join([*_states(waiting), *(word("queue", queue) for queue in queues)]),
        )
        return Look("threads", well, (problem,))

    def overdue(self) -> Look:
        """Check for delayed, retrying and waiting jobs that are long overdue."""
        fleet = self.fleet
        late = [
            one
            for state in DUE
            for one in self._standing(state, MAX_OVERDUE)
            if fleet.consumes(one.name)
            and not (state == State.RETRYING and fleet.is_busy(one.name))
        ]
        well = "no job is overdue for more than five minutes"
        if not late:
            return Look("overdue", well)
        count, since = _sum(late), _oldest(late)
        parts = []
        for state in DUE:
            if some := [one for one in late if one.state == state]:
                queues = names(one.name for one in some)
                parts.append(f"{_sum(some):,} {state} since {said(_oldest(some))} in {queues}")
        cures = []
        if held := [one for one in late if one.state != State.WAITING]:
            cures.append(
                f"start workers for {names(one.name for one in held)}, which hold and release "
                f"delayed messages; if the broker has lost them, {_CANCEL} (dramatiq-joblog cancel "
                "state:delayed overdue:5m)"
            )
        if len(held) < len(late):
            cures.append(
                "check who holds the sections of the waiting jobs (dramatiq-joblog locks); if "
                f"they are free, the messages are lost: {_CANCEL} (dramatiq-joblog cancel "
                "state:waiting overdue:5m)"
            )
        problem = seen(
            ProblemKind.OVERDUE,
            "",
            since=since,
            count=count,
            title=f"{jobs(count)} {_is(count)} overdue",
            rest=f": {'; '.join(parts)}.",
            cure="; ".join(cures),
            search=" ".join([*_states(late), "overdue:5m"]),
        )
        return Look("overdue", well, (problem,))

    def lost(self) -> Look:
        """Check for jobs that were lost with their worker and have not been redelivered."""
        lost = self._standing(State.LOST, self._lost_for, of="worker")
        well = "no job is lost for more than a quarter of an hour" if self._lost_for else ""
        if not lost:
            return Look("lost", well or "no job is lost")
        count, since = _sum(lost), _oldest(lost)
        # Of host:pid:thread.
        workers = list(dict.fromkeys(one.name.rpartition(":")[0] for one in lost))
        many = plural(len(workers), "worker")
        worker = f"{'their' if count != 1 else 'its'} worker" if len(workers) == 1 else many
        named = f" {', '.join(workers[:3])}" if any(workers) else ""
        queues = names(one.name for one in self._standing(State.LOST, self._lost_for))
        problem = seen(
            ProblemKind.LOST,
            "",
            since=since,
            count=count,
            title=f"{jobs(count)} {_is(count)} lost",
            rest=f" with {worker}{named} since {said(since)}, and the broker has not delivered "
            f"{'it' if count == 1 else 'them'} again.",
            cure=f"start a worker for {queues}, which makes the broker deliver them; if it "
            f"has lost the messages, {_CANCEL} (dramatiq-joblog cancel)",
            search="state:lost",
        )
        return Look("lost", well, (problem,))

    def _standing(self, state: State, longer_than: int, of: str = "queue") -> list[Standing]:
        """Return jobs of a state that have been stuck for more than *longer_than* milliseconds."""
        place = self._times.index(longer_than)
        return [
            Standing(name or "", int(counts[place]), instant_of(at), state)
            for name, at, *counts in self._rows(state, of)
            if counts[place]
        ]

    def _rows(self, state: State, of: str) -> list[Any]:
        """Return how many of the oldest jobs of a state have been stuck for each threshold."""
        if (state, of) in self._asked:
            return self._asked[state, of]
        job = self._job
        oldest = (
            job.select(
                getattr(job, of).alias("name"),
                job.section.alias("section"),
                self._since(state).alias("since"),
            )
            .where(job.state.in_(literal_states([state])))
            .order_by(job.created_at)
            .limit(LOOK)
        )
        since = SQL("since")
        counts = [fn.SUM(Case(None, [(since <= self._now - time, 1)], 0)) for time in self._times]
        query = (
            Select([oldest.alias("oldest")], [SQL("name"), fn.MIN(since), *counts])
            .where(since <= self._now - min(self._times))
            .group_by(SQL("name"))
        )
        if state == State.WAITING and self._paused:
            section = SQL("section")
            query = query.where(section.is_null() | section.not_in(self._paused))
        self._asked[state, of] = list(self._database.execute(query))
        return self._asked[state, of]

    @functools.cached_property
    def _paused(self) -> list[str]:
        """The paused keys: jobs that wait for them are not stuck."""
        return [limit.key for limit in self._limits.all() if limit.limit == 0]

    def _since(self, state: State) -> Any:
        """Return the expression since when a job of a state could have run."""
        job = self._job
        if state in DUE:
            return job.eta
        if state == State.ENQUEUED:
            # A delayed job has waited since its delay ended, when its row was last changed.
            was_delayed = job.updated_at > job.enqueued_at + _AT_ONCE
            return Case(None, [(was_delayed, job.updated_at)], job.created_at)
        return job.updated_at


def _by_name(some: Iterable[Standing]) -> dict[str, list[Standing]]:
    """Return stuck jobs by queue, the one with most of them first."""
    found: dict[str, list[Standing]] = {}
    for one in some:
        found.setdefault(one.name, []).append(one)
    return dict(sorted(found.items(), key=lambda item: (-_sum(item[1]), item[0])))


def _states(some: Iterable[Standing]) -> list[str]:
    return list(dict.fromkeys(word("state", one.state) for one in some))


def _sum(some: Iterable[Standing]) -> int:
    return sum(one.count for one in some)


def _oldest(some: Iterable[Standing]) -> datetime:
    return min(one.since for one in some)


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _wait(count: int) -> str:
    return "waits" if count == 1 else "wait"
