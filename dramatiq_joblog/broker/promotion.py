"""Bringing the job that waits longest forward, once its section is free.

A message that waits lies in the memory of the worker process that took it from the delay queue.
Each process looks after its own: it says in the log that it has them, and puts the one that is
next forward once its section is free.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import heapq
import logging
import random
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from dramatiq.common import q_name
from dramatiq.logging import get_logger

from dramatiq_joblog.database.connection import Connection
from dramatiq_joblog.database.limited_log import LimitedLog
from dramatiq_joblog.errors import DatabaseAwayError
from dramatiq_joblog.locking.locks import Usage
from dramatiq_joblog.locking.needs import RATE, SECTION
from dramatiq_joblog.locking.waiters import ATTEND_EVERY
from dramatiq_joblog.payload.sanitize import fold_jid

from .deliveries import moving
from .messages import DELAY_SUFFIX, need_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dramatiq import Broker

    from dramatiq_joblog.locking.needs import Need
    from dramatiq_joblog.recording.log import Written

#: Milliseconds between two looks whether the sections of what waits here are free.
TICK = 50
#: Milliseconds between two looks at what waits here.
SCAN_EVERY = 200
#: A look takes at most this part of a core: the pause after it is so many times as long.
REST = 20
#: Milliseconds until a broker that did not take a message is tried again.
AGAIN = 1_000
#: As many keys, or jobs, are asked for at once at most.
MAX_ASKED = 200
#: As many keys whose limit a callable says are tried at once at most.
MAX_TRIED = 20
#: As many waiters of a key are put forward at once at most.
MAX_FORWARD = 200
#: Milliseconds until a rate is looked at again that is used up for longer: its limit may be set.
RATE_EVERY = 1_000


@dataclasses.dataclass(frozen=True)
class _Held:
    """A message that waits in this process."""

    consumer: Any
    #: As it lies in the consumer's queue.
    item: Any
    #: What it waits for, by the limit of the running code.
    need: Need


class Waker(threading.Thread):
    """Looks after the messages that wait in this process.

    Parameters:
      joblog: The log.
      broker: Where they are put forward.
    """

    def __init__(self, joblog: Written, broker: Broker) -> None:
        super().__init__(name="dramatiq_joblog waker", daemon=True)
        self._joblog = joblog
        self._broker = broker
        self._logger = get_logger(__name__, type(self))
        self._limited = LimitedLog(self._logger)
        self._wanted = threading.Event()
        self._stopped = False
        #: The host's threads that take messages from queues, delay queues among them.
        self._consumers: list[Any] = []
        #: What waits here: by key, and by jid.
        self._waiting: dict[str, dict[str, _Held]] = {}
        self._scan_due = self._attend_due = self._try_due = 0.0
        #: What callables have said for the limits of keys.
        self._heard: dict[str, int] = {}
        #: When the rate of a key is looked at again; monotonic, in seconds.
        self._rates_due: dict[str, float] = {}
        #: Queues in which a message has just been put that this process can take at once.
        self._filled: set[str] = set()

    def attach(self, consumer: Any) -> None:
        """Look after what a thread of the host's takes from its queue."""
        self._consumers.append(consumer)

    def detach(self, consumer: Any) -> None:
        """Leave what waits in a thread of the host's to the broker."""
        if consumer in self._consumers:
            self._consumers.remove(consumer)

    def look(self, keys: Iterable[str]) -> None:
        """Look now, if somebody waits here for one of *keys*, which may be free."""
        if not self._waiting.keys().isdisjoint(keys):
            self._wanted.set()

    def heard(self, need: Need) -> None:
        """Take what a callable has said for a limit: nobody asks it for those that wait."""
        if need.key in self._waiting:
            self._heard[need.key] = need.limit
            self._rates_due.pop(need.key, None)

    def filled(self, queue_name: str) -> None:
        """Take at once what was put in a queue, if this process does that."""
        self._filled.add(queue_name)
        self._wanted.set()

    def stop(self) -> None:
        """End."""
        self._stopped = True
        self._wanted.set()
        if self.is_alive():
            self.join(timeout=10.0)

    def run(self) -> None:
        """Look whenever something may have changed, and now and then."""
        connection = Connection(self._joblog.database)
        pause = TICK / 1000
        while not self._stopped:
            self._wanted.wait(pause)
            self._wanted.clear()
            # Of this thread alone: what others take meanwhile is no reason to look less often.
            began = time.thread_time()
            try:
                self._take_filled()
                self._scan()
                self._attend(connection)
                self._wake(connection)
                pause = max(TICK / 1000, REST * (time.thread_time() - began))
            except DatabaseAwayError as e:
                self._logger.debug("Nobody is brought forward: %s", e)
                pause = AGAIN / 1000
            except Exception:  # noqa: BLE001 - it is logged
                # They come by themselves, only later.
                self._limited.log(
                    logging.WARNING,
                    "promotion",
                    "A waiting job was not brought forward.",
                    exc_info=True,
                )
                pause = AGAIN / 1000
        connection.close()

    def _scan(self) -> None:
        """See what waits here."""
        if time.monotonic() < self._scan_due:
            return
        began = time.thread_time()
        waiting: dict[str, dict[str, _Held]] = {}
        for consumer in list(self._consumers):
            if consumer.queue_name.endswith(DELAY_SUFFIX):
                for item in _items_of(consumer.delay_queue):
                    message = _message_of(item)
                    need = need_in(self._broker, message)
                    if need is not None:
                        mine = waiting.setdefault(need.key, {})
                        mine[fold_jid(message.message_id)] = _Held(consumer, item, need)
        self._waiting = waiting
        for known in (self._heard, self._rates_due):
            for key in known.keys() - waiting.keys():
                known.pop(key, None)
        rest = REST * (time.thread_time() - began)
        self._scan_due = time.monotonic() + max(SCAN_EVERY / 1000, rest)

    def _attend(self, connection: Connection) -> None:
        """Say that this process has the messages of those that wait here."""
        now = time.monotonic()
        if now < self._attend_due or not self._waiting:
            return
        held = {jid: each for mine in self._waiting.values() for jid, each in mine.items()}
        waiters = self._joblog.transitions.locks.waiters
        for jids in _parts(sorted(held)):
            connection.ask(functools.partial(waiters.attend, jids))
            for jid in connection.ask(functools.partial(waiters.settled, jids)):
                # Its start tells what becomes of it.
                self._put_forward(held[jid])
        self._attend_due = now + ATTEND_EVERY / 1000

    def _wake(self, connection: Connection) -> None:
        """Put those forward that may come in now."""
        if not self._waiting:
            # Others may want the connection meanwhile.
            connection.close()
        locks = self._joblog.transitions.locks
        for keys in _parts(list(self._waiting)):
            used = connection.ask(functools.partial(locks.usage, keys))
            for key in keys:
                free = self._free(connection, key, used.get(key, Usage()))
                if max(free.values()) > 0:
                    self._put_next(connection, key, free)
                usage = used.get(key)
                if usage is not None and usage.kept and free[SECTION] + usage.held > 0:
                    self._put_owners(connection, key, usage.kept)
        if time.monotonic() >= self._try_due:
            self._try_due = time.monotonic() + ATTEND_EVERY / 1000
            asked = [
                k
                for k, mine in self._waiting.items()
                if any(h.need.is_asked for h in mine.values())
            ]
            for key in random.sample(asked, min(len(asked), MAX_TRIED)):
                # Its callable may say more by now: the next one's start asks it.
                self._put_next(connection, key, {SECTION: 1, RATE: 1})

    def _free(self, connection: Connection, key: str, used: Usage) -> dict[str, int]:
        """Return how many of a key may come in now, by the kind of what they wait for."""
        free = {SECTION: 0, RATE: 0}
        needs = {held.need for held in self._waiting[key].values()}
        for need in needs:
            limit = self._heard.get(key, need.limit) if need.is_asked else need.limit
            limit = limit if used.limit_set is None else used.limit_set
            if need.kind == SECTION:
                free[SECTION] = max(free[SECTION], limit - used.held)
            elif time.monotonic() >= self._rates_due.get(key, 0.0):
                ask = functools.partial(
                    self._joblog.transitions.locks.rates.room,
                    dataclasses.replace(need, limit=limit),
                )
                room = connection.ask(ask)
                free[RATE] = max(free[RATE], room.free)
                if not room.free:
                    due = RATE_EVERY if room.due is None else min(room.due, RATE_EVERY)
                    self._rates_due[key] = time.monotonic() + due / 1000
        return free

    def _put_owners(self, connection: Connection, key: str, kept: int) -> None:
        """Put those forward for whom a slot is kept, and that a pause had kept out."""
        mine, locks = self._waiting[key], self._joblog.transitions.locks
        for job in connection.ask(functools.partial(locks.waiters.next_of, key, kept)):
            owns = functools.partial(locks.owns, key, job.jid)
            if job.jid in mine and job.section == key and connection.ask(owns):
                self._put_forward(mine[job.jid])

    def _put_next(self, connection: Connection, key: str, free: dict[str, int]) -> None:
        """Put those forward that are next in the line of a key, and whose messages are here."""
        mine = self._waiting[key]
        most = min(max(free.values()), MAX_FORWARD)
        waiters = self._joblog.transitions.locks.waiters
        line = connection.ask(functools.partial(waiters.next_of, key, most))
        for place, job in enumerate(line):
            held = mine.get(job.jid)
            # One that waits for another key comes in by that; this one is kept for it.
            if held is not None and job.section == key and place < free[held.need.kind]:
                self._put_forward(held)

    def _put_forward(self, held: _Held) -> None:
        """Do what the host does with a message whose time has come."""
        consumer, item = held.consumer, held.item
        queue = consumer.delay_queue
        if not _take_out(queue, item):
            return
        held_back = _message_of(item)
        message = held_back.copy(queue_name=q_name(held_back.queue_name))
        message.options.pop("eta", None)
        try:
            with moving():
                self._broker.enqueue(message)
        except BaseException:
            with contextlib.suppress(ValueError):
                queue.task_done()
            queue.put(item)
            raise
        consumer.post_process_message(held_back)
        queue.task_done()
        self._take(message.queue_name)

    def _take_filled(self) -> None:
        while self._filled:
            self._take(self._filled.pop())

    def _take(self, queue_name: str) -> None:
        """Take a message from a queue that the host's idle thread looks at only now and then."""
        consumer = next((c for c in self._consumers if c.queue_name == queue_name), None)
        if consumer is None or consumer.paused or not _is_polled(self._broker):
            return
        if not consumer.work_queue.empty():
            # There is no thread at leisure to run it.
            return
        taker = self._broker.consume(queue_name, prefetch=1, timeout=1)
        message = next(taker, None)
        if message is not None:
            consumer.handle_message(message)


def _is_polled(broker: Any) -> bool:
    """Tell whether a broker's consumers sleep between two looks, and nothing wakes them."""
    redis = sys.modules.get("dramatiq.brokers.redis")
    return redis is not None and isinstance(broker, redis.RedisBroker)


def _items_of(queue: Any) -> list[Any]:
    """Return what lies in a priority queue."""
    with _mutex_of(queue):
        return list(queue.queue)


def _take_out(queue: Any, item: Any) -> bool:
    """Take an item out of a priority queue, wherever it is; return whether it was there."""
    with _mutex_of(queue):
        for index, other in enumerate(queue.queue):
            if other is item:
                del queue.queue[index]
                heapq.heapify(queue.queue)
                return True
    return False


def _mutex_of(queue: Any) -> Any:
    # Those of gevent have none: there nobody comes in between.
    return getattr(queue, "mutex", None) or contextlib.nullcontext()


def _message_of(item: Any) -> Any:
    # A tuple before dramatiq 2.
    return item[-1] if isinstance(item, tuple) else item.message


def _parts(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[n : n + MAX_ASKED] for n in range(0, len(values), MAX_ASKED)]
