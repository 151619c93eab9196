"""Cancelling jobs that are not running."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
from dramatiq_joblog.recording.waits import abandon_waits
from dramatiq_joblog.states import CANCELLABLE, DeadReason, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dramatiq_joblog.recording.log import Written
    from dramatiq_joblog.schema.query import J, JobQuery

#: The number of jobs cancelled in one transaction.
BATCH = 250


@dataclass
class Cancelled:
    """The result of cancelling jobs."""

    #: The jids of the cancelled jobs, in order.
    cancelled: list[str] = field(default_factory=list)
    #: Why a job could not be cancelled, by its jid.
    refused: dict[str, str] = field(default_factory=dict)


class Cancelling:
    """Cancels jobs of one log.

    Parameters:
      log: The parts of the log.
    """

    def __init__(self, log: Written) -> None:
        self._log = log
        # Any: peewee's queries are untyped.
        self._job: Any = log.tables.job
        self._transitions = log.transitions

    def one(self, jid: str, who: str | None, reason: str | None) -> None:
        """Cancel a job.

        Raises:
          JobNotFound: If the log has no such job.
          CancelError: If it is running, or has ended.
        """

        def give_up() -> None:
            row = self._transitions.locked(fold_jid(jid))
            if row is None:
                raise JobNotFound(jid)
            cancelled, refused = self._give_up([row])
            if not cancelled:
                raise CancelError(row.jid, refused[row.jid])
            self._actions(who).record(self._details(cancelled, reason))

        in_transaction(self._log.database, give_up)

    def all(
        self,
        query: JobQuery[J],
        limit: int,
        *,
        who: str | None,
        reason: str | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Cancelled:
        """Cancel the jobs of a query that are not running, oldest first, in batches.

        Raises:
          CancelInterruptedError: If the database became unavailable meanwhile.
        """
        job = self._job
        found = query.in_state(*CANCELLABLE).order_by(job.id).limit(limit)
        columns: Any = found.columns(job.id, job.jid).tuples()
        jids: dict[int, str] = dict(columns)
        result, ids = Cancelled(), list(jids)
        actions = self._actions(who)
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

    def named(
        self,
        jids: Sequence[str],
        *,
        who: str | None,
        reason: str | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Cancelled:
        """Cancel the jobs of *jids*; those that are running or have ended are refused.

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
        named = self._job.select().where(self._job.jid.in_(jids))
        result = self.all(named, len(jids), who=who, reason=reason)
        done = {*result.cancelled, *result.refused}
        for jid in filter(lambda jid: jid not in done, jids):
            try:
                self.one(jid, who, reason)
                result.cancelled.append(jid)
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
        """Cancel jobs, given as a mapping of id to jid, in one transaction."""

        def give_up() -> tuple[list[Any], dict[str, Any], dict[str, str]]:
            rows = self._transitions.locked_rows(list(jids))
            cancelled, refused = self._give_up(rows)
            actions.record(self._details(cancelled, reason))
            return rows, cancelled, refused

        try:
            rows, cancelled, refused = in_transaction(self._log.database, give_up)
        except PeeweeException as e:
            # A row that the database refuses to change must not block the others.
            if len(jids) > 1:
                for number, jid in jids.items():
                    self._cancel_batch({number: jid}, result, actions, reason)
            else:
                result.refused |= {jid: scrub(str(e).strip()) for jid in jids.values()}
            return
        kept = {row.jid for row in rows}
        # The others have ended and been pruned meanwhile.
        result.refused |= {jid: str(JobNotFound(jid)) for jid in jids.values() if jid not in kept}
        result.refused |= refused
        result.cancelled += [jid for jid in jids.values() if jid in cancelled]

    def _actions(self, who: str | None) -> ManyActions:
        return ManyActions(self._log.tables.action, "cancel", who)

    def _give_up(self, rows: Sequence[Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Cancel the jobs of locked rows, and release their keys.

        Returns:
          The rows of cancelled jobs, as they were, and the reasons of refusals; both by jid.
        """
        self._lose(rows)
        able = {row.jid: row for row in rows if row.state in CANCELLABLE}
        refused = {row.jid: _why_not(row.state) for row in rows if row.jid not in able}
        if able:
            self._end(list(able.values()))
        return able, refused

    def _lose(self, rows: Sequence[Any]) -> None:
        """Mark runs of locked rows as lost if their process is gone, like other processes do."""
        started = [row for row in rows if row.state == State.STARTED and row.process is not None]
        if not started:
            return
        job, seen = self._job, self._transitions.interruptions.processes_of(started)
        for row in started:
            if row.process not in seen or is_gone(seen[row.process]):
                job.update(state=State.LOST).where(job.id == row.id).execute()
                row.state = State.LOST

    def _end(self, rows: Sequence[Any]) -> None:
        """Make locked rows dead, all of which can be cancelled, and release their keys."""
        job, transitions = self._job, self._transitions
        now = transitions.locks.now()
        job.update(
            state=State.DEAD,
            dead_reason=DeadReason.CANCELLED.value,
            eta=None,
            finished_at=now,
            updated_at=now,
        ).where(job.id.in_([row.id for row in rows])).execute()
        abandon_waits(transitions, rows, now)
        transitions.interruptions.interrupt_all(
            [row for row in rows if row.state == State.LOST and row.token]
        )
        transitions.locks.give_up({row.jid: row.token for row in rows})

    def _details(self, cancelled: Mapping[str, Any], reason: str | None) -> dict[str, str]:
        """Return the recorded details of cancelled jobs: their former states, and the reason."""
        why = None if reason is None else self._log.redactor.text(reason)
        return {
            jid: ": ".join(filter(None, (f"was {row.state}", why)))
            for jid, row in cancelled.items()
        }


#: The number of jids in one condition; far below any database's limit.
_NAMED = 500


def _why_not(state: str) -> str:
    if state == State.STARTED:
        return "it is started, and the log cannot stop code that runs; dramatiq-abort can"
    return f"it is {state} already"
