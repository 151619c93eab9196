"""How a job spent its time, as spans to draw; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.states import FINAL, DeadReason, Outcome, State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

# The kind of span after a run with each outcome, until the next run.
_AFTER = {Outcome.RETRIED: "back-off", Outcome.INTERRUPTED: "nobody"}
_STATE_AFTER = {Outcome.RETRIED: State.RETRYING, Outcome.INTERRUPTED: State.LOST}


@dataclass(frozen=True)
class Span:
    """A span of a job's timeline."""

    #: ``queue``, ``waiting`` (for its section), ``run``, ``back-off`` (until its retry starts) or
    #: ``nobody`` (between the loss of its worker and the next run).
    kind: str
    #: The state or outcome whose shape and colour it has.
    state: str
    #: When it began.
    start: datetime
    #: When it ended; now, if it is still open.
    end: datetime
    #: Whether it has not ended.
    open: bool = False
    #: The number of the run, from 1; 0 if it is not a run.
    run: int = 0
    #: The number of the attempt; 0 if it is not a run.
    attempt: int = 0
    #: Where it ran: ``host:pid:thread``.
    worker: str | None = None
    #: The class of the error that ended it.
    error: str | None = None

    @property
    def milliseconds(self) -> int:
        """Its duration in milliseconds."""
        return round((self.end - self.start).total_seconds() * 1000)


def timeline(job: Any, failures: Iterable[Any], now: datetime) -> list[Span]:
    """Return how *job* spent its time since it was first sent, in order.

    Parameters:
      job: The row of a job.
      failures: Its failures.
      now: The end of an open span.
    """
    known = _known(job, failures, now)
    spans: list[Span] = []
    at = job.enqueued_at or job.created_at
    number = 0
    before: Span | None = None
    for span in known:
        if span.start > at:
            spans.append(_between(before, at, span.start))
        if span.kind == "run":
            number += 1
            span = _numbered(span, number)  # noqa: PLW2901
        spans.append(span)
        at, before = max(at, span.end), span
    if job.state in FINAL:
        # Nothing ran when it was cancelled, however long ago the last run was.
        idle = not spans or job.dead_reason == DeadReason.CANCELLED
        if idle and job.finished_at is not None and job.finished_at > at:
            spans.append(_between(before, at, job.finished_at))
    elif (before is None or not before.open) and now > at:
        spans.append(_between(before, at, now, goes_on=True))
    return spans


def _known(job: Any, failures: Iterable[Any], now: datetime) -> list[Span]:
    """Return the recorded runs and waits, in order of their beginning."""
    known = [
        Span(
            "waiting" if failure.outcome == Outcome.WAITED else "run",
            failure.outcome,
            failure.started_at,
            max(failure.started_at, failure.finished_at),
            attempt=failure.attempt,
            worker=failure.worker,
            error=failure.error_type,
        )
        for failure in failures
        if failure.started_at is not None and failure.finished_at is not None
    ]
    end = {State.STARTED: now, State.LOST: job.updated_at, State.FINISHED: job.finished_at}
    if job.state in end and job.started_at is not None:
        known.append(
            Span(
                "run",
                job.state,
                job.started_at,
                max(job.started_at, end[job.state] or job.started_at),
                open=job.state == State.STARTED,
                attempt=job.attempt,
                worker=job.worker,
            )
        )
    if job.state == State.WAITING and job.waiting_since is not None:
        known.append(Span("waiting", State.WAITING, job.waiting_since, now, open=True))
    return sorted(known, key=lambda span: (span.start, span.end))


def _between(before: Span | None, start: datetime, end: datetime, *, goes_on: bool = False) -> Span:
    """Return the span between two recorded ones."""
    after: Any = None if before is None else before.state
    if after == State.LOST:
        after = Outcome.INTERRUPTED
    return Span(
        _AFTER.get(after, "queue"),
        _STATE_AFTER.get(after, State.ENQUEUED),
        start,
        end,
        open=goes_on,
    )


def _numbered(span: Span, number: int) -> Span:
    return replace(span, run=number)
