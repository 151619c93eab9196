"""What each worker thread is running, and what it has enqueued meanwhile."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.recording.heartbeat import here
from dramatiq_joblog.recording.tokens import new_token

from .deliveries import delivery_of
from .options import bare
from .verdict import OpenRuns, Run

if TYPE_CHECKING:
    from dramatiq import Broker

    from .messages import Messages
    from .options import AnyMessage
    from .plan import Plan
    from .worker_process import WorkerProcess

#: What a run says of its job, before it has.
_OF_A_RUN: dict[str, Any] = dict.fromkeys(
    (
        "dead_reason",
        "duration",
        "error_message",
        "error_type",
        "eta",
        "finished_at",
        "queue_time",
        "skip_reason",
        "started_at",
        "state",
    )
)


class Runs:
    """The runs at work in this process, each known to its thread.

    Parameters:
      messages: Knows what rows say.
      process: This process.
    """

    def __init__(self, messages: Messages, process: WorkerProcess) -> None:
        self._messages = messages
        self._process = process
        self._local = threading.local()
        self._open = OpenRuns()

    def begin_thread(self) -> None:
        """Note what is enqueued on a worker's thread; this is it."""
        self._local.sent = {}

    def note_sent(self, message: AnyMessage) -> None:
        """Note that this thread has enqueued a message that it does not work on."""
        sent = getattr(self._local, "sent", None)
        if sent is not None:
            # Perhaps the retry of a message that was refused before the log knew of its run.
            sent[message.message_id] = message

    def open(self, run: Run) -> None:
        """Follow a run on all threads, until it has ended."""
        self._open.add(run)

    def close(self, run: Run) -> None:
        """Follow a run no more."""
        self._open.remove(run)

    def current(self, message: AnyMessage) -> Run | None:
        """Return the run of a message that this thread works on; None if it is another's."""
        run: Run | None = getattr(self._local, "run", None)
        return run if run is not None and run.message_id == message.message_id else None

    def of_delivery(self, message: AnyMessage) -> Run | None:
        """Return the run of this very delivery: an earlier one of the message may be left here."""
        run: Run | None = getattr(self._local, "run", None)
        return run if run is not None and run.given is message else None

    def working_on(self, message: AnyMessage) -> list[Run]:
        """Return the runs here, on any thread, whose job goes on with what was enqueued now."""
        mine = self.current(message)
        # Another copy of the message may be at work on another thread: that is another run.
        runs = [mine] if mine is not None and not mine.ended else self._open.of(message.message_id)
        # A message that was moved twice is no other than the one at work.
        name = delivery_of(message).name
        return [run for run in runs if name is None or run.delivery.name != name]

    def leave(self) -> None:
        """Forget the run before, should its end not have come."""
        run: Run | None = getattr(self._local, "run", None)
        if run is not None and not run.ended:
            self._open.remove(run)
        self._local.run = None
        self.forget_sent()

    def forget_sent(self) -> None:
        """Forget what was enqueued on this thread."""
        sent = getattr(self._local, "sent", None)
        if sent:
            sent.clear()

    def late(self, broker: Broker, message: AnyMessage) -> Run:
        """Return a run whose message was dropped or failed before the log knew of it."""
        run = self.new(broker, message)
        run.requeued = (getattr(self._local, "sent", None) or {}).get(message.message_id)
        return run

    def new(self, broker: Broker, message: AnyMessage, plan: Plan | None = None) -> Run:
        """Begin to work on a message, on this thread."""
        inner = bare(message)
        # All rows of runs have the same columns, whose values are then taken together.
        row = _OF_A_RUN | self._messages.row(broker, inner, plan)
        delivery = delivery_of(inner)
        row["token"] = new_token(delivery.name, stamped=delivery.stamped)
        row["worker"] = here()
        row["process"] = self._process.name
        redactor = self._messages.arguments.redactor(broker, inner, row)
        noted = inner.options.get("traceback")
        run = Run(inner.message_id, row, redactor, message, delivery, noted)
        self._local.run = run
        return run
