"""The broker of a test, in memory, and the worker that runs its jobs."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name

from dramatiq_joblog.errors import ConfigurationError, JobLogError, JobNotFound

if TYPE_CHECKING:
    from dramatiq import Message
    from dramatiq.middleware import Middleware

    from dramatiq_joblog.joblog import JobLog

#: The most delayed messages and retries that one :meth:`JobLogWorker.run` runs.
DEFAULT_LIMIT = 1000


class JobLogBroker(StubBroker):
    """A broker in memory that holds delayed messages back until they are released."""

    def __init__(self, middleware: list[Middleware]) -> None:
        super().__init__(middleware)
        #: The ids of all messages that were enqueued since :meth:`take_sent`, in order.
        self._sent: dict[str, None] = {}
        self._held: list[tuple[float, int, bytes]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Refuse further messages."""
        self._closed = True
        super().close()

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Enqueue a message; a delayed one is held back.

        Raises:
          ConfigurationError: If the test has ended.
        """
        if self._closed:
            raise ConfigurationError(
                f"actor {message.actor_name!r} was declared on the broker of a test that has "
                "ended: import its module before the fixtures are made, such as at the top of the "
                "test module or of conftest.py"
            )
        if delay is None:
            sent: Message[Any] = super().enqueue(message)
        else:
            eta = time.time() * 1000 + delay
            name = dq_name(message.queue_name)
            sent = message.copy(queue_name=name, options={"eta": int(eta)})
            self.emit_before("enqueue", sent, delay)
            with self._lock:
                heapq.heappush(self._held, (eta, next(self._numbers), sent.encode()))
            self.emit_after("enqueue", sent, delay)
        with self._lock:
            self._sent[sent.message_id] = None
        return sent

    def let_go(self) -> bool:
        """Enqueue the held message that is due first, whatever its time; False if none is held."""
        with self._lock:
            if not self._held:
                return False
            held = dramatiq.Message.decode(heapq.heappop(self._held)[2])
        due = held.copy(queue_name=held.queue_name.removesuffix(".DQ"))
        del due.options["eta"]
        self.enqueue(due)
        return True

    def take_sent(self) -> list[str]:
        """Return the ids of the messages that were enqueued since this was called, in order."""
        with self._lock:
            sent, self._sent = list(self._sent), {}
        return sent


class JobLogWorker:
    """Runs the messages that a test sends: the fixture ``joblog_worker``.

    Parameters:
      log: The log.
      broker: The broker of the test.
    """

    def __init__(self, log: JobLog[Any], broker: JobLogBroker) -> None:
        self._log = log
        self._broker = broker

    def run(self, *, threads: int = 1, limit: int = DEFAULT_LIMIT, timeout: int = 60_000) -> Any:
        """Run everything that was sent, and everything that is sent by it, until nothing is left.

        Nothing waits: delayed messages and retries run once nothing else is left, in the order in
        which they are due.

        Example:
          >>> reconcile.send(8, "closed")
          >>> [job] = joblog_worker.run()
          >>> job.state
          State.DEAD

        Parameters:
          threads: How many jobs run at once.
          limit: How many delayed messages and retries may run before the call gives up.
          timeout: Milliseconds that jobs may take between two delays.

        Raises:
          JobLogError: If the limit is reached.
          dramatiq.errors.QueueJoinTimeout: If the timeout is.

        Returns:
          The rows of the jobs that were sent since the last run, in the order of sending.
        """
        level = logging.root.level
        # As the ``dramatiq`` command does.
        logging.root.setLevel(min(level, logging.INFO))
        worker = dramatiq.Worker(self._broker, worker_timeout=10, worker_threads=threads)
        worker.start()
        try:
            for _ in range(limit):
                self._join(timeout)
                if not self._broker.let_go():
                    break
            else:
                raise JobLogError(
                    f"the jobs of this test do not end: {limit} retries and delayed messages "
                    "have run and there are more; give run() a higher limit if that is intended"
                )
        finally:
            worker.stop()
            logging.root.setLevel(level)
            # Dramatiq's worker leaves a middleware behind, which would make the next one warn.
            self._broker.middleware[:] = [m for m in self._broker.middleware if not is_left(m)]
        return self._rows()

    def _join(self, timeout: int) -> None:
        while any(self._broker.queues[name].unfinished_tasks for name in self._names):
            for name in self._names:
                self._broker.join(name, timeout=timeout, fail_fast=False)

    @property
    def _names(self) -> list[str]:
        return sorted(self._broker.get_declared_queues())

    def _rows(self) -> list[Any]:
        rows = []
        for jid in self._broker.take_sent():
            try:
                rows.append(self._log.get(jid))
            except JobNotFound:
                # log_job=False
                continue
        return rows


def is_left(middleware: Middleware) -> bool:
    """Return whether a middleware is the one that Dramatiq's worker leaves behind."""
    return type(middleware).__name__ == "_WorkerMiddleware"
