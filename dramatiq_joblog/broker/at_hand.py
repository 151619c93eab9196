"""Messages that wait in the process that fetched them, without costing the broker anything.

They stay unacknowledged, and lie where the host puts a message that has an eta: in the delay queue
of the consumer that fetched them.  From there they go to the worker threads once their turn has
come, and not behind what is in the broker's queue by then.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq.broker import MessageProxy
from dramatiq.common import dq_name

from dramatiq_joblog.payload.sanitize import fold_jid

from .held import items_of, message_of, take_out
from .options import now

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dramatiq import Message

    from .held import Held, HeldMessages

#: Milliseconds that one is left to threads that do not take it: then it is for any process.
HANDED_FOR = 500
#: Milliseconds that threads are then considered busy, unless one is seen to be idle.
BUSY_FOR = 5_000


@dataclass(frozen=True)
class _Handed:
    """A message that went to the worker threads of this process."""

    consumer: Any
    message: Any
    #: Monotonic, in seconds.
    at: float


class AtHand:
    """The messages that wait with the consumers that fetched them.

    Parameters:
      held: What waits in this process.
    """

    def __init__(self, held: HeldMessages) -> None:
        self._held = held
        #: Those that went to the threads, and have not begun, by their jids.
        self._handed: dict[str, _Handed] = {}
        #: The keys by which more might have gone to them.
        self._left: set[str] = set()
        self._busy_until = 0.0

    def hold(self, message: Message[Any], delay: int) -> bool:
        """Hold a message back for so many milliseconds; return False if there is no room for it.

        Any thread may ask for that.
        """
        consumer = self._held.consumer_of(message.queue_name)
        delays = self._held.consumer_of(dq_name(message.queue_name))
        if consumer is None or delays is None or consumer.delay_queue.qsize() >= delays.prefetch:
            # As many as a process holds back at most: the others are for any process.
            return False
        message.options["eta"] = now() + delay
        consumer.handle_message(MessageProxy(message))
        return True

    def began(self, message: MessageProxy) -> set[str]:
        """Note that a thread takes a message; return the keys by which more may go to them now."""
        handed = self._handed.pop(fold_jid(message.message_id), None)
        if handed is None or not self._left or len(self._handed) > _threads_of(handed.consumer):
            return set()
        left, self._left = self._left, set()
        return left

    def split(self, key: str, some: Iterable[Held]) -> tuple[list[Held], list[Held]]:
        """Return those that may go to the threads now, and those that go through the broker."""
        handed: list[Held] = []
        moved: list[Held] = []
        for held in some:
            if not held.is_at_hand or self._is_busy(held.consumer):
                moved.append(held)
            elif len(self._handed) + len(handed) < 2 * _threads_of(held.consumer):
                handed.append(held)
            else:
                # It is the next one as soon as a thread has taken one of those.
                self._left.add(key)
        return handed, moved

    def hand(self, held: Held) -> None:
        """Let a thread of this process take a message, which was taken out of its queue."""
        message, consumer = held.message, held.consumer
        message.options.pop("eta", None)
        self._handed[held.jid] = _Handed(consumer, message, time.monotonic())
        consumer.handle_message(message)
        consumer.delay_queue.task_done()

    def take_back(self) -> list[tuple[Any, Any]]:
        """Take those back that no thread takes: as other processes may be idle.

        Returns:
          The consumer and the item of each.
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
        """When the first of them is late; monotonic, in seconds."""
        times = [handed.at for handed in list(self._handed.values())]
        return min(times, default=math.inf) + HANDED_FOR / 1000

    def _is_busy(self, consumer: Any) -> bool:
        """Return whether the threads of this process have other work, as far as is known."""
        if consumer.work_queue.unfinished_tasks < _threads_of(consumer):
            self._busy_until = 0.0
        return time.monotonic() < self._busy_until


def _threads_of(consumer: Any) -> int:
    # The host fetches twice as many messages as it has threads.
    return max(1, int(consumer.prefetch) // 2)
