"""Acknowledgements that are handed over: sent after the commit, a whole batch in one round trip.

The log must hold an acknowledgement back until its job's outcome is committed.  Where the
broker is known, the worker thread goes on to the next job meanwhile, and a thread of ours
sends all acknowledgements whose outcomes are committed in one pipeline.  That is cheaper than
each on its own, by more than the log costs.
"""

from __future__ import annotations

import copy
import queue
import sys
import threading
import time
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from dramatiq.broker import Consumer
from dramatiq.logging import get_logger
from dramatiq.middleware import Middleware

from dramatiq_joblog.recording.writer import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

    from dramatiq_joblog.recording.writer import Receipt

#: With so many handed over and not sent, worker threads wait for theirs.
MAX_WAITING = 1_000
#: As many are sent in one round trip at most.
MAX_BATCH = 500
#: Milliseconds that an acknowledgement waits for others, if nobody waits for it.
GATHER = 8
#: Seconds until a round trip that failed is tried again; at first, and at most.
RETRY_AFTER, RETRY_AT_MOST = 0.1, 5.0

#: Seconds to wait for jobs to end before the host looks for itself whether it may fetch more.
ROOM_WITHIN = 0.01

#: The ways to acknowledge.
Acks: TypeAlias = Literal["auto", "handed", "plain"]
ACKS: tuple[str, ...] = get_args(Acks)


def why_not(broker: Broker) -> str | None:
    """Say why a broker's acknowledgements cannot be handed over; None if they can.

    What is not known by its class and version is left as it is.
    """
    redis = sys.modules.get("dramatiq.brokers.redis")
    if redis is None or not isinstance(broker, redis.RedisBroker):
        return f"it is a {type(broker).__name__}, and only a RedisBroker's can"
    version = metadata.version("dramatiq")
    if int(version.split(".")[0]) > 2:
        return f"dramatiq {version} is newer than what this was written for"
    changed = [
        name
        for name in ("_dispatch", "__getattr__", "consumer_class", "consume")
        if getattr(type(broker), name) is not getattr(redis.RedisBroker, name)
    ]
    if changed:
        return f"{type(broker).__name__} has a {changed[0]} of its own"
    if "consume" in vars(broker):
        return "its consume() was replaced, perhaps by another log's middleware"
    if not isinstance(broker.client, redis.redis.Redis):
        return f"its client is a {type(broker.client).__name__}, and no redis.Redis"
    return None


class HandedAcks:
    """Acknowledges what the worker threads of one broker hand over.

    Parameters:
      broker: A broker that :func:`why_not` has nothing against.
      commit: Makes the log commit what was handed to it.
    """

    # Any: a RedisBroker, whose module needs the redis package.
    def __init__(self, broker: Any, commit: Callable[[], None]) -> None:
        self._broker = broker
        self._commit = commit
        self._host_consume: Callable[..., Any] = broker.consume
        self._local = threading.local()
        self._waiting: queue.SimpleQueue[_Ack] = queue.SimpleQueue()
        #: Set by who waits.
        self._hurry = threading.Event()
        #: Whether acknowledgements cannot be sent now.
        self._stuck = False
        self._collector: Any = None
        self._commands: list[tuple[Any, ...]] = []
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._logger = get_logger(__name__, type(self))
        #: Whether someone is told of acknowledgements, who must not be told too early: then
        #: worker threads wait for theirs.
        self.told = False
        #: The queues whose consumers hand over.
        self._queues: set[str] = set()
        # Every consumer of the broker comes from here, and again after a lost connection.
        broker.consume = self._consume

    # From worker threads

    def takes(self, broker: Broker, message: MessageProxy) -> bool:
        """Tell whether the acknowledgement of *message* will be handed over."""
        return broker is self._broker and message.queue_name in self._queues

    def after(self, committed: Receipt, message: MessageProxy) -> None:
        """Send the acknowledgement that this thread hands over next once *committed* is free."""
        self._local.next = committed, message

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until all that was handed over before is sent.

        Returns:
          False if that took longer than *timeout*, in seconds.
        """
        if self._thread is None:
            return True
        sent = locked()
        self._waiting.put(_Ack(None, "", "", sent))
        self._hurry.set()
        return sent.acquire(timeout=timeout)

    def _consume(self, *args: Any, **kwargs: Any) -> Consumer:
        consumer = self._host_consume(*args, **kwargs)
        self.told = any(_tells(middleware) for middleware in self._broker.middleware)
        self._queues.add(consumer.queue_name)
        return _HandingConsumer(consumer, self)

    def _hand_over(self, queue_name: str, message: MessageProxy) -> bool:
        """Take over an acknowledgement that was announced; return False for any other."""
        committed, announced = getattr(self._local, "next", (None, None))
        if announced is not message:
            return False
        self._local.next = None, None
        wait = self.told or self._waiting.qsize() >= MAX_WAITING
        ack = _Ack(
            committed, queue_name, message.options["redis_message_id"], locked() if wait else None
        )
        if self._thread is None:
            self._start()
        self._waiting.put(ack)
        if self._stuck:
            # Nobody is at leisure to look after it, and its outcome need not wait for the broker.
            self._commit()
        if ack.sent is not None:
            self._hurry.set()
            ack.sent.acquire()
        return True

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="dramatiq_joblog acknowledgements", daemon=True
                )
                self._thread.start()

    # On our thread

    def _run(self) -> None:
        left: _Ack | None = None
        while True:
            ack = left or self._waiting.get()
            if not self._hurry.is_set():
                # Until then most are committed, with the starts of the jobs behind them.
                self._hurry.wait(GATHER / 1000)
            self._hurry.clear()
            if ack.committed is not None and not ack.committed.acquire(blocking=False):
                self._commit()
                ack.committed.acquire()
            batch, left = self._gather(ack)
            self._send([a for a in batch if a.committed is not None and self._is_kept(a)])
            for sent in batch:
                if sent.sent is not None:
                    sent.sent.release()

    def _is_kept(self, ack: _Ack) -> bool:
        """Tell whether an outcome is kept; otherwise the message is left to be delivered again."""
        error = ack.committed.error if ack.committed is not None else None
        if error is not None:
            self._logger.error("Message %s is not acknowledged: %s", ack.message_id, error)
        return error is None

    def _gather(self, first: _Ack) -> tuple[list[_Ack], _Ack | None]:
        """Return *first* and those behind it that are committed, and the next that is not."""
        batch = [first]
        while len(batch) < MAX_BATCH:
            try:
                ack = self._waiting.get_nowait()
            except queue.Empty:
                break
            if ack.committed is not None and not ack.committed.acquire(blocking=False):
                return batch, ack
            batch.append(ack)
        return batch, None

    def _send(self, acks: list[_Ack]) -> None:
        """Send acknowledgements; one that came twice does nothing there."""
        pause = RETRY_AFTER
        while acks:
            try:
                acks = self._try(acks)
            except Exception as e:  # noqa: BLE001
                # Whatever it is: what is given up is run again by whoever has no log.
                self._stuck = True
                self._commit()
                self._logger.warning(
                    "%d acknowledgements cannot be sent yet, and are tried again: %s", len(acks), e
                )
                time.sleep(pause)
                pause = min(pause * 2, RETRY_AT_MOST)
        self._stuck = False

    def _try(self, acks: list[_Ack]) -> list[_Ack]:
        """Send acknowledgements in one round trip; return those that must be sent again."""
        broker = self._broker
        if self._collector is None:
            # The host's own code makes the commands; only they are not sent one by one.
            self._collector = copy.copy(broker)
            self._collector.scripts = broker.scripts | {"dispatch": self._collect}
        do_ack = self._collector.do_ack
        self._commands.clear()
        for ack in acks:
            do_ack(ack.queue_name, ack.message_id)
        sha = broker.scripts["dispatch"].sha
        with broker.client.pipeline(transaction=False) as pipeline:
            for command in self._commands:
                pipeline.evalsha(sha, *command)
            answers = pipeline.execute(raise_on_error=False)
        refused = [
            ack for ack, answer in zip(acks, answers, strict=True) if isinstance(answer, Exception)
        ]
        if refused:
            # A server that was restarted has lost the script; the host's way brings it back.
            broker.do_ack(refused[0].queue_name, refused[0].message_id)
        return refused[1:]

    def _collect(self, args: Sequence[Any], keys: Sequence[str]) -> None:
        """Note a call of the host's script."""
        self._commands.append((len(keys), *keys, *args))


@dataclass(eq=False)
class _Ack:
    """An acknowledgement."""

    #: Free once it may be sent; None for a mark that is no acknowledgement.
    committed: Receipt | None
    queue_name: str
    #: The broker's own name of the message.
    message_id: str
    #: Free once it is sent, if anyone waits for that.
    sent: threading.Lock | None


class _HandingConsumer(Consumer):
    """A consumer of the host's, whose acknowledgements are handed over if they were announced.

    Parameters:
      consumer: The host's.
      acks: Who takes them over.
    """

    def __init__(self, consumer: Any, acks: HandedAcks) -> None:
        self._consumer = consumer
        self._acks = acks
        self._room = threading.Event()
        #: Below this many that are fetched and not acknowledged it is time to fetch.
        self._low = consumer.prefetch // 2

    def __next__(self) -> MessageProxy | None:
        consumer = self._consumer
        if not consumer.message_cache and consumer.outstanding_message_count >= consumer.prefetch:
            # The host would look again after a sleep, in which short jobs run out.
            self._room.clear()
            if consumer.outstanding_message_count > self._low:
                self._room.wait(ROOM_WITHIN)
        message: MessageProxy | None = next(consumer)
        return message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def ack(self, message: MessageProxy) -> None:
        consumer = self._consumer
        if self._acks._hand_over(consumer.queue_name, message):
            consumer.queued_message_ids.discard(message.message_id)
        else:
            consumer.ack(message)
        self._make_room()

    def nack(self, message: MessageProxy) -> None:
        self._consumer.nack(message)
        self._make_room()

    def _make_room(self) -> None:
        if not self._room.is_set() and self._consumer.outstanding_message_count <= self._low:
            self._room.set()

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        self._consumer.requeue(messages)

    def close(self) -> None:
        self._consumer.close()


def _tells(middleware: Any) -> bool:
    """Tell whether a middleware wants to know of acknowledgements."""
    own = getattr(type(middleware), "after_ack", None)
    return own is not Middleware.after_ack or "after_ack" in vars(middleware)
