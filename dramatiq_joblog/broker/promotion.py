"""Promotes the job that has waited longest once its section is free.

A waiting message is in the memory of the worker process that fetched it.  Each process manages its
own: it records in the log that it has them, and promotes the next one once the section is free.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger

from dramatiq_joblog.database.connection import Connection
from dramatiq_joblog.database.limited_log import LimitedLog
from dramatiq_joblog.errors import DatabaseAwayError
from dramatiq_joblog.locking.holders import Usage
from dramatiq_joblog.locking.needs import SECTION
from dramatiq_joblog.locking.presence import HEARTBEAT_EVERY

from .at_hand import AtHand
from .forwarder import Forwarder
from .free_slots import FreeSlots
from .held import HeldMessages
from .pace import REST, Pace, ScanPace
from .waiter_heartbeats import WaiterHeartbeats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dramatiq import Broker, Message
    from dramatiq.broker import MessageProxy

    from dramatiq_joblog.locking.needs import Need
    from dramatiq_joblog.recording.inbox import Receipt
    from dramatiq_joblog.recording.log import Log, Written

#: The pause after a poll that promotes nothing, as a multiple of it, while keys change: the next
#: handover is soon.
REST_MOVING = 5
#: Milliseconds until enqueueing is retried after an error of the broker.
AGAIN = 1_000
#: The maximum number of keys in one query.
MAX_ASKED = 200
#: The maximum number of keys with callable limits that are tried at once.
MAX_TRIED = 20
#: With more keys than this, or a higher limit, the process does not check whose waiter is next.
MAX_NEAR = 8
#: The maximum number of a key's waiters that are promoted at once.
MAX_FORWARD = 200


class Waker(threading.Thread):
    """Manages the messages that wait in this process.

    Parameters:
      joblog: The log.
      broker: The broker that they are enqueued on.
    """

    def __init__(self, joblog: Log[Written], broker: Broker) -> None:
        super().__init__(name="dramatiq_joblog waker", daemon=True)
        self._joblog = joblog
        self._logger = get_logger(__name__, type(self))
        self._limited = LimitedLog(self._logger)
        self._wanted = threading.Event()
        self._stopped = False
        #: The messages that wait here.
        self._held = HeldMessages(broker)
        self._at_hand = AtHand(self._held)
        self._heartbeats = WaiterHeartbeats(joblog, self._held)
        self._slots = FreeSlots(joblog, self._held)
        self._scans = ScanPace()
        self._pace = Pace()
        self._forwarder = Forwarder(broker, self._held, self._at_hand, self._scans)
        #: When callable limits are tried again, in monotonic seconds.
        self._try_due = 0.0
        #: Jobs that are joining a wait queue, and since when; in monotonic seconds.
        self._lining: deque[tuple[str, Receipt, float]] = deque()

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
            self._slots.hear(need, actor)
            self._pace.want([need.key])

    def expect(self) -> None:
        """Scan soon, because a message is about to be added."""
        if self._scans.expect():
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
        self._forwarder.filled(queue_name)
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
                self._forwarder.fetch()
                self._forwarder.pass_on()
                self._scan()
                self._look_after_line()
                self._forwarder.promote(self._heartbeats.record(connection))
                rest = self._wake(connection)
                parts = self._scans, self._pace, self._at_hand, self._heartbeats
                due = min(part.next_due for part in parts)
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

    def _scan(self) -> None:
        """Scan for waiting messages, if it is time."""
        if self._scans.begin():
            began = time.thread_time()
            self._held.look()
            self._slots.forget_others()
            self._scans.end(time.thread_time() - began)

    def _look_after_line(self) -> None:
        """Promote jobs that failed to join their wait queue: their next start reports why."""
        left = []
        while self._lining and self._lining[0][1].is_done:
            jid, receipt, since = self._lining.popleft()
            if receipt.error is None and receipt.answer.found is not None:
                continue
            held = self._held.all().get(jid)
            if held is not None:
                self._forwarder.promote([held])
            elif since > time.monotonic() - HEARTBEAT_EVERY / 1000:
                # The scan has not found it yet.
                left.append((jid, receipt, since))
        self._lining.extend(left)

    def _wake(self, connection: Connection) -> float:
        """Promote the waiters that may run now; return the seconds to pause afterwards."""
        # The CPU time of this thread alone, so that a busy process does not poll less often.
        began, before = time.thread_time(), self._forwarder.count
        self._look_at_all(connection)
        if self._forwarder.count > before:
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
            self._try_due = time.monotonic() + HEARTBEAT_EVERY / 1000
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
        self._forwarder.promote([*next_of.values()])

    def _look_at(self, connection: Connection, keys: Sequence[str]) -> None:
        """Promote the waiters of *keys* that may run now, and plan the next polls."""
        locks = self._joblog.core.locks
        used = connection.ask(functools.partial(locks.holders.usage, keys))
        for key in keys:
            usage = used.get(key, Usage())
            free = self._slots.free(connection, key, usage)
            if max(free.values(), default=0) > 0:
                self._put_next(connection, key, free)
            if usage.kept and self._slots.is_open(key, usage):
                self._put_owners(connection, key)
            if self._pace.asks_who_is_next(key, usage):
                self._pace.is_near(key, self._is_near(connection, key))
            self._pace.plan(key, self._slots.rate_due_in(key))

    def _is_near(self, connection: Connection, key: str) -> bool:
        """Return whether one of a section's next waiters is here."""
        needs = [need for need in self._held.needs(key) if need.kind == SECTION]
        if not needs:
            return False
        most = max(self._slots.limit(need, Usage()) for need in needs)
        if most > MAX_NEAR or len(self._held.keys) > MAX_NEAR:
            return True
        waiters, mine = self._joblog.core.locks.waiters, self._held.of(key)
        line = connection.ask(functools.partial(waiters.line, key, max(1, most)))
        return any(jid in mine for jid in line)

    def _put_owners(self, connection: Connection, key: str) -> None:
        """Promote waiters with a reserved slot that a pause had blocked."""
        mine, locks = self._held.of(key), self._joblog.core.locks
        owners = connection.ask(functools.partial(locks.holders.kept_for, key))
        self._forwarder.promote([mine[jid] for jid in owners if jid in mine])

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
        self._forwarder.promote_in_turn(key, turns)


def _parts(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[n : n + MAX_ASKED] for n in range(0, len(values), MAX_ASKED)]
