"""Promotes the job that has waited longest once its section is free.

A waiting message is in the memory of the worker process that fetched it.  Each process manages its
own: it records in the log that it has them, and promotes the next one once the section is free.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import math
import random
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from dramatiq.common import q_name
from dramatiq.logging import get_logger

from dramatiq_joblog.database.connection import Connection
from dramatiq_joblog.database.limited_log import LimitedLog
from dramatiq_joblog.errors import DatabaseAwayError
from dramatiq_joblog.locking.holders import Usage
from dramatiq_joblog.locking.needs import RATE, SECTION
from dramatiq_joblog.locking.waiters import ATTEND_EVERY

from .at_hand import AtHand
from .deliveries import moving
from .held import HeldMessages, is_polled, message_of
from .pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dramatiq import Broker, Message
    from dramatiq.broker import MessageProxy

    from dramatiq_joblog.locking.needs import Need
    from dramatiq_joblog.recording.inbox import Receipt
    from dramatiq_joblog.recording.log import Log, Written

    from .held import Held

#: Milliseconds between two scans for waiting messages: regular, and minimum after a new one.
SCAN_EVERY, SCAN_AGAIN = 1_000, 50
#: Milliseconds for each waiting message, and in total at most, until all are parsed again, because
#: the limits of their actors may have changed.
READ_EACH, READ_EVERY = 60, 30_000
#: A poll that promotes nothing is followed by a pause this many times as long, to limit CPU use.
REST = 20
#: The same after a key has changed, because the next handover is soon.
REST_MOVING = 5
#: Milliseconds until enqueueing is retried after an error of the broker.
AGAIN = 1_000
#: The maximum number of keys, or jobs, in one query.
MAX_ASKED = 200
#: The maximum number of keys with callable limits that are tried at once.
MAX_TRIED = 20
#: With more keys than this, or a higher limit, the process does not check whose waiter is next.
MAX_NEAR = 8
#: The maximum number of a key's waiters that are promoted at once.
MAX_FORWARD = 200
#: Maximum milliseconds until an exhausted rate is checked again: its limit may be changed.
RATE_EVERY = 1_000


class Waker(threading.Thread):
    """Manages the messages that wait in this process.

    Parameters:
      joblog: The log.
      broker: The broker that they are enqueued on.
    """

    def __init__(self, joblog: Log[Written], broker: Broker) -> None:
        super().__init__(name="dramatiq_joblog waker", daemon=True)
        self._joblog = joblog
        self._broker = broker
        self._logger = get_logger(__name__, type(self))
        self._limited = LimitedLog(self._logger)
        self._wanted = threading.Event()
        self._stopped = False
        #: The messages that wait here.
        self._held = HeldMessages(broker)
        self._at_hand = AtHand(self._held)
        self._pace = Pace()
        self._scan_due = self._attend_due = self._read_due = self._try_due = 0.0
        #: Waiters not yet recorded as held by this process, and the seconds between two batches.
        self._unattended: list[str] = []
        self._attend_every = ATTEND_EVERY / 1000
        #: Whether there are new messages, when they came, and the earliest time of the next scan.
        self._came = False
        self._came_at = self._scan_again = 0.0
        #: The last results of callable limits, by key and actor.
        self._heard: dict[tuple[str, str | None], int] = {}
        #: When the rate of a key is checked again, in monotonic seconds.
        self._rates_due: dict[str, float] = {}
        #: Jobs that are joining a wait queue, and since when; in monotonic seconds.
        self._lining: deque[tuple[str, Receipt, float]] = deque()
        #: Whether the last poll promoted any message.
        self._moved = False
        #: The number of messages just enqueued, by queue, that this process can fetch at once.
        self._filled: Counter[str] = Counter()

    def attach(self, consumer: Any) -> None:
        """Manage the messages of one of Dramatiq's consumers."""
        self._held.attach(consumer)

    def detach(self, consumer: Any) -> None:
        """Stop managing the messages of one of Dramatiq's consumers."""
        self._held.detach(consumer)

    def look(self, keys: Iterable[str]) -> None:
        """Poll *keys*, which may be free, at once if a message here waits for one of them."""
        if self.waits_for(keys):
            self._pace.want(keys)
            self._wanted.set()

    def waits_for(self, keys: Iterable[str]) -> bool:
        """Return whether a message here waits for one of *keys*."""
        return self._held.waits_for(keys)

    def heard(self, need: Need, actor: str) -> None:
        """Store the result of an actor's callable limit, which is not called for waiters."""
        if self._held.waits_for([need.key]):
            self._heard[need.key, actor] = need.limit
            self._rates_due.pop(need.key, None)
            self._pace.want([need.key])

    def expect(self) -> None:
        """Scan soon, because a message is about to be added."""
        self._came_at = time.monotonic()
        if not self._came:
            self._came = True
            self._wanted.set()

    def hold(self, message: Message[Any], delay: int) -> bool:
        """Hold an unacknowledged message in this process for at most *delay* milliseconds.

        Returns:
          False if there is no room; the caller must enqueue it with that delay.
        """
        return self._at_hand.hold(message, delay)

    def has_line(self, need: Need) -> bool:
        """Return whether at least as many jobs wait here for a key as its limit."""
        return len(self._held.of(need.key)) >= max(need.limit, 1)

    def lines_up(self, jid: str, receipt: Receipt) -> None:
        """Check later whether a job held here has joined its wait queue."""
        self._lining.append((jid, receipt, time.monotonic()))

    def began(self, message: MessageProxy) -> None:
        """Record that a thread begins to process a message."""
        if keys := self._at_hand.began(message):
            self.look(keys)

    def filled(self, queue_name: str) -> None:
        """Fetch at once what was enqueued on a queue, if this process consumes it by polling."""
        self._filled[queue_name] += 1
        self._wanted.set()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped = True
        self._wanted.set()
        if self.is_alive():
            self.join(timeout=10.0)

    def run(self) -> None:
        """Poll when something may have changed, and regularly."""
        connection = Connection(self._joblog.core.database)
        pause = 0.0
        while not self._stopped:
            self._wanted.wait(pause)
            self._wanted.clear()
            try:
                self._take_filled()
                self._pass_on()
                self._scan()
                self._look_after_line()
                self._attend(connection)
                rest = self._wake(connection)
                due = min(self._next_scan, self._pace.next_due, self._at_hand.next_due)
                if self._held.keys:
                    due = min(due, self._attend_due)
                pause = max(rest, due - time.monotonic())
            except DatabaseAwayError as e:
                self._logger.debug("Waiting jobs cannot be promoted: %s", e)
                pause = AGAIN / 1000
            except Exception:  # noqa: BLE001 - it is logged
                # Without promotion, the messages come back later by themselves.
                self._limited.log(
                    logging.WARNING,
                    "promotion",
                    "A waiting job could not be promoted.",
                    exc_info=True,
                )
                pause = AGAIN / 1000
        connection.close()

    @property
    def _next_scan(self) -> float:
        """When to scan again, in monotonic seconds."""
        return self._scan_again if self._came else self._scan_due

    def _scan(self) -> None:
        """Scan for waiting messages."""
        if time.monotonic() < self._next_scan:
            return
        began = time.thread_time()
        # A new message may not be in the consumer's queue yet.
        self._came = self._came_at > time.monotonic() - SCAN_AGAIN / 1000
        self._held.look()
        for key in self._rates_due.keys() - self._held.keys:
            self._rates_due.pop(key, None)
        for key, actor in list(self._heard):
            if key not in self._held.keys:
                self._heard.pop((key, actor), None)
        now, rest = time.monotonic(), REST * (time.thread_time() - began)
        self._scan_due = now + max(SCAN_EVERY / 1000, rest)
        self._scan_again = now + max(SCAN_AGAIN / 1000, rest)

    def _look_after_line(self) -> None:
        """Promote jobs that failed to join their wait queue: their next start reports why."""
        left = []
        while self._lining and self._lining[0][1].is_done:
            jid, receipt, since = self._lining.popleft()
            if receipt.error is None and receipt.answer.found is not None:
                continue
            held = self._held.all().get(jid)
            if held is not None:
                self._put_forward([held], self._put)
            elif since > time.monotonic() - ATTEND_EVERY / 1000:
                # The scan has not found it yet.
                left.append((jid, receipt, since))
        self._lining.extend(left)

    def _attend(self, connection: Connection) -> None:
        """Record in batches that this process holds the messages of the waiters here.

        There may be thousands, and promotions must not wait for all of them.
        """
        now = time.monotonic()
        if now < self._attend_due:
            return
        held = self._held.all()
        if not self._unattended:
            self._unattended = sorted(held)
            parts = max(1, math.ceil(len(held) / MAX_ASKED))
            self._attend_every = ATTEND_EVERY / 1000 / parts
            if now >= self._read_due:
                self._read_due = now + min(READ_EACH * len(held), READ_EVERY) / 1000
                self._held.look_anew()
        self._attend_due = now + self._attend_every
        jids = [jid for jid in self._unattended[:MAX_ASKED] if jid in held]
        self._unattended = self._unattended[MAX_ASKED:]
        if not jids:
            return
        waiters = self._joblog.core.locks.waiters
        connection.ask(functools.partial(waiters.attend, jids))
        waited = connection.ask(functools.partial(waiters.unsettled, jids))
        # Their next start decides what happens.  Those whose waiting time is over come back by
        # themselves, unless the clock of this host or of the one that put them back is wrong.
        self._put_forward(
            [
                held[jid]
                for jid in jids
                if jid not in waited or _is_over(held[jid].need, waited[jid])
            ],
            self._put,
        )

    def _wake(self, connection: Connection) -> float:
        """Promote the waiters that may run now; return the seconds to pause afterwards."""
        # The CPU time of this thread alone, so that a busy process does not poll less often.
        began, self._moved = time.thread_time(), False
        self._look_at_all(connection)
        if self._moved:
            return 0.0
        rest = REST_MOVING if self._pace.is_moving else REST
        return rest * (time.thread_time() - began)

    def _look_at_all(self, connection: Connection) -> None:
        """Poll the keys that are due."""
        if not self._held.keys:
            # Return the connection meanwhile.
            connection.close()
        for keys in _parts(self._pace.due(self._held.keys)):
            self._look_at(connection, keys)
        if time.monotonic() >= self._try_due:
            self._try_due = time.monotonic() + ATTEND_EVERY / 1000
            held = self._held
            asked = [k for k in held.keys if any(need.is_asked for need in held.needs(k))]
            for key in random.sample(asked, min(len(asked), MAX_TRIED)):
                self._try_callables(connection, key)

    def _try_callables(self, connection: Connection, key: str) -> None:
        """Promote the next waiter of each actor: its callable limit may return more by now."""
        mine, waiters = self._held.of(key), self._joblog.core.locks.waiters
        line = connection.ask(functools.partial(waiters.line, key, MAX_FORWARD))
        asked = [mine[jid] for jid in line if jid in mine and mine[jid].need.is_asked]
        next_of = {held.need.asked_by: held for held in reversed(asked)}
        self._put_forward([*next_of.values()], self._put)

    def _look_at(self, connection: Connection, keys: Sequence[str]) -> None:
        """Promote the waiters of *keys* that may run now, and plan the next polls."""
        locks = self._joblog.core.locks
        used = connection.ask(functools.partial(locks.holders.usage, keys))
        for key in keys:
            usage = used.get(key, Usage())
            free = self._free(connection, key, usage)
            if max(free.values(), default=0) > 0:
                self._put_next(connection, key, free)
            if usage.kept and self._lets_in(key, usage):
                self._put_owners(connection, key)
            if self._pace.asks_who_is_next(key, usage):
                self._pace.is_near(key, self._is_near(connection, key))
            self._pace.plan(key, self._rate_due_in(key))

    def _is_near(self, connection: Connection, key: str) -> bool:
        """Return whether one of a section's next waiters is here."""
        needs = [need for need in self._held.needs(key) if need.kind == SECTION]
        if not needs:
            return False
        most = max(self._limit(need, Usage()) for need in needs)
        if most > MAX_NEAR or len(self._held.keys) > MAX_NEAR:
            return True
        waiters, mine = self._joblog.core.locks.waiters, self._held.of(key)
        line = connection.ask(functools.partial(waiters.line, key, max(1, most)))
        return any(jid in mine for jid in line)

    def _rate_due_in(self, key: str) -> float | None:
        """Return the milliseconds until a rate with waiters here allows more; None without such."""
        if all(need.kind != RATE for need in self._held.needs(key)):
            return None
        return 1000 * (self._rates_due.get(key, 0.0) - time.monotonic())

    def _limit(self, need: Need, used: Usage) -> int:
        """Return the limit of a need, as far as it is known here."""
        limit = self._heard.get((need.key, need.asked_by), need.limit)
        return limit if used.limit_set is None else used.limit_set

    def _free(self, connection: Connection, key: str, used: Usage) -> dict[Need, int]:
        """Return the number of free slots of a key, by need: actors may have different limits."""
        free: dict[Need, int] = {}
        is_due, dues = time.monotonic() >= self._rates_due.get(key, 0.0), []
        for need in self._held.needs(key):
            limit = self._limit(need, used)
            if need.kind == SECTION:
                free[need] = limit - used.held
            elif is_due:
                limited = dataclasses.replace(need, limit=limit)
                room = connection.ask(
                    functools.partial(self._joblog.core.locks.rates.room, limited)
                )
                free[need] = room.free
                if not room.free:
                    dues.append(RATE_EVERY if room.due is None else min(room.due, RATE_EVERY))
        if dues and max(free.values()) < 1:
            self._rates_due[key] = time.monotonic() + min(dues) / 1000
        return free

    def _lets_in(self, key: str, used: Usage) -> bool:
        """Return whether a key is not paused for the jobs that wait here."""
        sections = [need for need in self._held.needs(key) if need.kind == SECTION]
        return any(self._limit(need, used) > 0 for need in sections)

    def _put_owners(self, connection: Connection, key: str) -> None:
        """Promote waiters with a reserved slot that a pause had blocked."""
        mine, locks = self._held.of(key), self._joblog.core.locks
        owners = connection.ask(functools.partial(locks.holders.kept_for, key))
        self._put_forward([mine[jid] for jid in owners if jid in mine], self._put)

    def _put_next(self, connection: Connection, key: str, free: Mapping[Need, int]) -> None:
        """Promote the next waiters of a key whose messages are here."""
        mine = self._held.of(key)
        most = min(max(free.values()), MAX_FORWARD)
        waiters = self._joblog.core.locks.waiters
        line = connection.ask(functools.partial(waiters.next_of, key, most))
        turns = []
        for place, (jid, is_own) in enumerate(line):
            held = mine.get(jid)
            # A waiter for another key is promoted by that key; this one is reserved for it.
            if held is not None and is_own and place < free.get(held.need, 0):
                turns.append(held)
        handed, moved = self._at_hand.split(key, turns)
        self._put_forward(handed, self._at_hand.hand)
        self._put_forward(moved, self._move)

    def _put_forward(self, some: Sequence[Held], put: Callable[[Held], None]) -> None:
        """Remove messages from their delay queues, and *put* each where it is processed."""
        for consumer in {id(held.consumer): held.consumer for held in some}.values():
            left = self._held.take_out([held for held in some if held.consumer is consumer])
            self._moved = self._moved or bool(left)
            try:
                while left:
                    put(left[0])
                    left.pop(0)
            finally:
                self._held.put_back(left)
        self._take_filled()

    def _move(self, held: Held) -> None:
        """Do what Dramatiq does with a message that is due."""
        queue_name = self._enqueue(held.consumer, held.message)
        held.consumer.delay_queue.task_done()
        self._filled[queue_name] += 1

    def _enqueue(self, consumer: Any, held_back: Any) -> str:
        """Enqueue a delayed message on its actor's queue; return the queue's name."""
        message = held_back.copy(queue_name=q_name(held_back.queue_name))
        message.options.pop("eta", None)
        with moving():
            self._broker.enqueue(message)
        consumer.post_process_message(held_back)
        return str(message.queue_name)

    def _pass_on(self) -> None:
        """Enqueue messages that no thread here has taken."""
        late = self._at_hand.take_back()
        try:
            while late:
                consumer, item = late[0]
                self._enqueue(consumer, message_of(item))
                consumer.work_queue.task_done()
                late.pop(0)
        finally:
            for consumer, item in late:
                consumer.work_queue.put(item)
                consumer.work_queue.task_done()

    def _put(self, held: Held) -> None:
        """Hand over or enqueue a message regardless of free slots."""
        if held.is_at_hand:
            self._at_hand.hand(held)
        else:
            self._move(held)

    def _take_filled(self) -> None:
        """Fetch what was just enqueued, as far as this process has idle threads."""
        if self._filled:
            # Messages that were put back must be scanned soon.
            self._came = True
        while self._filled:
            self._take(*self._filled.popitem())

    def _take(self, queue_name: str, count: int) -> None:
        """Fetch messages from a queue that Dramatiq's idle consumer polls only seldom."""
        consumer = self._held.consumer_of(queue_name)
        if consumer is None or consumer.paused or not is_polled(self._broker):
            return
        if not consumer.work_queue.empty():
            # No thread is idle.
            return
        # Dramatiq prefetches twice as many messages as it has threads.
        most = max(1, min(count, consumer.prefetch // 2))
        taker = self._broker.consume(queue_name, prefetch=most, timeout=1)
        for message in itertools.islice(taker, most):
            if message is None:
                break
            consumer.handle_message(message)


def _is_over(need: Need, waited: int) -> bool:
    """Return whether a job's waiting time is over."""
    return need.on_conflict == "wait" and need.wait_for is not None and waited > need.wait_for


def _parts(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[n : n + MAX_ASKED] for n in range(0, len(values), MAX_ASKED)]
