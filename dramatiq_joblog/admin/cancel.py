"""Giving up jobs that do not run: those of which nothing more will come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

from peewee import PeeweeException

from dramatiq_joblog.database.checkout import in_transaction
from dramatiq_joblog.errors import (
    CancelError,
    CancelInterruptedError,
    DatabaseAwayError,
    JobNotFound,
)
from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.payload.secret_texts import scrub
from dramatiq_joblog.recording.actions import ManyActions
from dramatiq_joblog.recording.heartbeat import is_gone
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.schema.query import J, count_asked
from dramatiq_joblog.states import CANCELLABLE, DeadReason, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from peewee import Database

    from dramatiq_joblog.payload.redaction import Redactor
    from dramatiq_joblog.recording.transitions import Transitions
    from dramatiq_joblog.schema.models import Action
    from dramatiq_joblog.schema.query import JobQuery

#: Jobs that are given up in one transaction.
BATCH = 250


@dataclass
class Cancelled:
    """What became of jobs that were to be cancelled."""

    #: The jids of those that are, in order.
    cancelled: list[str] = field(default_factory=list)
    #: Why a job could not be cancelled, by its jid.
    refused: dict[str, str] = field(default_factory=dict)


class Cancelling(Generic[J]):
    """What gives jobs up: a part of :class:`JobLog`."""

    # What the log has.
    database: Database
    Job: type[J]
    get: Callable[[str], J]
    Action: type[Action]
    redactor: Redactor
    _settle: Callable[[], None]
    transitions: Transitions

    def cancel(self, jid: str, *, who: str | None = None, reason: str | None = None) -> J:
        """Give up a job that does not run: it becomes dead, and its `dead_reason` ``cancelled``.

        It is for what hangs in the log, as the broker has lost its message or its worker is
        gone, and for what is not wanted any more.  What it holds is free: its section, its place
        among those that wait, and what it is unique by.  Then it can be run again, dismissed
        and pruned like any other dead job.

        Should its message come after all, it is not run, also with *rerun*, and goes to the
        dead letters.  Only the log knows of it: once the job is pruned the message runs, as it
        does for actors with ``start="soon"``, which do not ask.  A run that was only taken to be
        gone is not stopped: if it comes to its end, that stands in place of ``cancelled``.

        Example:
          >>> joblog.cancel(job.jid, who="ada", reason="Redis was flushed").dead_reason
          'cancelled'

        Parameters:
          jid: A job that is enqueued, delayed, waiting, retrying or lost; or started, if the
            process that ran it is known to be gone.
          who: Who gives it up, for ``joblog.actions``.
          reason: Why, for ``joblog.actions``.

        Raises:
          JobNotFound: If the log has no such job.
          CancelError: If it runs, as the log cannot stop code that runs, or has ended.

        Returns:
          The job as it is now.
        """
        self._settle()

        def give_up() -> None:
            row = self.transitions.locked(fold_jid(jid))
            if row is None:
                raise JobNotFound(jid)
            cancelled, refused = self._give_up([row])
            if not cancelled:
                raise CancelError(row.jid, refused[row.jid])
            ManyActions(self.Action, "cancel", who).record(self._details(cancelled, reason))

        in_transaction(self.database, give_up)
        return self.get(jid)

    def cancel_all(
        self,
        query: JobQuery[J],
        *,
        limit: int = 1000,
        who: str | None = None,
        reason: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Cancelled:
        """Give up the jobs of a query that do not run, oldest first, as :meth:`cancel` does.

        They are given up in batches, each of them in one transaction.

        Example:
          >>> joblog.cancel_all(joblog.jobs.lost(), reason="Redis was flushed").cancelled
          []

        Parameters:
          query: Which jobs; those that run or have ended are left out.
          limit: How many at most.
          who: Who gives them up, for ``joblog.actions``.
          reason: Why, for ``joblog.actions``.
          progress: Is called after each job, with how many are done and of how many.

        Raises:
          CancelInterruptedError: If the database became unavailable meanwhile; it has what was
            done until then, and to repeat the call does the rest.

        Returns:
          The jids of those that are ``cancelled``, and what was ``refused`` as it began meanwhile:
          the reasons by jid.
        """
        limit = count_asked("limit", limit, least=0)
        job = self.Job
        found = query.in_state(*CANCELLABLE).order_by(job.id).limit(limit)
        columns: Any = found.columns(job.id, job.jid).tuples()
        jids: dict[int, str] = dict(columns)
        result, ids = Cancelled(), list(jids)
        actions = ManyActions(self.Action, "cancel", who)
        for start in range(0, len(ids), BATCH):
            some = {number: jids[number] for number in ids[start : start + BATCH]}
            try:
                self._cancel_batch(some, result, actions, reason)
            except DatabaseAwayError as e:
                left = len(ids) - start
                raise CancelInterruptedError(
                    result.cancelled, result.refused, str(e).strip(), left
                ) from e
            if progress is not None:
                for done in range(start + 1, start + len(some) + 1):
                    progress(done, len(ids))
        return result

    def cancel_named(
        self,
        jids: Sequence[str],
        *,
        who: str | None = None,
        reason: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Cancelled:
        """Give up the jobs of *jids*, as :meth:`cancel_all` does.

        Those that it leaves out, as they run or have ended, are among the refused here.

        Parameters:
          jids: The jobs.
          who: Who gives them up, for ``joblog.actions``.
          reason: Why, for ``joblog.actions``.
          progress: Is called after each part of them, with how many are done and of how many.

        Raises:
          CancelInterruptedError: If the database became unavailable meanwhile.
        """
        result, jids = Cancelled(), list(dict.fromkeys(map(fold_jid, jids)))
        for start in range(0, len(jids), _NAMED):
            some = jids[start : start + _NAMED]
            try:
                part = self._cancel_named(some, who, reason)
            except CancelInterruptedError as e:
                cancelled, refused = result.cancelled + e.cancelled, result.refused | e.refused
                left = len(jids) - len(cancelled) - len(refused)
                raise CancelInterruptedError(cancelled, refused, e.why, left) from e
            result.cancelled += part.cancelled
            result.refused |= part.refused
            if progress is not None:
                progress(start + len(some), len(jids))
        return result

    def _cancel_named(self, jids: Sequence[str], who: str | None, reason: str | None) -> Cancelled:
        named = self.Job.select().where(self.Job.jid.in_(jids))
        result = self.cancel_all(named, limit=len(jids), who=who, reason=reason)
        done = {*result.cancelled, *result.refused}
        for jid in filter(lambda jid: jid not in done, jids):
            try:
                result.cancelled.append(self.cancel(jid, who=who, reason=reason).jid)
            except CancelError as e:
                result.refused[jid] = e.reason
            except JobNotFound as e:
                result.refused[jid] = str(e)
        return result

    def _cancel_batch(
        self,
        jids: Mapping[int, str],
        result: Cancelled,
        actions: ManyActions,
        reason: str | None,
    ) -> None:
        """Give up jobs, named by id and jid, in one transaction."""

        def give_up() -> tuple[list[Any], dict[str, Any], dict[str, str]]:
            rows = self.transitions.locked_rows(list(jids))
            cancelled, refused = self._give_up(rows)
            actions.record(self._details(cancelled, reason))
            return rows, cancelled, refused

        try:
            rows, cancelled, refused = in_transaction(self.database, give_up)
        except PeeweeException as e:
            # One row that the database refuses to change does not keep the others from it.
            if len(jids) > 1:
                for number, jid in jids.items():
                    self._cancel_batch({number: jid}, result, actions, reason)
            else:
                result.refused |= {jid: scrub(str(e).strip()) for jid in jids.values()}
            return
        kept = {row.jid for row in rows}
        # The others ended meanwhile, and were pruned.
        result.refused |= {jid: str(JobNotFound(jid)) for jid in jids.values() if jid not in kept}
        result.refused |= refused
        result.cancelled += [jid for jid in jids.values() if jid in cancelled]

    def _give_up(self, rows: Sequence[Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Make locked rows dead, and give up what their jobs hold.

        Returns:
          The rows of those that are cancelled, as they were, and why others are not; by jid.
        """
        self._lose(rows)
        able = {row.jid: row for row in rows if row.state in CANCELLABLE}
        refused = {row.jid: _why_not(row.state) for row in rows if row.jid not in able}
        if able:
            self._end(list(able.values()))
        return able, refused

    def _lose(self, rows: Sequence[Any]) -> None:
        """Mark the runs of locked rows as lost whose process is gone, as any other would."""
        started = [row for row in rows if row.state == State.STARTED and row.process is not None]
        if not started:
            return
        job, seen = self.Job, self.transitions.processes_of(started)
        for row in started:
            if row.process not in seen or is_gone(seen[row.process]):
                job.update(state=State.LOST).where(job.id == row.id).execute()
                row.state = State.LOST

    def _end(self, rows: Sequence[Any]) -> None:
        """Make locked rows dead, all of which can be cancelled, and give up what they hold."""
        job, transitions = self.Job, self.transitions
        now = transitions.locks.now()
        job.update(
            state=State.DEAD,
            dead_reason=DeadReason.CANCELLED.value,
            eta=None,
            finished_at=now,
            updated_at=now,
        ).where(job.id.in_([row.id for row in rows])).execute()
        waiters = [
            ({name: getattr(row, name) for name in _OF_A_WAITER}, to_millis(row.waiting_since))
            for row in rows
            if row.waiting_since is not None
        ]
        transitions.end_waiting_all(waiters, now)
        transitions.interrupt_all([row for row in rows if row.state == State.LOST and row.token])
        transitions.locks.give_up({row.jid: row.token for row in rows})

    def _details(self, cancelled: Mapping[str, Any], reason: str | None) -> dict[str, str]:
        """Return what is written down of jobs that were given up: the state of each, and why."""
        why = None if reason is None else self.redactor.text(reason)
        return {
            jid: ": ".join(filter(None, (f"was {row.state}", why)))
            for jid, row in cancelled.items()
        }


#: Jids in one condition: far fewer than any database takes.
_NAMED = 500
#: What is kept of a job with the time that it waited for its section.
_OF_A_WAITER = ("jid", "attempt", "worker")


def _why_not(state: str) -> str:
    if state == State.STARTED:
        return "it is started, and the log cannot stop code that runs; dramatiq-abort can"
    return f"it is {state} already"
