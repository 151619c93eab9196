"""What a start may do, given its job's row and the ends of earlier runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import (
    FINAL,
    OPEN,
    STARTABLE,
    DeadReason,
    Start,
    State,
    judge_start,
)

from .events import GAVE_WAY, Answer
from .heartbeat import is_gone
from .tokens import is_stamped, same_delivery

if TYPE_CHECKING:
    from dramatiq_joblog.schema.tables import Tables

    from .events import Started
    from .kept_runs import KeptRuns


class Known(NamedTuple):
    """The columns of a job's row that decide about a start in a section."""

    jid: str
    state: str
    attempt: int
    token: str | None
    dead_reason: str | None
    #: The jid of the job as which it was run again, if it was.
    replayed_by: str | None
    #: Since when it has waited, in milliseconds; None if it does not wait.
    waiting_since: int | None
    #: When its last run began, in milliseconds; None before the first.
    started_at: int | None


class Verdict(NamedTuple):
    """What a start may do, and why."""

    start: Start
    #: The job's state, or the state after an earlier run of the same delivery.
    found: str | None = None
    #: Whether a newer message superseded it.
    gave_way: bool = False

    def refused(self, *, delay: int | None = None) -> Answer:
        """Return the answer to a run that may not begin, or not for *delay* milliseconds."""
        return Answer(granted=False, found=self.found, delay=delay, gave_way=self.gave_way)


class Judge:
    """Decides what starts may do.

    Parameters:
      tables: The tables.
      kept: The earlier runs of jobs.
    """

    def __init__(self, tables: Tables[Any], kept: KeptRuns) -> None:
        # Any: peewee's queries are untyped.
        self._worker: Any = tables.worker
        self._kept = kept

    def verdict(self, event: Started, row: Any) -> Verdict:
        """Decide what a start may do; *row* is the job's row, or None."""
        if row is None:
            return Verdict(Start.BEGIN)
        ended, gave_way = self._ended(event, row), row.token == GAVE_WAY
        start = judge_start(
            state=row.state,
            attempt=row.attempt,
            token=row.token,
            new_attempt=event.row["attempt"],
            new_token=event.row["token"],
            repeated=ended is not None,
            rerun=event.rerun,
            cancelled=row.dead_reason == DeadReason.CANCELLED or gave_way,
            late=event.replayed and self._is_late(event, row),
        )
        return Verdict(start, ended or row.state, gave_way)

    def _ended(self, event: Started, row: Any) -> str | None:
        """Return how a run of the same delivery ended; None if none is known."""
        attempt, token = event.row["attempt"], event.row["token"]
        if row.token is None and row.state in STARTABLE and attempt >= row.attempt:
            # The job has never run.
            return None
        stamped = is_stamped(token)
        if same_delivery(row.token, token):
            may_run = row.state in OPEN or row.state == State.WAITING or _lost_its_retry(event, row)
            of, ended = row.attempt, None if may_run else str(row.state)
        elif event.redelivered and not stamped:
            # The broker does not identify the delivery that is repeated.
            if _lost_its_retry(event, row) and attempt == row.attempt:
                return None
            return _ended_before(row.state, row.attempt, attempt)
        else:
            of, ended = self._kept.end_of_delivery(event.jid, token)
        if ended is None or of != attempt:
            # Enqueued again on purpose, by code that counts the retries from the start.
            return None
        if ended == State.DEAD and stamped and not event.redelivered:
            # A dead letter that was put back unchanged has the stamp too.
            return None
        return ended

    def _is_late(self, event: Started, row: Any) -> bool:
        """Return whether a start from the spool is older than what the row shows."""
        if row.state in FINAL:
            # An imported row may have no finished_at.
            ended = row.finished_at or row.updated_at
            return bool(event.row["started_at"] < to_millis(ended))
        if event.cut_off:
            # Both runs are over, and the row already shows one of them.
            return True
        if row.state != State.STARTED:
            return row.started_at is not None and _began_before(event.row, row)
        seen = self._worker.get_or_none(self._worker.process == row.process)
        if seen is not None and is_gone(seen):
            return False
        return _began_before(event.row, row)


def _began_before(run: dict[str, Any], row: Any) -> bool:
    """Return whether a run began before that of a row; the attempt breaks ties."""
    began = to_millis(row.started_at), row.attempt
    return bool((run["started_at"], run["attempt"]) < began)


def _lost_its_retry(event: Started, row: Any) -> bool:
    """Return whether a job is dead only because the broker refused its retry.

    If its message comes again, it was not acknowledged either, and the job continues.
    """
    if row.state != State.DEAD or row.dead_reason != DeadReason.RETRY_LOST:
        return False
    # Another job may have its place by now: the same one, requeued, or one with its unique key.
    is_unique = event.unique is not None and event.unique["until"] == "finished"
    return row.replayed_by is None and not is_unique


def _ended_before(state: str, attempt: int, new_attempt: int) -> str | None:
    """Return how an earlier run of a redelivered *new_attempt* ended, from the row alone."""
    if state in FINAL or state == State.RETRYING:
        return str(state) if new_attempt <= attempt else None
    return State.RETRYING.value if new_attempt < attempt else None
