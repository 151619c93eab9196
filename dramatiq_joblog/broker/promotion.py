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
    jid: str
    #: What it waits for, by the limit of the running code.
    need: Need


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What was found of an item of a delay queue: to read a message takes its time."""

    item: Any
    #: None for one that waits for no key.
    held: _Held | None


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
        #: What these wait for, alike.
        self._needs: dict[str, set[Need]] = {}
        #: What lies in the delay queues, by the identity of each item.
        self._seen: dict[int, _Seen] = {}
        self._scan_due = self._attend_due = self._try_due = 0.0
        #: What callables have said for the limits of keys.
        self._heard: dict[str, int] = {}
        #: When the rate of a key is looked at again; monotonic, in seconds.
        self._rates_due: dict[str, float] = {}
        #: What it has cost to put messages forward since the last pause, in seconds of this thread.
        self._moving = 0.0
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
        if self.waits_for(keys):
            self._wanted.set()

    def waits_for(self, keys: Iterable[str]) -> bool:
        """Return whether somebody waits here for one of *keys*."""
        return not self._waiting.keys().isdisjoint(keys)

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
            began, self._moving = time.thread_time(), 0.0
            try:
                self._take_filled()
                self._scan()
                self._attend(connection)
                self._wake(connection)
                looking = time.thread_time() - began - self._moving
                pause = max(TICK / 1000, REST * looking)
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
        needs: dict[str, set[Need]] = {}
        seen: dict[int, _Seen] = {}
        for consumer in list(self._consumers):
            if consumer.queue_name.endswith(DELAY_SUFFIX):
                for item in _items_of(consumer.delay_queue):
                    what = self._seen.get(id(item))
                    if what is None or what.item is not item:
                        what = self._read(consumer, item)
                    seen[id(item)] = what
                    if (held := what.held) is not None:
                        waiting.setdefault(held.need.key, {})[held.jid] = held
                        needs.setdefault(held.need.key, set()).add(held.need)
        self._waiting, self._needs, self._seen = waiting, needs, seen
        for known in (self._heard, self._rates_due):
            for key in known.keys() - waiting.keys():
                known.pop(key, None)
        rest = REST * (time.thread_time() - began)
        self._scan_due = time.monotonic() + max(SCAN_EVERY / 1000, rest)

    def _read(self, consumer: Any, item: Any) -> _Seen:
        message = _message_of(item)
        need = need_in(self._broker, message)
        if need is None:
            return _Seen(item, None)
        return _Seen(item, _Held(consumer, item, fold_jid(message.message_id), need))

    def _attend(self, connection: Connection) -> None:
        """Say that this process has the messages of those that wait here."""
        now = time.monotonic()
        if now < self._attend_due or not self._waiting:
            return
        held = {jid: each for mine in self._waiting.values() for jid, each in mine.items()}
        waiters = self._joblog.transitions.locks.waiters
        for jids in _parts(sorted(held)):
            connection.ask(functools.partial(waiters.attend, jids))
            settled = connection.ask(functools.partial(waiters.settled, jids))
            # Their starts say what becomes of them.
            self._put_forward([held[jid] for jid in settled])
        self._attend_due = now + ATTEND_EVERY / 1000
        # Read them anew: what they wait for is as the running code says.
        self._seen = {}

    def _wake(self, connection: Connection) -> None:
        """Put those forward that may come in now."""
        if not self._waiting:
            # Others may want the connection meanwhile.
            connection.close()
        locks = self._joblog.transitions.locks
        for keys in _parts([key for key, mine in self._waiting.items() if mine]):
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
            asked = [k for k, needs in self._needs.items() if any(need.is_asked for need in needs)]
            for key in random.sample(asked, min(len(asked), MAX_TRIED)):
                # Its callable may say more by now: the next one's start asks it.
                self._put_next(connection, key, {SECTION: 1, RATE: 1})

    def _free(self, connection: Connection, key: str, used: Usage) -> dict[str, int]:
        """Return how many of a key may come in now, by the kind of what they wait for."""
        free = {SECTION: 0, RATE: 0}
        for need in self._needs[key]:
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
        for jid, is_own in connection.ask(functools.partial(locks.waiters.next_of, key, kept)):
            owns = functools.partial(locks.owns, key, jid)
            if jid in mine and is_own and connection.ask(owns):
                self._put_forward([mine[jid]])

    def _put_next(self, connection: Connection, key: str, free: dict[str, int]) -> None:
        """Put those forward that are next in the line of a key, and whose messages are here."""
        mine = self._waiting[key]
        most = min(max(free.values()), MAX_FORWARD)
        waiters = self._joblog.transitions.locks.waiters
        line = connection.ask(functools.partial(waiters.next_of, key, most))
        turns = []
        for place, (jid, is_own) in enumerate(line):
            held = mine.get(jid)
            # One that waits for another key comes in by that; this one is kept for it.
            if held is not None and is_own and place < free[held.need.kind]:
                turns.append(held)
        self._put_forward(turns)

    def _put_forward(self, some: Sequence[_Held]) -> None:
        """Do what the host does with messages whose time has come."""
        began = time.thread_time()
        for held in some:
            # Whatever becomes of it: if it stays here, it is seen again.
            self._waiting[held.need.key].pop(held.jid, None)
        consumers = {id(held.consumer): held.consumer for held in some}
        for consumer in consumers.values():
            mine = [held for held in some if held.consumer is consumer]
            queue = consumer.delay_queue
            out = _take_out(queue, [held.item for held in mine])
            left = [held for held in mine if id(held.item) in out]
            try:
                while left:
                    self._move(left[0])
                    left.pop(0)
            finally:
                for held in left:
                    with contextlib.suppress(ValueError):
                        queue.task_done()
                    queue.put(held.item)
        self._moving += time.thread_time() - began

    def _move(self, held: _Held) -> None:
        """Put a message that was taken out of its delay queue into the queue of its actor."""
        held_back = _message_of(held.item)
        message = held_back.copy(queue_name=q_name(held_back.queue_name))
        message.options.pop("eta", None)
        with moving():
            self._broker.enqueue(message)
        held.consumer.post_process_message(held_back)
        held.consumer.delay_queue.task_done()
        self._take(message.queue_name)

    def _take_filled(self) -> None:
        if self._filled:
            # What was put back is looked after at once.
            self._scan_due = 0.0
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
    """Return whether a broker's consumers sleep between two looks, and nothing wakes them."""
    redis = sys.modules.get("dramatiq.brokers.redis")
    return redis is not None and isinstance(broker, redis.RedisBroker)


def _items_of(queue: Any) -> list[Any]:
    """Return what lies in a priority queue."""
    with _mutex_of(queue):
        return list(queue.queue)


def _take_out(queue: Any, items: Sequence[Any]) -> set[int]:
    """Take items out of a priority queue, wherever they are; return the identities of these."""
    wanted = {id(item) for item in items}
    with _mutex_of(queue):
        out = {id(other) for other in queue.queue} & wanted
        if out:
            queue.queue[:] = [other for other in queue.queue if id(other) not in out]
            heapq.heapify(queue.queue)
    return out


def _mutex_of(queue: Any) -> Any:
    # Those of gevent have none: there nobody comes in between.
    return getattr(queue, "mutex", None) or contextlib.nullcontext()


def _message_of(item: Any) -> Any:
    # A tuple before dramatiq 2.
    return item[-1] if isinstance(item, tuple) else item.message


def _parts(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[n : n + MAX_ASKED] for n in range(0, len(values), MAX_ASKED)]
