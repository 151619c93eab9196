"""One run of a job on one worker thread, as the hooks see it."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dramatiq import Broker
from dramatiq.middleware import AgeLimit, Middleware

from dramatiq_joblog.payload.sanitize import message_of
from dramatiq_joblog.states import State

if TYPE_CHECKING:
    from types import FrameType

    from dramatiq_joblog.payload.redaction import Redactor
    from dramatiq_joblog.recording.inbox import LateStart

    from .deliveries import Delivery
    from .options import AnyMessage


@dataclass(slots=True, eq=False)
class Run:
    """What a worker thread knows about its current message."""

    message_id: str
    #: The job's columns, as known to this run.
    row: dict[str, Any]
    #: Removes secrets from what the run reports.
    redactor: Redactor
    #: The message as the worker received it for this run.
    given: AnyMessage
    delivery: Delivery
    #: The traceback in the message before this run.
    noted_before: Any
    #: When the body began, in monotonic seconds; None before.
    began: float | None = None
    duration: int | None = None
    #: The seconds that the body took.
    lasted: float = 0.0
    exception: BaseException | None = None
    #: What dropped the message, with its reason; None if nothing did.
    skipped_by: str | None = None
    skipped_in_actor: bool = False
    #: Whether that was ``AgeLimit`` or a subclass.
    too_old: bool = False
    skipped_error: BaseException | None = None
    #: The copy of the message that was enqueued during the run.
    requeued: Any = None
    #: Whether enqueueing a copy was attempted.
    tried: bool = False
    #: Whether the log refused the start, so that this run must not write the row.
    refused: bool = False
    #: Whether the message was put back after the start, so that its job waits.
    put_back: bool = False
    ended: bool = False
    #: The run's start, if it is deferred.
    start: LateStart | None = None

    def begin(self, start: LateStart | None) -> None:
        """Record that the body begins, with its start if that is deferred."""
        self.start = start
        self.began = time.monotonic()

    def start_at(self, instant: int) -> None:
        """Set the columns of a start, in milliseconds since 1970."""
        row, since = self.row, self.row["enqueued_at"]
        row["state"] = State.STARTED.value
        row["started_at"] = instant
        # By two hosts' clocks.
        row["queue_time"] = None if since is None else max(0, instant - since)

    def as_begun(self) -> dict[str, Any]:
        """Return the columns that are known only once its thread has taken the message."""
        names = ["started_at", "worker", "trace_id"]
        if self.row["attempt"] == 1:
            # A retry keeps that of the first run.
            names.append("queue_time")
        return {name: self.row[name] for name in names if self.row.get(name) is not None}

    def note_try(self) -> None:
        """Record that a copy of the message is about to be enqueued."""
        self.tried = True

    def note_copy(self, message: Any) -> None:
        """Record the copy of the message that was enqueued; None for none."""
        self.requeued = message

    def refuse(self) -> None:
        """Record that it may not begin."""
        self.refused = True

    def note_end(self, exception: BaseException | None) -> None:
        """Record how the body ended; may be called twice."""
        self.exception = exception
        self._stop()
        if exception is not None and raised_before_body(exception):
            self.began = self.duration = None

    def note_skip(self, error: BaseException | None, *, put_back: bool) -> None:
        """Record what raised ``SkipMessage``, and whether the message was put back."""
        self._stop()
        self.put_back = put_back
        self.skipped_error = error
        self.skipped_in_actor = error is None or not raised_before_body(error)
        skipper = _skipper(error)
        self.skipped_by = _skipped_by(skipper, error)
        self.too_old = isinstance(skipper, AgeLimit)

    def end(self) -> None:
        """Record that its outcome is decided."""
        self.ended = True
        # An error keeps alive everything that its frames refer to.
        self.exception = self.skipped_error = None

    def _stop(self) -> None:
        if self.began is not None:
            self.lasted = time.monotonic() - self.began
            self.duration = round(self.lasted * 1000)


def raised_before_body(error: BaseException) -> bool:
    """Return whether *error* was raised by a middleware's hook, before the actor was called."""
    # The first frame is the worker's, the second what it called; deeper ones may belong to a
    # message that the actor was sending.
    called = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:2]
    return bool(called) and _emits(called[0])


def _emits(frame: FrameType) -> bool:
    """Return whether a frame is that of a broker calling its middleware."""
    name = Broker.emit_before.__name__
    return frame.f_code.co_name == name and isinstance(_first_argument(frame), Broker)


def _first_argument(frame: FrameType) -> Any:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _skipper(error: BaseException | None) -> Middleware | None:
    """Return the middleware that raised ``SkipMessage``; None if the actor did."""
    if error is None or not raised_before_body(error):
        return None
    found: Any = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is Broker.emit_before.__code__:
            found = frame.f_locals.get("middleware")
        elif isinstance(inner := _first_argument(frame), Middleware):
            # A middleware called by another one has the real reason.
            found = inner
    return cast("Middleware | None", found)


def _skipped_by(skipper: Middleware | None, error: BaseException | None) -> str:
    """Return the name of what dropped a message, with its reason."""
    by = "actor" if skipper is None else type(skipper).__name__
    text = message_of(error) if error is not None else ""
    return f"{by}: {text}" if text else by
