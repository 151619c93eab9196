"""One run of a job on one worker thread, and its outcome."""

from __future__ import annotations

import json
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dramatiq import Broker
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import AgeLimit, Middleware

from dramatiq_joblog.payload.sanitize import (
    MAX_MESSAGE,
    MAX_TRACEBACK,
    clean_optional,
    clean_redacted,
    document,
    fit_name,
    message_of,
)
from dramatiq_joblog.recording.current import progress_of
from dramatiq_joblog.recording.events import Ended
from dramatiq_joblog.recording.kept_runs import kept_run
from dramatiq_joblog.states import DeadReason, Outcome, State

from .options import DELAY_SUFFIX, SECTION, UNIQUE, actor_of, attempt_of, eta_of, now, throws

if TYPE_CHECKING:
    from types import FrameType

    from dramatiq_joblog.payload.redaction import Redactor
    from dramatiq_joblog.recording.current import LiveRun
    from dramatiq_joblog.recording.inbox import LateStart
    from dramatiq_joblog.recording.log_lines import Batch

    from .deliveries import Delivery
    from .options import AnyMessage


#: Of so many frames of an error at most is a traceback that ``Retries`` writes.
RETRIES_FRAMES = 30


@dataclass(slots=True, eq=False)
class Run:
    """What a worker thread knows of the message it works on."""

    message_id: str
    #: The job's columns, as this run knows them.
    row: dict[str, Any]
    #: Takes secrets out of what the run says.
    redactor: Redactor
    #: The message as the worker was given it for this run.
    given: AnyMessage
    delivery: Delivery
    #: What stood in the message as a traceback before this run.
    noted_before: Any
    #: Monotonic, in seconds; None while the body has not begun.
    began: float | None = None
    duration: int | None = None
    exception: BaseException | None = None
    #: Who dropped the message, if anyone did, and with what.
    skipped_by: str | None = None
    skipped_in_actor: bool = False
    #: Whether that was ``AgeLimit``, or what is derived from it.
    too_old: bool = False
    skipped_error: BaseException | None = None
    #: The copy of the message that was enqueued while it was worked on.
    requeued: Any = None
    #: Whether enqueuing one was begun, whatever became of it.
    tried: bool = False
    #: Whether the log did not let it begin: then its row is not this run's to write.
    refused: bool = False
    ended: bool = False
    #: The run's start, if it is written only if the run lasts.
    start: LateStart | None = None

    def note_end(self, exception: BaseException | None) -> None:
        """Note how the body ended; it may be noted twice."""
        self.exception = exception
        self._stop()
        if exception is not None and raised_before_body(exception):
            self.began = self.duration = None

    def note_skip(self, error: BaseException | None) -> None:
        """Note who raised ``SkipMessage``."""
        self._stop()
        self.skipped_error = error
        self.skipped_in_actor = error is None or not raised_before_body(error)
        skipper = _skipper(error)
        self.skipped_by = _skipped_by(skipper, error)
        self.too_old = isinstance(skipper, AgeLimit)

    def _stop(self) -> None:
        if self.began is not None:
            self.duration = round((time.monotonic() - self.began) * 1000)


class OpenRuns:
    """The runs that go on in this process, on whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, list[Run]] = {}

    def add(self, run: Run) -> None:
        """Follow a run."""
        with self._lock:
            self._runs.setdefault(run.message_id, []).append(run)

    def remove(self, run: Run) -> None:
        """Follow a run no more, if it was followed."""
        with self._lock:
            runs = self._runs.get(run.message_id, [])
            if run in runs:
                runs.remove(run)
            if not runs:
                self._runs.pop(run.message_id, None)

    def of(self, message_id: str) -> list[Run]:
        """Return the runs of a message."""
        if message_id not in self._runs:
            return []
        with self._lock:
            return list(self._runs.get(message_id, ()))


def verdict(
    broker: Broker,
    message: AnyMessage,
    run: Run,
    live: LiveRun | None,
    *,
    rejected: bool,
) -> Ended:
    """Decide how a run ended, from what its hooks noted and from what becomes of its message."""
    instant = now()
    row = run.row | {"updated_at": instant, "duration": run.duration, "eta": None}
    outcome = _outcome(broker, message, run, row, rejected=rejected)
    error = run.exception
    if error is None and row.get("dead_reason") == DeadReason.UNKNOWN_ACTOR:
        # Dramatiq before 2.0 does not say.
        error = getattr(message, "_exception", None) or ActorNotFound(message.actor_name)
    if error is not None:
        row["error_type"] = fit_name(type(error).__name__)
        row["error_message"] = _message(run, error)
    if live is not None:
        row |= _reported_by(live, row.get("note"))
    if run.began is None or (run.skipped_by is not None and not run.skipped_in_actor):
        # The body never ran, whatever was written when another middleware still might let it.
        row |= {"started_at": None, "duration": None, "queue_time": None}
    # An error may be false: none is asked whether it is true.
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
    """Return what a job noted about itself: no oddity of it costs the outcome."""
    columns: dict[str, Any] = {}
    try:
        if live.reported is not None:
            columns["progress"] = json.dumps(progress_of(live.reported, live.redactor))
        noted = live.meta
        if noted is not None and (type(noted) is not dict or noted):
            meta = document(noted, live.redactor)
            columns |= {"meta": meta.text, "note": note or meta.note}
    except Exception as e:  # noqa: BLE001
        # An actor may put anything there.
        columns["note"] = note or clean_optional(f"its meta is not kept: {message_of(e)}")
    return columns


def _logged(live: LiveRun, row: dict[str, Any]) -> Batch | None:
    """Return what a job logged that is not written yet."""
    try:
        return live.end_lines()
    except Exception as e:  # noqa: BLE001
        # A redactor of the user's own may fail on a text.
        row["note"] = clean_optional(f"its last lines are not kept: {message_of(e)}")
        return None


def _outcome(
    broker: Broker, message: AnyMessage, run: Run, row: dict[str, Any], *, rejected: bool
) -> Outcome | None:
    """Set the state of *row*, and return the outcome of a run that did not finish."""
    instant, failed = row["updated_at"], run.exception is not None
    if run.requeued is not None:
        # The job goes on, whatever became of this run.
        delayed = run.requeued.queue_name.endswith(DELAY_SUFFIX)
        # Of one that is not a number, the host makes now.
        eta = eta_of(run.requeued) if delayed else None
        row["eta"] = instant if eta is None else eta
        if failed and attempt_of(run.requeued) > row["attempt"]:
            row["state"] = State.RETRYING.value
        else:
            # Put back as it was: its next run is of the same attempt.
            row["state"] = (State.DELAYED if delayed else State.ENQUEUED).value
        if failed:
            return Outcome.DEAD if rejected else Outcome.RETRIED
        return Outcome.SKIPPED if rejected or run.skipped_by is not None else Outcome.FINISHED
    row["finished_at"] = instant
    if rejected or (failed and run.skipped_by is None):
        # Acknowledged after an error, with no retry in sight, is gone as well.
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
    """Return why a failed job's message is acknowledged, and no copy of it was enqueued."""
    # ``Retries``, or what is derived from it, counts a failure before it enqueues the retry.
    due = run.tried or attempt_of(message) > run.row["attempt"]
    return DeadReason.RETRY_LOST if due else DeadReason.NO_RETRIES


def raised_before_body(error: BaseException) -> bool:
    """Return whether *error* came from a middleware's hook, so that the actor was not called."""
    # The worker's own frame comes first, and what it called comes next; deeper ones may be
    # those of a message that the actor was sending.
    called = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:2]
    return bool(called) and _emits(called[0])


def _emits(frame: FrameType) -> bool:
    """Return whether a frame is that of a broker that calls its middleware, in any way."""
    name = Broker.emit_before.__name__
    return frame.f_code.co_name == name and isinstance(_first_argument(frame), Broker)


def _first_argument(frame: FrameType) -> Any:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _skipper(error: BaseException | None) -> Middleware | None:
    """Return the middleware that raised ``SkipMessage``; None for the actor."""
    if error is None or not raised_before_body(error):
        return None
    found: Any = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is Broker.emit_before.__code__:
            found = frame.f_locals.get("middleware")
        elif isinstance(inner := _first_argument(frame), Middleware):
            # One that another one called: it knows the reason.
            found = inner
    return cast("Middleware | None", found)


def _skipped_by(skipper: Middleware | None, error: BaseException | None) -> str:
    """Return what dropped a message, with its reason."""
    by = "actor" if skipper is None else type(skipper).__name__
    text = message_of(error) if error is not None else ""
    return f"{by}: {text}" if text else by


def _traceback(error: BaseException, formatted: Any) -> str:
    """Return the traceback of an error; *formatted* may be that already."""
    try:
        if _is_traceback_of(error, formatted):
            return str(formatted)
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:  # noqa: BLE001
        # An error's own code is at fault: where it was raised is known all the same.
        return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


def _is_traceback_of(error: BaseException, text: Any) -> bool:
    """Return whether what ``Retries`` noted in this run is the whole traceback of its error.

    It costs as much to write as all else that the log does with a job.
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
        "error_message": _message(run, error),
        "traceback": text,
        "worker": row["worker"],
    }
