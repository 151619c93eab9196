"""Bringing the job that waits longest forward, once its section is free.

A message that waits lies in the memory of the worker process that took it from the delay queue.
Each process looks at its own: in one question for each key, however many wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import threading
from typing import TYPE_CHECKING, Any

from dramatiq.common import q_name
from dramatiq.logging import get_logger

from dramatiq_joblog.database.connection import Connection
from dramatiq_joblog.errors import DatabaseAwayError
from dramatiq_joblog.payload.sanitize import fold_jid

from .messages import SECTION

if TYPE_CHECKING:
    from dramatiq import Broker

    from dramatiq_joblog.joblog import JobLog

#: Milliseconds between two looks at what waits here.
TICK = 200
#: As many keys are looked at in a row at most.
MAX_KEYS = 50


class Waker(threading.Thread):
    """Looks after the messages that wait in this process.

    Parameters:
      joblog: The log.
      broker: Where they are put forward.
    """

    def __init__(self, joblog: JobLog, broker: Broker) -> None:
        super().__init__(name="dramatiq_joblog waker", daemon=True)
        self._joblog = joblog
        self._broker = broker
        self._logger = get_logger(__name__, type(self))
        self._look = threading.Event()
        self._stopped = False
        #: The host's threads that hold messages back until their time has come.
        self.consumers: list[Any] = []

    def look(self) -> None:
        """Look now: a section may be free."""
        self._look.set()

    def stop(self) -> None:
        """End."""
        self._stopped = True
        self._look.set()
        if self.is_alive():
            self.join(timeout=10.0)

    def run(self) -> None:
        """Look whenever something may have changed, and now and then."""
        connection = Connection(self._joblog.database)
        while not self._stopped:
            self._look.wait(TICK / 1000)
            self._look.clear()
            try:
                self._wake(connection)
            except DatabaseAwayError as e:
                self._logger.debug("Nobody is brought forward: %s", e)
            except Exception:
                # They come by themselves, only later.
                self._logger.warning("A waiting job was not brought forward.", exc_info=True)
        connection.close()

    def _wake(self, connection: Connection) -> None:
        waiting: dict[str, tuple[int, dict[str, tuple[Any, Any]]]] = {}
        for consumer in self.consumers:
            queue = consumer.delay_queue
            with queue.mutex:
                items = list(queue.queue)
            for item in items:
                message = _message_of(item)
                section = message.options.get(SECTION)
                if section is not None:
                    _, mine = waiting.setdefault(section["key"], (section["limit"], {}))
                    mine[fold_jid(message.message_id)] = (consumer, item)
        for key, (limit, mine) in list(waiting.items())[:MAX_KEYS]:
            jobs = connection.ask(functools.partial(self._next_of, key, limit))
            for job in jobs:
                if job.jid in mine:
                    self._put_forward(*mine[job.jid])

    def _next_of(self, key: str, limit: int) -> list[Any]:
        """Return the jobs that may enter a section now."""
        locks = self._joblog.transitions.locks
        free = locks.free(key, limit)
        return list(locks.waiters(key).limit(free)) if free > 0 else []

    def _put_forward(self, consumer: Any, item: Any) -> None:
        """Do what the host does with a message whose time has come."""
        queue = consumer.delay_queue
        with queue.mutex:
            if item not in queue.queue:
                return
            queue.queue.remove(item)
            heapq.heapify(queue.queue)
        held_back = _message_of(item)
        message = held_back.copy(queue_name=q_name(held_back.queue_name))
        message.options.pop("eta", None)
        try:
            self._broker.enqueue(message)
        except BaseException:
            with contextlib.suppress(ValueError):
                queue.task_done()
            queue.put(item)
            raise
        consumer.post_process_message(held_back)
        queue.task_done()


def _message_of(item: Any) -> Any:
    # A tuple before dramatiq 2.
    return item[-1] if isinstance(item, tuple) else item.message
