"""The messages in this process that wait for a key, in the host's delay queues."""

from __future__ import annotations

import contextlib
import heapq
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.payload.sanitize import fold_jid

from .bonds import need_in
from .options import DELAY_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from dramatiq import Broker

    from dramatiq_joblog.locking.needs import Need


@dataclass(frozen=True)
class Held:
    """A message that waits in this process."""

    #: The host's thread that holds it back.
    consumer: Any
    #: As it lies in the consumer's queue.
    item: Any
    jid: str
    #: What it waits for, by the limit of the running code.
    need: Need

    @property
    def message(self) -> Any:
        """The message."""
        return message_of(self.item)

    @property
    def is_at_hand(self) -> bool:
        """Whether it lies where it was fetched, and in no delay queue of the broker."""
        return not self.consumer.queue_name.endswith(DELAY_SUFFIX)


@dataclass(frozen=True)
class _Seen:
    """What was found of a message in a delay queue: to read it takes its time."""

    #: Kept, so that no other has its identity.
    message: Any
    #: None for one that waits for no key.
    held: Held | None


class HeldMessages:
    """Knows what waits in this process, as it was when somebody looked last.

    It belongs to the thread that looks; others may ask :meth:`waits_for`, and say whose queues
    are to be looked at.

    Parameters:
      broker: The broker that the messages are of.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        #: The host's threads that take messages from queues, delay queues among them.
        self._consumers: list[Any] = []
        #: Where each holds messages back.
        self._queues: dict[Any, Any] = {}
        self._is_stale = False
        self._forget()

    def _forget(self) -> None:
        #: What lies in the delay queues, by the identity of each message: before dramatiq 2 the
        #: host makes another item of one whenever it looks whether that is due.
        self._seen: dict[int, _Seen] = {}
        #: What waits: by key, and by jid.
        self._waiting: dict[str, dict[str, Held]] = {}
        #: What these wait for, in the same form, and how many do.
        self._needs: dict[str, Counter[Need]] = {}

    def attach(self, consumer: Any) -> None:
        """Look from now on at what a thread of the host's takes from its queue."""
        self._queues[consumer] = consumer.delay_queue
        self._consumers.append(consumer)

    def detach(self, consumer: Any) -> None:
        """Leave what waits in a thread of the host's to the broker."""
        if consumer in self._consumers:
            self._consumers.remove(consumer)
            self._queues.pop(consumer, None)

    def consumer_of(self, queue_name: str) -> Any:
        """Return the host's thread that takes messages from a queue; None if none does here."""
        return next((c for c in self._consumers if c.queue_name == queue_name), None)

    def waits_for(self, keys: Iterable[str]) -> bool:
        """Return whether somebody waits here for one of *keys*."""
        waiting = self._waiting
        return any(key in waiting for key in keys)

    @property
    def keys(self) -> Collection[str]:
        """The keys that are waited for."""
        return self._waiting.keys()

    def of(self, key: str) -> Mapping[str, Held]:
        """Return what waits for a key, by the jids."""
        return self._waiting.get(key, {})

    def all(self) -> dict[str, Held]:
        """Return all that waits, by the jids."""
        return {jid: each for mine in self._waiting.values() for jid, each in mine.items()}

    def needs(self, key: str) -> Collection[Need]:
        """Return what those that wait for a key want of it."""
        return self._needs.get(key, {}).keys()

    def look(self) -> None:
        """See what has come, and what has left."""
        if self._is_stale:
            self._is_stale = False
            self._forget()
        consumers = list(self._consumers)
        for consumer in consumers:
            self._keep_left(consumer)
        lying = {
            id(message_of(item)): (c, item) for c in consumers for item in items_of(c.delay_queue)
        }
        if lying.keys() == self._seen.keys():
            return
        for number in self._seen.keys() - lying.keys():
            self._remove(self._seen.pop(number).held)
        for number in lying.keys() - self._seen.keys():
            consumer, item = lying[number]
            held = self._read(consumer, item)
            if held is None:
                self._seen[number] = _Seen(message_of(item), None)
            elif held.jid not in self.of(held.need.key):
                # A copy of a message that is known is read again once that has left.
                self._seen[number] = _Seen(held.message, held)
                self._add(held)

    def look_anew(self) -> None:
        """Read all messages again at the next look: their actors may say other limits by then."""
        self._is_stale = True

    def take_out(self, some: Sequence[Held]) -> list[Held]:
        """Take messages of one consumer out of its queue, and return those that were still there.

        Each is to be enqueued where it belongs and marked as done in its queue, or given to
        :meth:`put_back`.
        """
        for held in some:
            # Whatever becomes of it: if it stays here, it is seen again.
            if self._seen.pop(id(held.message), None) is not None:
                self._remove(held)
        out = take_out(some[0].consumer.delay_queue, [held.item for held in some])
        return [held for held in some if id(held.message) in out]

    def put_back(self, some: Iterable[Held]) -> None:
        """Put messages back that were taken out."""
        for held in some:
            queue = held.consumer.delay_queue
            with contextlib.suppress(ValueError):
                queue.task_done()
            queue.put(held.item)

    def _keep_left(self, consumer: Any) -> None:
        """Keep what the host leaves behind when it loses its connection.

        Redis delivers nothing again to a process that lives.
        """
        queue, before = consumer.delay_queue, self._queues.get(consumer)
        if before is None or queue is before:
            return
        self._queues[consumer] = queue
        if is_polled(self._broker):
            for item in items_of(before):
                queue.put(item)

    def _read(self, consumer: Any, item: Any) -> Held | None:
        message = message_of(item)
        need = need_in(self._broker, message)
        if need is None:
            return None
        return Held(consumer, item, fold_jid(message.message_id), need)

    def _add(self, held: Held) -> None:
        key = held.need.key
        self._waiting.setdefault(key, {})[held.jid] = held
        self._needs.setdefault(key, Counter())[held.need] += 1

    def _remove(self, held: Held | None) -> None:
        if held is None:
            return
        key = held.need.key
        mine, needs = self._waiting[key], self._needs[key]
        del mine[held.jid]
        if not mine:
            del self._waiting[key], self._needs[key]
        elif needs[held.need] > 1:
            needs[held.need] -= 1
        else:
            del needs[held.need]


def items_of(queue: Any) -> list[Any]:
    """Return what lies in a priority queue."""
    with _mutex_of(queue):
        return list(queue.queue)


def take_out(queue: Any, items: Sequence[Any]) -> set[int]:
    """Take items out of a priority queue, wherever they are; return their messages' identities."""
    wanted = {id(message_of(item)) for item in items}
    with _mutex_of(queue):
        out = {id(message_of(other)) for other in queue.queue} & wanted
        if out:
            queue.queue[:] = [other for other in queue.queue if id(message_of(other)) not in out]
            heapq.heapify(queue.queue)
    return out


def _mutex_of(queue: Any) -> Any:
    # Those of gevent have none: there nobody comes in between.
    return getattr(queue, "mutex", None) or contextlib.nullcontext()


def is_polled(broker: Any) -> bool:
    """Return whether a broker's consumers sleep between two looks, and nothing wakes them."""
    redis = sys.modules.get("dramatiq.brokers.redis")
    return redis is not None and isinstance(broker, redis.RedisBroker)


def message_of(item: Any) -> Any:
    """Return the message of an item of one of the host's queues."""
    # A tuple before dramatiq 2.
    return item[-1] if isinstance(item, tuple) else item.message
