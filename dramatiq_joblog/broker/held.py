"""The messages in this process that wait for a key, in Dramatiq's delay queues."""

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

    #: Dramatiq's consumer thread that holds it.
    consumer: Any
    #: The item in the consumer's queue.
    item: Any
    jid: str
    #: What it waits for, with the limit of the running code.
    need: Need

    @property
    def message(self) -> Any:
        """The message."""
        return message_of(self.item)

    @property
    def is_at_hand(self) -> bool:
        """Whether it is held by the consumer of its own queue, not of a delay queue."""
        return not self.consumer.queue_name.endswith(DELAY_SUFFIX)


@dataclass(frozen=True)
class _Seen:
    """A message in a delay queue, parsed once, because parsing is slow."""

    #: Referenced, so that its id() is not reused.
    message: Any
    #: None if it waits for no key.
    held: Held | None


class HeldMessages:
    """The messages that wait in this process, as of the last :meth:`look`.

    Not thread-safe, except for :meth:`waits_for`, :meth:`attach` and :meth:`detach`.

    Parameters:
      broker: The broker of the messages.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        #: Dramatiq's consumer threads, including those of delay queues.
        self._consumers: list[Any] = []
        #: The delay queue of each consumer.
        self._queues: dict[Any, Any] = {}
        self._is_stale = False
        self._forget()

    def _forget(self) -> None:
        #: The messages in delay queues, by id(): before version 2, Dramatiq creates a new item
        #: whenever it checks whether a message is due.
        self._seen: dict[int, _Seen] = {}
        #: The waiting messages by key, then by jid.
        self._waiting: dict[str, dict[str, Held]] = {}
        #: The needs of these messages by key, and how many have each.
        self._needs: dict[str, Counter[Need]] = {}

    def attach(self, consumer: Any) -> None:
        """Include the messages of one of Dramatiq's consumers."""
        self._queues[consumer] = consumer.delay_queue
        self._consumers.append(consumer)

    def detach(self, consumer: Any) -> None:
        """Exclude the messages of one of Dramatiq's consumers."""
        if consumer in self._consumers:
            self._consumers.remove(consumer)
            self._queues.pop(consumer, None)

    def consumer_of(self, queue_name: str) -> Any:
        """Return the consumer of a queue in this process, or None."""
        return next((c for c in self._consumers if c.queue_name == queue_name), None)

    def waits_for(self, keys: Iterable[str]) -> bool:
        """Return whether a message here waits for one of *keys*."""
        waiting = self._waiting
        return any(key in waiting for key in keys)

    @property
    def keys(self) -> Collection[str]:
        """The keys that messages wait for."""
        return self._waiting.keys()

    def of(self, key: str) -> Mapping[str, Held]:
        """Return the messages that wait for a key, by jid."""
        return self._waiting.get(key, {})

    def all(self) -> dict[str, Held]:
        """Return all waiting messages, by jid."""
        return {jid: each for mine in self._waiting.values() for jid, each in mine.items()}

    def needs(self, key: str) -> Collection[Need]:
        """Return the distinct needs of a key's waiters."""
        return self._needs.get(key, {}).keys()

    def look(self) -> None:
        """Update the set of waiting messages."""
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
                # A copy of a known message is parsed again once the original has left.
                self._seen[number] = _Seen(held.message, held)
                self._add(held)

    def look_anew(self) -> None:
        """Parse all messages again at the next :meth:`look`: limits may have changed."""
        self._is_stale = True

    def take_out(self, some: Sequence[Held]) -> list[Held]:
        """Remove messages of one consumer from its queue; return those that were still there.

        The caller must enqueue each message and mark it as done in its queue, or call
        :meth:`put_back`.
        """
        for held in some:
            # If it stays here, it is found again.
            if self._seen.pop(id(held.message), None) is not None:
                self._remove(held)
        out = take_out(some[0].consumer.delay_queue, [held.item for held in some])
        return [held for held in some if id(held.message) in out]

    def put_back(self, some: Iterable[Held]) -> None:
        """Return messages to the queue that they were removed from."""
        for held in some:
            queue = held.consumer.delay_queue
            with contextlib.suppress(ValueError):
                queue.task_done()
            queue.put(held.item)

    def _keep_left(self, consumer: Any) -> None:
        """Keep the messages that Dramatiq drops when it loses its connection.

        With Redis, they are not redelivered while the process is alive.
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
    """Return the items of a priority queue."""
    with _mutex_of(queue):
        return list(queue.queue)


def take_out(queue: Any, items: Sequence[Any]) -> set[int]:
    """Remove items from a priority queue; return the ids of the messages removed."""
    wanted = {id(message_of(item)) for item in items}
    with _mutex_of(queue):
        out = {id(message_of(other)) for other in queue.queue} & wanted
        if out:
            queue.queue[:] = [other for other in queue.queue if id(message_of(other)) not in out]
            heapq.heapify(queue.queue)
    return out


def _mutex_of(queue: Any) -> Any:
    # gevent's queues have no mutex, and need none: there is no preemption.
    return getattr(queue, "mutex", None) or contextlib.nullcontext()


def is_polled(broker: Any) -> bool:
    """Return whether a broker's consumers poll."""
    redis = sys.modules.get("dramatiq.brokers.redis")
    return redis is not None and isinstance(broker, redis.RedisBroker)


def message_of(item: Any) -> Any:
    """Return the message of an item in one of Dramatiq's queues."""
    # A tuple before dramatiq 2.
    return item[-1] if isinstance(item, tuple) else item.message
