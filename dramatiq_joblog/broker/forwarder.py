"""Brings waiting messages from Dramatiq's delay queues to where they are processed.

That is the worker threads of this process, or their queue in the broker.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

from dramatiq.common import q_name

from .deliveries import moving
from .held import is_polled, message_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dramatiq import Broker

    from .at_hand import AtHand
    from .held import Held, HeldMessages
    from .pace import ScanPace


class Forwarder:
    """Promotes messages that were chosen.

    Parameters:
      broker: The broker of the messages.
      held: The messages that wait here.
      at_hand: Those that can go to the threads of this process.
      scans: Learns that there may be new messages.
    """

    def __init__(
        self, broker: Broker, held: HeldMessages, at_hand: AtHand, scans: ScanPace
    ) -> None:
        self._broker = broker
        self._held = held
        self._at_hand = at_hand
        self._scans = scans
        #: The number of messages just enqueued, by queue, that this process can fetch at once.
        self._filled: Counter[str] = Counter()
        #: The number of messages promoted so far.
        self.count = 0

    def filled(self, queue_name: str) -> None:
        """Fetch soon what was enqueued on a queue; any thread may call this."""
        self._filled[queue_name] += 1

    def promote(self, some: Sequence[Held]) -> None:
        """Hand over or enqueue messages, regardless of free slots."""
        self._take_out(some, self._put)

    def promote_in_turn(self, key: str, turns: Sequence[Held]) -> None:
        """Promote the next waiters of a key, as many as the threads here can take at once."""
        handed, moved = self._at_hand.split(key, turns)
        self._take_out(handed, self._at_hand.hand)
        self._take_out(moved, self._move)

    def pass_on(self) -> None:
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

    def fetch(self) -> None:
        """Fetch what was just enqueued, as far as this process has idle threads."""
        if self._filled:
            # Messages that were put back must be scanned soon.
            self._scans.soon()
        while self._filled:
            self._fetch_from(*self._filled.popitem())

    def _take_out(self, some: Sequence[Held], put: Callable[[Held], None]) -> None:
        """Remove messages from their delay queues, and *put* each where it is processed."""
        for consumer in {id(held.consumer): held.consumer for held in some}.values():
            left = self._held.take_out([held for held in some if held.consumer is consumer])
            self.count += len(left)
            try:
                while left:
                    put(left[0])
                    left.pop(0)
            finally:
                self._held.put_back(left)
        self.fetch()

    def _put(self, held: Held) -> None:
        if held.is_at_hand:
            self._at_hand.hand(held)
        else:
            self._move(held)

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

    def _fetch_from(self, queue_name: str, count: int) -> None:
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
