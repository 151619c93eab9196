"""A pytest plugin: your actors, run in your tests, with their rows to look at.

pytest finds it by itself.  Its fixtures move your actors to a broker in memory and your log to
a SQLite file of the test, and put both back; nothing has to be started or cleared.
"""

from __future__ import annotations

import copy
import heapq
import importlib
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import dramatiq
import dramatiq.broker
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name
from dramatiq.middleware import default_middleware
from dramatiq.results import Results

from .errors import JobLogError, JobNotFound
from .joblog import JobLog
from .middleware import JobLogMiddleware
from .schema.models import Job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dramatiq import Broker, Message
    from dramatiq.middleware import Middleware

#: As many messages are run by one :meth:`JobLogWorker.run` at most.
DEFAULT_LIMIT = 1000


class JobLogBroker(StubBroker):
    """A broker in memory that holds delayed messages back until it is asked for them."""

    def __init__(self, middleware: list[Middleware]) -> None:
        super().__init__(middleware)
        #: The ids of all messages that were enqueued since :meth:`take_sent`, in order.
        self._sent: dict[str, None] = {}
        self._held: list[tuple[float, int, bytes]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Enqueue a message; a delayed one is held back."""
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
        """Enqueue the held message that is due first, as if it were due; False if there is none."""
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
    """Runs what was sent; what the fixture ``joblog_worker`` is.

    Parameters:
      log: The log.
      broker: The broker of the test.
    """

    def __init__(self, log: JobLog, broker: JobLogBroker) -> None:
        self._log = log
        self._broker = broker

    def run(self, *, threads: int = 1, limit: int = DEFAULT_LIMIT, timeout: int = 60_000) -> Any:
        """Run all that was sent, and all that is sent by it, until nothing is left.

        Nothing waits: a delayed message and a retry run as soon as nothing else is left, those
        that are due first before the others.

        Example:
          >>> reconcile.send(8, "closed")
          >>> [job] = joblog_worker.run()
          >>> job.state
          State.DEAD

        Parameters:
          threads: How many jobs run at once.
          limit: How many delayed messages and retries may run: more do not seem to end.
          timeout: Milliseconds that jobs may take between two delays.

        Raises:
          JobLogError: If the limit is reached.
          dramatiq.errors.QueueJoinTimeout: If the timeout is.

        Returns:
          The rows of the jobs that were sent since the last run, in the order of sending.
        """
        level = logging.root.level
        # As the host's command does.
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
                    "have run and there are more; give run() a higher limit if that is meant"
                )
        finally:
            worker.stop()
            logging.root.setLevel(level)
            # The host's worker leaves a middleware behind, that the next one would be warned of.
            self._broker.middleware[:] = [m for m in self._broker.middleware if not _is_left(m)]
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


@pytest.fixture
def joblog_app_broker() -> Broker | None:
    """Return the broker that your actors are declared on; override it if it is not the global one.

    It is only read.
    """
    return dramatiq.broker.global_broker


@pytest.fixture
def joblog(joblog_app_broker: Broker | None, tmp_path: Path) -> Iterator[JobLog]:
    """Return your log, moved to a SQLite file of this test; a new one if your broker has none.

    A log with a job model of your own stays on its database, where the tables are that its
    foreign keys lead to.
    """
    stack = _middleware_of(joblog_app_broker)
    app_log = next((m.joblog for m in stack if isinstance(m, JobLogMiddleware)), None)
    if app_log is not None and app_log.Job.__module__ != Job.__module__:
        app_log.create_tables()
        yield app_log
        app_log.close()
        return
    log = JobLog(f"sqlite:///{tmp_path / 'joblog.db'}", spool=tmp_path / "spool")
    if app_log is None:
        log.create_tables()
        yield log
        log.close()
        return
    # Whatever has a hold of your log sees that of the test.
    for name in ("store_args", "redactor", "seal", "_job_types"):
        setattr(log, name, getattr(app_log, name))
    before = vars(app_log).copy()
    vars(app_log).update(vars(log))
    app_log.create_tables()
    try:
        yield app_log
    finally:
        app_log.close()
        vars(app_log).clear()
        vars(app_log).update(before)


@pytest.fixture
def joblog_broker(joblog: JobLog, joblog_app_broker: Broker | None) -> Iterator[JobLogBroker]:
    """Return the global broker of this test, in memory, with your actors and your middleware."""
    broker = JobLogBroker(_moved(_middleware_of(joblog_app_broker), joblog))
    before = dramatiq.broker.global_broker
    home = joblog_app_broker
    homes = {} if home is None else dict.fromkeys(home.actors.values(), home)
    dramatiq.set_broker(broker)
    try:
        for actor in homes:
            actor.broker = broker
            broker.declare_actor(actor)
        yield broker
    finally:
        for actor, its_own in homes.items():
            actor.broker = its_own
        broker.close()
        dramatiq.broker.global_broker = before


@pytest.fixture
def joblog_worker(joblog: JobLog, joblog_broker: JobLogBroker) -> JobLogWorker:
    """Return what runs the jobs that a test sends."""
    return JobLogWorker(joblog, joblog_broker)


def _middleware_of(broker: Broker | None) -> Sequence[Middleware]:
    return [make() for make in default_middleware] if broker is None else broker.middleware


def _moved(stack: Sequence[Middleware], joblog: JobLog) -> list[Middleware]:
    """Return *stack* with the log of the test in the place of its own."""
    moved: list[Middleware] = []
    for middleware in stack:
        if isinstance(middleware, JobLogMiddleware):
            level = middleware._lines_level
            lines = False if level is None else level
            moved.append(JobLogMiddleware(joblog, lines=lines, outcome_log=middleware._outcome_log))
        elif isinstance(middleware, Results):
            # Results need no server either.
            results = copy.copy(middleware)
            # Of the host's older versions it warns of backends that are not installed.
            backends = importlib.import_module("dramatiq.results.backends")
            results.backend = backends.StubBackend()
            moved.append(results)
        elif not _is_left(middleware) and type(middleware).__name__ != "Prometheus":
            # The latter counts in files, that a worker process makes when it boots.
            moved.append(middleware)
    if not any(isinstance(middleware, JobLogMiddleware) for middleware in moved):
        moved.append(JobLogMiddleware(joblog))
    return moved


def _is_left(middleware: Middleware) -> bool:
    return type(middleware).__name__ == "_WorkerMiddleware"
