"""The run of each worker thread, and what the thread has enqueued meanwhile."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.recording.heartbeat import here, some_thread
from dramatiq_joblog.recording.tokens import new_token

from .deliveries import delivery_of
from .options import bare
from .run import Run

if TYPE_CHECKING:
    from dramatiq import Broker

    from .messages import Messages
    from .options import AnyMessage
    from .plan import Plan
    from .worker_process import WorkerProcess

#: The initial columns of a run.
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


class _Thread(threading.local):
    """What is known of each thread; read for every message, so without ``getattr``."""

    #: Its run; after the end, that of its last message.
    run: Run | None = None
    #: What it has enqueued during the run, by message id; None if it is no worker thread.
    sent: dict[str, AnyMessage] | None = None


class Runs:
    """The current runs of this process, by thread.

    Parameters:
      messages: Makes the columns of rows.
      process: The name of this process.
    """

    def __init__(self, messages: Messages, process: WorkerProcess) -> None:
        self._messages = messages
        self._process = process
        self._thread = _Thread()
        self._guard = threading.Lock()
        #: The runs that have begun and not ended, on all threads, by message id.
        self._open: dict[str, list[Run]] = {}

    def begin_thread(self) -> None:
        """Mark this thread as a worker thread, whose enqueued messages are recorded."""
        self._thread.sent = {}

    def note_sent(self, message: AnyMessage) -> None:
        """Record that this thread has enqueued a message other than its current one."""
        sent = self._thread.sent
        if sent is not None:
            # It may be the retry of a message that was refused before its run was known.
            sent[message.message_id] = message

    def open(self, run: Run) -> None:
        """Register a run for all threads, until it has ended."""
        with self._guard:
            self._open.setdefault(run.message_id, []).append(run)

    def close(self, run: Run) -> None:
        """Unregister a run, if present."""
        with self._guard:
            runs = self._open.get(run.message_id, [])
            if run in runs:
                runs.remove(run)
            if not runs:
                self._open.pop(run.message_id, None)

    def _open_of(self, message_id: str) -> list[Run]:
        if message_id not in self._open:
            return []
        with self._guard:
            return list(self._open.get(message_id, ()))

    def current(self, message: AnyMessage) -> Run | None:
        """Return this thread's run if it is of *message*, or None."""
        run = self._thread.run
        return run if run is not None and run.message_id == message.message_id else None

    def of_delivery(self, message: AnyMessage) -> Run | None:
        """Return the run of exactly this delivery: an earlier run of the message may remain."""
        run = self._thread.run
        return run if run is not None and run.given is message else None

    def working_on(self, message: AnyMessage) -> list[Run]:
        """Return the runs, on any thread, whose jobs continue with the message just enqueued."""
        mine = self.current(message)
        # Another copy of the message may run on another thread; that is a different run.
        runs = [mine] if mine is not None and not mine.ended else self._open_of(message.message_id)
        if not runs:
            return runs
        # A message that was moved twice is the same as the running one.
        name = delivery_of(message).name
        return [run for run in runs if name is None or run.delivery.name != name]

    def leave(self) -> None:
        """Drop this thread's previous run, in case its end was not reported."""
        run = self._thread.run
        if run is not None and not run.ended:
            self.close(run)
        self._thread.run = None
        self.forget_sent()

    def forget_sent(self) -> None:
        """Clear the record of messages enqueued on this thread."""
        sent = self._thread.sent
        if sent:
            sent.clear()

    def late(self, broker: Broker, message: AnyMessage) -> Run:
        """Return a run for a message that was dropped or failed before its run was known."""
        run = self.new(broker, message)
        run.note_copy((self._thread.sent or {}).get(message.message_id))
        return run

    def new(self, broker: Broker, message: AnyMessage, plan: Plan | None = None) -> Run:
        """Create the run of a message on this thread."""
        run = self.make(broker, message, plan)
        self.enter(run)
        return run

    def enter(self, run: Run) -> None:
        """Let this thread execute a run."""
        run.row["worker"] = here()
        self._thread.run = run

    def count_longer(self, seconds: float) -> int:
        """Return how many runs have lasted for more than so many seconds."""
        before = time.monotonic() - seconds
        with self._guard:
            runs = [run for runs in self._open.values() for run in runs]
        return sum(run.began is not None and run.began < before for run in runs)

    def make(self, broker: Broker, message: AnyMessage, plan: Plan | None = None) -> Run:
        """Create the run of a message, which any thread may :meth:`enter`."""
        inner = bare(message)
        # All rows of runs have the same columns, so that they are written together.
        row = _OF_A_RUN | self._messages.row(broker, inner, plan)
        delivery = delivery_of(inner)
        row["token"] = new_token(delivery.name, stamped=delivery.stamped)
        row["worker"] = some_thread()
        row["process"] = self._process.name
        redactor = self._messages.arguments.redactor(broker, inner, row)
        noted = inner.options.get("traceback")
        return Run(inner.message_id, row, redactor, message, delivery, noted)
