"""Brings the job that has waited longest forward once its section is free.

A message that waits lies in the memory of the worker process that took it from the delay queue.
Each process looks after its own: it says in the log that it has them, and puts the one that is
next forward once its section is free.
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
from dramatiq_joblog.locking.locks import Usage
from dramatiq_joblog.locking.needs import RATE, SECTION
from dramatiq_joblog.locking.waiters import ATTEND_EVERY

from .at_hand import AtHand
from .deliveries import moving
from .held import HeldMessages, is_polled, message_of
from .pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dramatiq import Broker, Message
    from dramatiq.broker import MessageProxy

    from dramatiq_joblog.locking.needs import Need
    from dramatiq_joblog.recording.inbox import Receipt
    from dramatiq_joblog.recording.log import Log, Written

    from .held import Held

#: Milliseconds between two looks at what waits here, unless something has come; and at least.
SCAN_EVERY, SCAN_AGAIN = 1_000, 50
#: Milliseconds for each waiting message until all are read again, as the limits of their actors
#: may have changed; and at most.
READ_EACH, READ_EVERY = 60, 30_000
#: A look in vain takes at most this part of a core: the pause after it is so many times as long.
REST = 20
#: As long after a key has moved: the next handover is soon.
REST_MOVING = 5
#: Milliseconds until a broker that did not take a message is tried again.
AGAIN = 1_000
#: As many keys, or jobs, are asked for at once at most.
MAX_ASKED = 200
#: As many keys whose limit a callable says are tried at once at most.
MAX_TRIED = 20
#: If this process waits for more keys than that, or one lets more in, it is not asked who is next.
MAX_NEAR = 8
#: As many waiters of a key are put forward at once at most.
MAX_FORWARD = 200
#: Milliseconds until a rate is looked at again that is used up for longer: its limit may be set.
RATE_EVERY = 1_000


class Waker(threading.Thread):
    """Looks after the messages that wait in this process.

    Parameters:
      joblog: The log.
      broker: Where they are put forward.
    """

    def __init__(self, joblog: Log[Written], broker: Broker) -> None:
        super().__init__(name="dramatiq_joblog waker", daemon=True)
        self._joblog = joblog
        self._broker = broker
        self._logger = get_logger(__name__, type(self))
        self._limited = LimitedLog(self._logger)
        self._wanted = threading.Event()
        self._stopped = False
        #: What waits here.
        self._held = HeldMessages(broker)
        self._at_hand = AtHand(self._held)
        self._pace = Pace()
        self._scan_due = self._attend_due = self._read_due = self._try_due = 0.0
        #: Those of whom it is not said yet that they are here, and the seconds between two parts.
        self._unattended: list[str] = []
        self._attend_every = ATTEND_EVERY / 1000
        #: Whether something has come that was not looked at, when that was, and when the next look
        #: may be.
        self._came = False
        self._came_at = self._scan_again = 0.0
        #: What callables have said for the limits of keys.
        self._heard: dict[str, int] = {}
        #: When the rate of a key is looked at again; monotonic, in seconds.
        self._rates_due: dict[str, float] = {}
        #: Jobs that are to stand in line, and since when that is not known; monotonic, in seconds.
        self._lining: deque[tuple[str, Receipt, float]] = deque()
        #: Whether messages were put forward by the last look: it was not in vain.
        self._moved = False
        #: Queues in which messages have just been put that this process can take at once, and how
        #: many.
        self._filled: Counter[str] = Counter()

    def attach(self, consumer: Any) -> None:
        """Look after what a thread of the host's takes from its queue."""
        self._held.attach(consumer)

    def detach(self, consumer: Any) -> None:
        """Leave what waits in a thread of the host's to the broker."""
        self._held.detach(consumer)

    def look(self, keys: Iterable[str]) -> None:
        """Look now, if somebody waits here for one of *keys*, which may be free."""
        if self.waits_for(keys):
            self._pace.want(keys)
            self._wanted.set()

    def waits_for(self, keys: Iterable[str]) -> bool:
        """Return whether somebody waits here for one of *keys*."""
        return self._held.waits_for(keys)

    def heard(self, need: Need) -> None:
        """Take what a callable has said for a limit: nobody asks it for those that wait."""
        if self._held.waits_for([need.key]):
            self._heard[need.key] = need.limit
            self._rates_due.pop(need.key, None)
            self._pace.want([need.key])

    def expect(self) -> None:
        """Look soon at what waits here: a message is about to."""
        self._came_at = time.monotonic()
        if not self._came:
            self._came = True
            self._wanted.set()

    def hold(self, message: Message[Any], delay: int) -> bool:
        """Hold a message back here that its consumer has not acknowledged, for so long at most.

        Returns:
          False if that cannot be: it is to be enqueued with that delay, in milliseconds.
        """
        return self._at_hand.hold(message, delay)

    def has_line(self, need: Need) -> bool:
        """Return whether so many jobs wait here for a key that a newcomer stands behind them."""
        return len(self._held.of(need.key)) >= max(need.limit, 1)

    def lines_up(self, jid: str, receipt: Receipt) -> None:
        """Follow whether a job that is held here has come to stand in line."""
        self._lining.append((jid, receipt, time.monotonic()))

    def began(self, message: MessageProxy) -> None:
        """Note that a thread begins to work on a message that has waited."""
        if keys := self._at_hand.began(message):
            self.look(keys)

    def filled(self, queue_name: str) -> None:
        """Take at once what was put in a queue, if this process does that."""
        self._filled[queue_name] += 1
        self._wanted.set()

    def stop(self) -> None:
        """End."""
        self._stopped = True
        self._wanted.set()
        if self.is_alive():
            self.join(timeout=10.0)

    def run(self) -> None:
        """Look whenever something may have changed, and now and then."""
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
                self._logger.debug("No waiting job is brought forward: %s", e)
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

    @property
    def _next_scan(self) -> float:
        """When to see again what waits here; monotonic, in seconds."""
        return self._scan_again if self._came else self._scan_due

    def _scan(self) -> None:
        """See what waits here."""
        if time.monotonic() < self._next_scan:
            return
        began = time.thread_time()
        # What is about to be put in the consumer's queue may not be there yet.
        self._came = self._came_at > time.monotonic() - SCAN_AGAIN / 1000
        self._held.look()
        for known in (self._heard, self._rates_due):
            for key in known.keys() - self._held.keys:
                known.pop(key, None)
        now, rest = time.monotonic(), REST * (time.thread_time() - began)
        self._scan_due = now + max(SCAN_EVERY / 1000, rest)
        self._scan_again = now + max(SCAN_AGAIN / 1000, rest)

    def _look_after_line(self) -> None:
        """Put those forward that did not come to stand in line: their starts say why."""
        left = []
        while self._lining and self._lining[0][1].is_done:
            jid, receipt, since = self._lining.popleft()
            if receipt.error is None and receipt.answer.found is not None:
                continue
            held = self._held.all().get(jid)
            if held is not None:
                self._put_forward([held], self._put)
            elif since > time.monotonic() - ATTEND_EVERY / 1000:
                # It is not seen yet.
                left.append((jid, receipt, since))
        self._lining.extend(left)

    def _attend(self, connection: Connection) -> None:
        """Say that this process has the messages of those that wait here, some of them at a time.

        Others come in meanwhile, while there may be thousands of them.
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
        # Their starts say what becomes of them.  Those whose time to wait is over come by
        # themselves, unless the clock of this host or of that which put them back is wrong.
        self._put_forward(
            [
                held[jid]
                for jid in jids
                if jid not in waited or _is_over(held[jid].need, waited[jid])
            ],
            self._put,
        )

    def _wake(self, connection: Connection) -> float:
        """Put those forward that may come in now; return the seconds to rest from that."""
        # Of this thread alone: what others take meanwhile is no reason to look less often.
        began, self._moved = time.thread_time(), False
        self._look_at_all(connection)
        if self._moved:
            return 0.0
        rest = REST_MOVING if self._pace.is_moving else REST
        return rest * (time.thread_time() - began)

    def _look_at_all(self, connection: Connection) -> None:
        """Look at those keys whose look is due."""
        if not self._held.keys:
            # Others may want the connection meanwhile.
            connection.close()
        for keys in _parts(self._pace.due(self._held.keys)):
            self._look_at(connection, keys)
        if time.monotonic() >= self._try_due:
            self._try_due = time.monotonic() + ATTEND_EVERY / 1000
            held = self._held
            asked = [k for k in held.keys if any(need.is_asked for need in held.needs(k))]
            for key in random.sample(asked, min(len(asked), MAX_TRIED)):
                # Its callable may say more by now: the next one's start asks it.
                self._put_next(connection, key, {SECTION: 1, RATE: 1})

    def _look_at(self, connection: Connection, keys: Sequence[str]) -> None:
        """Put those forward that may come in now by one of *keys*, and plan the next looks."""
        locks = self._joblog.core.locks
        used = connection.ask(functools.partial(locks.usage, keys))
        for key in keys:
            usage = used.get(key, Usage())
            free = self._free(connection, key, usage)
            if max(free.values()) > 0:
                self._put_next(connection, key, free)
            if usage.kept and free[SECTION] + usage.held > 0:
                self._put_owners(connection, key, usage.kept)
            if self._pace.asks_who_is_next(key, usage):
                self._pace.is_near(key, self._is_near(connection, key))
            self._pace.plan(key, self._rate_due_in(key))

    def _is_near(self, connection: Connection, key: str) -> bool:
        """Return whether one of those waits here that come in next by a section."""
        needs = [need for need in self._held.needs(key) if need.kind == SECTION]
        if not needs:
            return False
        most = max(
            self._heard.get(key, need.limit) if need.is_asked else need.limit for need in needs
        )
        if most > MAX_NEAR or len(self._held.keys) > MAX_NEAR:
            return True
        waiters, mine = self._joblog.core.locks.waiters, self._held.of(key)
        line = connection.ask(functools.partial(waiters.line, key, max(1, most)))
        return any(jid in mine for jid in line)

    def _rate_due_in(self, key: str) -> float | None:
        """Return the milliseconds until more may start by a rate that is waited for here."""
        if all(need.kind != RATE for need in self._held.needs(key)):
            return None
        return 1000 * (self._rates_due.get(key, 0.0) - time.monotonic())

    def _free(self, connection: Connection, key: str, used: Usage) -> dict[str, int]:
        """Return how many of a key may come in now, by the kind of what they wait for."""
        free = {SECTION: 0, RATE: 0}
        for need in self._held.needs(key):
            limit = self._heard.get(key, need.limit) if need.is_asked else need.limit
            limit = limit if used.limit_set is None else used.limit_set
            if need.kind == SECTION:
                free[SECTION] = max(free[SECTION], limit - used.held)
            elif time.monotonic() >= self._rates_due.get(key, 0.0):
                ask = functools.partial(
                    self._joblog.core.locks.rates.room,
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
        mine, locks = self._held.of(key), self._joblog.core.locks
        for jid, is_own in connection.ask(functools.partial(locks.waiters.next_of, key, kept)):
            owns = functools.partial(locks.owns, key, jid)
            if jid in mine and is_own and connection.ask(owns):
                self._put_forward([mine[jid]], self._put)

    def _put_next(self, connection: Connection, key: str, free: dict[str, int]) -> None:
        """Put those forward that are next in the line of a key, and whose messages are here."""
        mine = self._held.of(key)
        most = min(max(free.values()), MAX_FORWARD)
        waiters = self._joblog.core.locks.waiters
        line = connection.ask(functools.partial(waiters.next_of, key, most))
        turns = []
        for place, (jid, is_own) in enumerate(line):
            held = mine.get(jid)
            # One that waits for another key comes in by that; this one is kept for it.
            if held is not None and is_own and place < free[held.need.kind]:
                turns.append(held)
        handed, moved = self._at_hand.split(key, turns)
        self._put_forward(handed, self._at_hand.hand)
        self._put_forward(moved, self._move)

    def _put_forward(self, some: Sequence[Held], put: Callable[[Held], None]) -> None:
        """Take messages out of their delay queues, and *put* each where it is worked on."""
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
        """Do what the host does with a message whose time has come."""
        queue_name = self._enqueue(held.consumer, held.message)
        held.consumer.delay_queue.task_done()
        self._filled[queue_name] += 1

    def _enqueue(self, consumer: Any, held_back: Any) -> str:
        """Put a message that is held back into the queue of its actor; return that."""
        message = held_back.copy(queue_name=q_name(held_back.queue_name))
        message.options.pop("eta", None)
        with moving():
            self._broker.enqueue(message)
        consumer.post_process_message(held_back)
        return str(message.queue_name)

    def _pass_on(self) -> None:
        """Put those into the queues of their actors that no thread here has taken."""
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
        """Let one come whose turn is no question of how many may."""
        if held.is_at_hand:
            self._at_hand.hand(held)
        else:
            self._move(held)

    def _take_filled(self) -> None:
        """Take what was put in queues, as far as this process has idle threads."""
        if self._filled:
            # What was put back is looked after soon.
            self._came = True
        while self._filled:
            self._take(*self._filled.popitem())

    def _take(self, queue_name: str, count: int) -> None:
        """Take messages from a queue that the host's idle thread looks at only now and then."""
        consumer = self._held.consumer_of(queue_name)
        if consumer is None or consumer.paused or not is_polled(self._broker):
            return
        if not consumer.work_queue.empty():
            # There is no idle thread to run them.
            return
        # The host takes twice as many as it has threads.
        most = max(1, min(count, consumer.prefetch // 2))
        taker = self._broker.consume(queue_name, prefetch=most, timeout=1)
        for message in itertools.islice(taker, most):
            if message is None:
                break
            consumer.handle_message(message)


def _is_over(need: Need, waited: int) -> bool:
    """Return whether a job has waited for as long as it may."""
    return need.on_conflict == "wait" and need.wait_for is not None and waited > need.wait_for


def _parts(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[n : n + MAX_ASKED] for n in range(0, len(values), MAX_ASKED)]
