"""The outcome of a run, from what its hooks recorded and what happens to its message."""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING, Any

from dramatiq.errors import ActorNotFound

from dramatiq_joblog.payload.sanitize import (
    MAX_MESSAGE,
    MAX_TRACEBACK,
    clean_optional,
    clean_redacted,
    document,
    fit_name,
    message_of,
)
from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.recording.current import progress_of
from dramatiq_joblog.recording.events import Ended
from dramatiq_joblog.recording.kept_runs import kept_run
from dramatiq_joblog.states import DeadReason, Outcome, State

from .options import DELAY_SUFFIX, SECTION, UNIQUE, actor_of, attempt_of, eta_of, throws

if TYPE_CHECKING:
    from dramatiq import Broker

    from dramatiq_joblog.recording.current import LiveRun
    from dramatiq_joblog.recording.log_lines import Batch

    from .options import AnyMessage
    from .run import Run

#: The maximum number of frames in a traceback that ``Retries`` writes.
RETRIES_FRAMES = 30


def verdict(
    broker: Broker,
    message: AnyMessage,
    run: Run,
    live: LiveRun | None,
    *,
    rejected: bool,
) -> Ended:
    """Decide how a run ended, from what its hooks recorded and what happens to its message."""
    instant = host_now()
    row = run.row | {"updated_at": instant, "duration": run.duration, "eta": None}
    outcome = _outcome(broker, message, run, row, rejected=rejected)
    error = run.exception
    if error is None and row.get("dead_reason") == DeadReason.UNKNOWN_ACTOR:
        # Dramatiq before 2.0 does not report it.
        error = getattr(message, "_exception", None) or ActorNotFound(message.actor_name)
    if error is not None:
        row["error_type"] = fit_name(type(error).__name__)
        row["error_message"] = _message(run, error)
    if live is not None:
        row |= _reported_by(live, row.get("note"))
    if run.began is None or (run.skipped_by is not None and not run.skipped_in_actor):
        # The body never ran, though the start was written before another middleware refused it.
        row |= {"started_at": None, "duration": None, "queue_time": None}
    # An exception may be falsy, so compare with None.
    failed = run.exception
    if failed is None and run.skipped_in_actor:
        failed = run.skipped_error
    kept = None
    if outcome is Outcome.FINISHED:
        kept = kept_run(row | {"state": State.FINISHED.value, "finished_at": instant})
    elif outcome is not None and failed is not None:
        kept = _failure(run, row, outcome, failed)
    logged = None if live is None else _logged(live, row)
    options = message.options
    return Ended(
        row,
        kept,
        lines=None if logged is None else logged.lines,
        forget=None if logged is None else logged.forget,
        start=None if run.start is None else run.start.event,
        section=options.get(SECTION),
        unique=options.get(UNIQUE),
    )


def _reported_by(live: LiveRun, note: str | None) -> dict[str, Any]:
    """Return what a job reported about itself; bad values must not cost the outcome."""
    columns: dict[str, Any] = {}
    try:
        if live.reported is not None:
            columns["progress"] = json.dumps(progress_of(live.reported, live.redactor))
        noted = live.meta
        if noted is not None and (type(noted) is not dict or noted):
            meta = document(noted, live.redactor)
            columns |= {"meta": meta.text, "note": note or meta.note}
    except Exception as e:  # noqa: BLE001
        # An actor may store anything there.
        columns["note"] = note or clean_optional(f"its meta is not kept: {message_of(e)}")
    return columns


def _logged(live: LiveRun, row: dict[str, Any]) -> Batch | None:
    """Return the job's log lines not yet written."""
    try:
        return live.end_lines()
    except Exception as e:  # noqa: BLE001
        # A user's redactor may fail on a text.
        row["note"] = clean_optional(f"its last lines are not kept: {message_of(e)}")
        return None


def _outcome(
    broker: Broker, message: AnyMessage, run: Run, row: dict[str, Any], *, rejected: bool
) -> Outcome | None:
    """Set the state of *row*, and return the outcome of a run that did not finish."""
    instant, failed = row["updated_at"], run.exception is not None
    if run.requeued is not None:
        # The job continues, whatever the outcome of this run.
        delayed = run.requeued.queue_name.endswith(DELAY_SUFFIX)
        # Dramatiq treats an eta that is not a number as now.
        eta = eta_of(run.requeued) if delayed else None
        row["eta"] = instant if eta is None else eta
        if failed and attempt_of(run.requeued) > row["attempt"]:
            row["state"] = State.RETRYING.value
        else:
            # Requeued unchanged: its next run has the same attempt.
            row["state"] = (State.DELAYED if delayed else State.ENQUEUED).value
        if failed:
            return Outcome.DEAD if rejected else Outcome.RETRIED
        return Outcome.SKIPPED if rejected or run.skipped_by is not None else Outcome.FINISHED
    if run.put_back:
        row |= {"state": State.WAITING.value, "waiting_since": instant}
        return None
    row["finished_at"] = instant
    if rejected or (failed and run.skipped_by is None):
        # Acknowledged after an error and without a retry: the message is gone too.
        reason = _dead_reason(broker, message, run) if rejected else _gone_reason(message, run)
        row |= {"state": State.DEAD.value, "dead_reason": reason.value}
        return Outcome.DEAD
    if run.skipped_by is not None:
        reason_text = clean_redacted(run.skipped_by, MAX_MESSAGE, run.redactor.error)
        row |= {"state": State.SKIPPED.value, "skip_reason": reason_text}
        return Outcome.SKIPPED
    row["state"] = State.FINISHED.value
    return None


def _dead_reason(broker: Broker, message: AnyMessage, run: Run) -> DeadReason:
    if run.too_old:
        return DeadReason.AGE_LIMIT
    error = run.exception
    unknown = actor_of(broker, message) is None
    if unknown and (error is None or isinstance(error, ActorNotFound)):
        return DeadReason.UNKNOWN_ACTOR
    if type(error).__module__.partition(".")[0] == "dramatiq_abort":
        return DeadReason.ABORTED
    if throws(broker, message, error):
        return DeadReason.THROWS
    if error is not None and run.row["attempt"] > 1:
        return DeadReason.RETRIES_EXHAUSTED
    return DeadReason.NO_RETRIES


def _gone_reason(message: AnyMessage, run: Run) -> DeadReason:
    """Return why a failed job's message is acknowledged without a copy enqueued."""
    # ``Retries``, or a subclass, counts a failure before it enqueues the retry.
    due = run.tried or attempt_of(message) > run.row["attempt"]
    return DeadReason.RETRY_LOST if due else DeadReason.NO_RETRIES


def _traceback(error: BaseException, formatted: Any) -> str:
    """Return the traceback of an error; *formatted* is used if it is that traceback."""
    try:
        if _is_traceback_of(error, formatted):
            return str(formatted)
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:  # noqa: BLE001
        # The exception's own code fails; the frames can still be formatted.
        return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


def _is_traceback_of(error: BaseException, text: Any) -> bool:
    """Return whether the text that ``Retries`` stored is the complete traceback of *error*.

    Formatting a traceback costs as much as everything else that the log does for a job.
    """
    if type(text) is not str or error.__cause__ is not None or error.__context__ is not None:
        return False
    is_whole = sum(1 for _ in traceback.walk_tb(error.__traceback__)) <= RETRIES_FRAMES
    return is_whole and text.endswith("".join(traceback.format_exception_only(error)))


def _message(run: Run, error: BaseException) -> str:
    return clean_redacted(message_of(error), MAX_MESSAGE, run.redactor.error)


def _failure(
    run: Run, row: dict[str, Any], outcome: Outcome, error: BaseException
) -> dict[str, Any]:
    noted = run.given.options.get("traceback")
    formatted = noted if noted is not run.noted_before else None
    text = _traceback(error, formatted)
    text = clean_redacted(text, MAX_TRACEBACK, run.redactor.traceback)
    return {
        "jid": row["jid"],
        "token": row["token"],
        "attempt": row["attempt"],
        "outcome": outcome.value,
        "started_at": row["started_at"],
        "finished_at": row["updated_at"],
        "duration": row["duration"],
        "error_type": fit_name(type(error).__name__),
        "error_message": row["error_message"] or _message(run, error),
        "traceback": text,
        "worker": row["worker"],
    }
