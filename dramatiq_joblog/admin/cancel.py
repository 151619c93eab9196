"""Giving up jobs that do not run: those of which nothing more will come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

from dramatiq_joblog.database.checkout import transaction
from dramatiq_joblog.errors import CancelError, JobNotFound
from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.recording.heartbeat import is_gone
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.schema.query import J, count_asked
from dramatiq_joblog.states import CANCELLABLE, DeadReason, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from peewee import Database

    from dramatiq_joblog.recording.transitions import Transitions
    from dramatiq_joblog.schema.query import JobQuery


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
    record: Callable[..., Any]
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
        with transaction(self.database):
            row = self.transitions.locked(fold_jid(jid))
            if row is None:
                raise JobNotFound(jid)
            self._lose(row)
            self._cancel(row)
            detail = ": ".join(filter(None, (f"was {row.state}", reason)))
            self.record("cancel", who=who or "", jid=jid, detail=detail)
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

        Example:
          >>> joblog.cancel_all(joblog.jobs.lost(), reason="Redis was flushed").cancelled
          []

        Parameters:
          query: Which jobs; those that run or have ended are left out.
          limit: How many at most.
          who: Who gives them up, for ``joblog.actions``.
          reason: Why, for ``joblog.actions``.
          progress: Is called after each job, with how many are done and of how many.

        Returns:
          The jids of those that are ``cancelled``, and what was ``refused`` as it began meanwhile:
          the reasons by jid.
        """
        limit = count_asked("limit", limit, least=0)
        jobs = list(query.in_state(*CANCELLABLE).order_by(self.Job.id).limit(limit))
        result = Cancelled()
        for done, job in enumerate(jobs, 1):
            try:
                result.cancelled.append(self.cancel(job.jid, who=who, reason=reason).jid)
            except CancelError as e:
                result.refused[job.jid] = e.reason
            except JobNotFound as e:
                # It ended meanwhile, and was pruned.
                result.refused[job.jid] = str(e)
            if progress is not None:
                progress(done, len(jobs))
        return result

    def _lose(self, row: Any) -> None:
        """Mark the run of a locked row as lost if its process is gone, as any other would."""
        if row.state == State.STARTED and row.process is not None:
            job, worker = self.Job, self.transitions.worker
            seen = worker.get_or_none(worker.process == row.process)
            if seen is None or is_gone(seen):
                job.update(state=State.LOST).where(job.jid == row.jid).execute()
                row.state = State.LOST

    def _cancel(self, row: Any) -> None:
        """Make a locked row dead, and give up what its job holds."""
        job, transitions = self.Job, self.transitions
        now = transitions.locks.now()
        cancelled = (
            job.update(
                state=State.DEAD,
                dead_reason=DeadReason.CANCELLED.value,
                eta=None,
                finished_at=now,
                updated_at=now,
            )
            .where(job.jid == row.jid, job.state.in_(CANCELLABLE))
            .execute()
        )
        if not cancelled:
            raise CancelError(row.jid, _why_not(row.state))
        if row.waiting_since is not None:
            waiter = {name: getattr(row, name) for name in ("jid", "attempt", "worker")}
            transitions.end_waiting(waiter, to_millis(row.waiting_since), now)
        if row.state == State.LOST and row.token:
            transitions.interrupt(row)
        transitions.locks.give_up(row.jid, row.token)


def _why_not(state: str) -> str:
    if state == State.STARTED:
        return "it is started, and the log cannot stop code that runs; dramatiq-abort can"
    return f"it is {state} already"
