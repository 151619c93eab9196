"""Messages that wait in the process that fetched them, without a round trip to the broker.

They stay unacknowledged, in the delay queue of the consumer that fetched them, where Dramatiq holds
messages with an eta.  When their turn comes, they go directly to the worker threads, not to the end
of the broker's queue.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq.broker import MessageProxy
from dramatiq.common import dq_name

from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.payload.values import host_now

from .held import items_of, message_of, take_out

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dramatiq import Message

    from .held import Held, HeldMessages

#: Milliseconds that a message waits for a thread here before it is enqueued for any process.
HANDED_FOR = 500
#: Milliseconds that the threads are then considered busy, unless one is found idle.
BUSY_FOR = 5_000


@dataclass(frozen=True)
class _Handed:
    """A message handed to the worker threads of this process."""

    consumer: Any
    message: Any
    #: When it was handed over, in monotonic seconds.
    at: float


class AtHand:
    """The messages that wait with the consumers that fetched them.

    Parameters:
      held: The messages that wait in this process.
    """

    def __init__(self, held: HeldMessages) -> None:
        self._held = held
        #: Messages handed to the threads that have not begun, by jid.
        self._handed: dict[str, _Handed] = {}
        #: Keys with more messages that could be handed over.
        self._left: set[str] = set()
        self._busy_until = 0.0

    def hold(self, message: Message[Any], delay: int) -> bool:
        """Hold a message for *delay* milliseconds; return False if there is no room for it.

        Any thread may call this.
        """
        consumer = self._held.consumer_of(message.queue_name)
        delays = self._held.consumer_of(dq_name(message.queue_name))
        if consumer is None or delays is None or consumer.delay_queue.qsize() >= delays.prefetch:
            # The process already holds its maximum; leave the others to any process.
            return False
        message.options["eta"] = host_now() + delay
        consumer.handle_message(MessageProxy(message))
        return True

    def began(self, message: MessageProxy) -> set[str]:
        """Record that a thread takes a message; return the keys with more messages to hand over."""
        handed = self._handed.pop(fold_jid(message.message_id), None)
        if handed is None or not self._left or len(self._handed) > _threads_of(handed.consumer):
            return set()
        left, self._left = self._left, set()
        return left

    def split(self, key: str, some: Iterable[Held]) -> tuple[list[Held], list[Held]]:
        """Return the messages to hand to the threads now, and those to send through the broker."""
        handed: list[Held] = []
        moved: list[Held] = []
        for held in some:
            if not held.is_at_hand or self._is_busy(held.consumer):
                moved.append(held)
            elif len(self._handed) + len(handed) < 2 * _threads_of(held.consumer):
                handed.append(held)
            else:
                # It is handed over as soon as a thread has taken one of the others.
                self._left.add(key)
        return handed, moved

    def hand(self, held: Held) -> None:
        """Hand a message, already removed from its queue, to the threads of this process."""
        message, consumer = held.message, held.consumer
        message.options.pop("eta", None)
        self._handed[held.jid] = _Handed(consumer, message, time.monotonic())
        consumer.handle_message(message)
        consumer.delay_queue.task_done()

    def take_back(self) -> list[tuple[Any, Any]]:
        """Take back messages that no thread has taken, for other processes that may be idle.

        Returns:
          The consumer and the queue item of each.
        """
        late = time.monotonic() - HANDED_FOR / 1000
        found = []
        for jid, handed in list(self._handed.items()):
            if handed.at < late:
                self._handed.pop(jid, None)
                queue = handed.consumer.work_queue
                mine = [i for i in items_of(queue) if message_of(i) is handed.message]
                if mine and take_out(queue, mine):
                    self._busy_until = time.monotonic() + BUSY_FOR / 1000
                    found.append((handed.consumer, mine[0]))
        return found

    @property
    def next_due(self) -> float:
        """When the first of them is to be taken back, in monotonic seconds."""
        times = [handed.at for handed in list(self._handed.values())]
        return min(times, default=math.inf) + HANDED_FOR / 1000

    def _is_busy(self, consumer: Any) -> bool:
        """Return whether the threads of this process seem to have other work."""
        if consumer.work_queue.unfinished_tasks < _threads_of(consumer):
            self._busy_until = 0.0
        return time.monotonic() < self._busy_until


def _threads_of(consumer: Any) -> int:
    # Dramatiq prefetches twice as many messages as it has threads.
    return max(1, int(consumer.prefetch) // 2)
