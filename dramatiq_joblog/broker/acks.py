"""Acknowledgements sent after the commit, a batch in one round trip.

The log must delay each acknowledgement or rejection until the job's outcome is committed.  With a
supported broker, the worker thread meanwhile continues with the next job, and a background thread
sends all committed acknowledgements in one command.  This saves more than the log costs.
"""

from __future__ import annotations

import queue
import re
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from dramatiq.broker import Consumer
from dramatiq.common import q_name
from dramatiq.logging import get_logger
from dramatiq.middleware import Middleware

from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.recording.inbox import locked

from .options import DELAY_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

    from dramatiq_joblog.recording.inbox import Receipt

    from .ahead import Ahead

#: The number of unsent acknowledgements from which on worker threads wait for theirs.
MAX_WAITING = 1_000
#: The maximum number sent in one round trip.
MAX_BATCH = 500
#: Milliseconds that an acknowledgement waits for others, if no thread waits for it.
GATHER = 8
#: If at least MANY have arrived meanwhile, it waits GATHER_MORE milliseconds for more: a round trip
#: costs about the same for many acknowledgements as for one.
MANY, GATHER_MORE = 4, 16
#: Seconds until a failed round trip is retried: at first, and at most.
RETRY_AFTER, RETRY_AT_MOST = 0.1, 5.0

#: Seconds to wait for jobs to end before Dramatiq checks by itself whether it may fetch more.
ROOM_WITHIN = 0.01

#: Does for many messages what Dramatiq's script does for one, if the consumer still has them.
_SETTLE = """
for i = 2, #ARGV, 2 do
    local how, id = ARGV[i], ARGV[i + 1]
    if redis.call("srem", KEYS[1], id) > 0 then
        local message = how == "nack" and redis.call("hget", KEYS[2], id)
        if message then
            redis.call("zadd", KEYS[3], ARGV[1], id)
            redis.call("hset", KEYS[4], id, message)
        end
        redis.call("hdel", KEYS[2], id)
    end
end
"""
#: The commands of Dramatiq's consumers that are replaced by one command.
_COMMANDS = ("do_ack", "do_nack")
#: The parts that Dramatiq's script must have for that, ignoring comments and blanks.
_HOSTS_WAY = [
    """local acks = namespace .. ":__acks__." .. worker_id""",
    """local queue_acks = acks .. "." .. queue_name""",
    """local queue_full_name = namespace .. ":" .. queue_name""",
    """local queue_messages = queue_full_name .. ".msgs\"""",
    """local xqueue_full_name = namespace .. ":" .. queue_canonical_name .. ".XQ\"""",
    """local xqueue_messages = xqueue_full_name .. ".msgs\"""",
    """elseif command == "ack" then local message_id = ARGS[1]
    if redis.call("srem", queue_acks, message_id) > 0 then
        redis.call("hdel", queue_messages, message_id)
    end elseif""",
    """elseif command == "nack" then local message_id = ARGS[1]
    if redis.call("srem", queue_acks, message_id) > 0 then
        local message = redis.call("hget", queue_messages, message_id)
        if message then
            redis.call("zadd", xqueue_full_name, timestamp, message_id)
            redis.call("hset", xqueue_messages, message_id, message)
            redis.call("hdel", queue_messages, message_id)
        end
    end elseif""",
]

#: The ways to acknowledge.
Acks: TypeAlias = Literal["auto", "handed", "plain"]
ACKS: tuple[str, ...] = get_args(Acks)


def why_not(broker: Broker) -> str | None:
    """Return why a broker's acknowledgements cannot be batched; None if they can.

    Brokers of unknown classes and versions are left unchanged.
    """
    redis = sys.modules.get("dramatiq.brokers.redis")
    if redis is None or not isinstance(broker, redis.RedisBroker):
        return f"it is a {type(broker).__name__}, and only a RedisBroker supports it"
    changed = [
        name
        for name in ("_dispatch", "__getattr__", "consumer_class", "consume")
        if getattr(type(broker), name) is not getattr(redis.RedisBroker, name)
    ]
    # Dramatiq's are made by its __getattr__.
    changed += [name for name in _COMMANDS if hasattr(type(broker), name)]
    if changed:
        return f"{type(broker).__name__} has a {changed[0]} of its own"
    if "consume" in vars(broker):
        return "its consume() was replaced, perhaps by another log's middleware"
    if not isinstance(broker.client, redis.redis.Redis):
        return f"its client is a {type(broker.client).__name__}, and no redis.Redis"
    return _why_not_this_version(broker)


def _why_not_this_version(broker: Any) -> str | None:
    version = metadata.version("dramatiq")
    if int(version.split(".")[0]) > 2:
        return f"dramatiq {version} is newer than what this was written for"
    script = _without_blanks(re.sub("--.*", "", _script_of(broker)))
    if not all(_without_blanks(part) in script for part in _HOSTS_WAY):
        return "its script acknowledges differently from Dramatiq's own"
    return None


def _script_of(broker: Any) -> str:
    script = broker.scripts["dispatch"].script
    return script.decode() if isinstance(script, bytes) else str(script)


def _without_blanks(text: str) -> str:
    return re.sub(r"\s+", "", text)


class HandedAcks:
    """Sends the acknowledgements that the worker threads of one broker hand over.

    Parameters:
      broker: A broker for which :func:`why_not` returns None.
      commit: Makes the log commit submitted events.
      ahead: Commits starts ahead.
    """

    # Any: a RedisBroker, whose module needs the redis package.
    def __init__(self, broker: Any, commit: Callable[[], None], ahead: Ahead) -> None:
        self._broker = broker
        self._ahead = ahead
        self._commit = commit
        self._host_consume: Callable[..., Any] = broker.consume
        self._local = threading.local()
        self._waiting: queue.SimpleQueue[_Ack] = queue.SimpleQueue()
        #: Set by a thread that waits.
        self._hurry = threading.Event()
        #: Whether acknowledgements cannot be sent now.
        self._stuck = False
        self._settle = broker.client.register_script(_SETTLE)
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._logger = get_logger(__name__, type(self))
        #: Which of ``ack`` and ``nack`` a middleware listens to: its hooks must not run early, so
        #: worker threads wait for these.
        self._heard: frozenset[str] = frozenset()
        #: The queues whose consumers hand over acknowledgements.
        self._queues: set[str] = set()
        # All consumers are created here, also after a lost connection.
        broker.consume = self._consume

    # Called from worker threads

    def takes(self, broker: Broker, message: MessageProxy) -> bool:
        """Return whether the acknowledgement of *message* will be handed over.

        It is not while the broker's command is patched, for example by an instrumentation.
        """
        if broker is not self._broker or message.queue_name not in self._queues:
            return False
        return not any(name in vars(broker) for name in _COMMANDS)

    def after(self, committed: Receipt, message: MessageProxy) -> None:
        """Send this thread's next acknowledgement once *committed* is released."""
        self._local.next = committed, message

    def keep(self, message: MessageProxy) -> None:
        """Drop the acknowledgement of *message* that this thread hands over next.

        A copy of the message stays in this process, and is acknowledged instead.
        """
        self._local.next = None, message

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until all acknowledgements handed over before are sent.

        Returns:
          False if that took longer than *timeout*, in seconds.
        """
        if self._thread is None:
            return True
        sent = locked()
        self._waiting.put(_Ack(None, "", "", sent))
        self._hurry.set()
        return sent.acquire(timeout=timeout)

    def start_ahead(self, messages: Sequence[MessageProxy]) -> bool:
        """Commit starts ahead, as :meth:`Ahead.start` does."""
        try:
            return self._ahead.start(self._broker, messages)
        except Exception as e:  # noqa: BLE001
            # The consumer must go on; the threads commit these starts themselves.
            self._logger.debug("Starts are not committed ahead: %s", e)
            return False

    def count_longer(self) -> int:
        """Return how many runs last longer than those that are started ahead."""
        return self._ahead.count_longer()

    def withdraw(self, messages: Sequence[MessageProxy]) -> None:
        """Withdraw starts that were committed ahead, as :meth:`Ahead.withdraw` does."""
        self._ahead.withdraw(messages)

    def _consume(self, *args: Any, **kwargs: Any) -> Consumer:
        consumer = self._host_consume(*args, **kwargs)
        self._heard = frozenset(
            how for how in ("ack", "nack") for m in self._broker.middleware if _hears(m, how)
        )
        self._queues.add(consumer.queue_name)
        return _HandingConsumer(consumer, self)

    def _hand_over(
        self, queue_name: str, message: MessageProxy, how: Literal["ack", "nack"]
    ) -> bool:
        """Accept an announced acknowledgement; return False for any other."""
        committed, announced = getattr(self._local, "next", (None, None))
        if announced is not message:
            return False
        self._local.next = None, None
        if committed is None:
            return True
        wait = how in self._heard or self._waiting.qsize() >= MAX_WAITING
        sent = locked() if wait else None
        ack = _Ack(committed, queue_name, message.options["redis_message_id"], sent, how)
        if self._thread is None:
            self._start()
        self._waiting.put(ack)
        if self._stuck:
            # All threads are waiting, and the outcome need not wait for the broker.
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

    # Called on the background thread

    def _run(self) -> None:
        left: _Ack | None = None
        while True:
            ack = left or self._waiting.get()
            # By then most are committed, together with the starts of the next jobs.
            self._hurry.wait(GATHER / 1000)
            if ack.committed is not None and not ack.committed.acquire(blocking=False):
                self._commit()
                ack.committed.acquire()
            if self._waiting.qsize() >= MANY:
                self._hurry.wait(GATHER_MORE / 1000)
            self._hurry.clear()
            batch, left = self._gather(ack)
            self._send([a for a in batch if a.committed is not None and self._is_kept(a)])
            for sent in batch:
                if sent.sent is not None:
                    sent.sent.release()

    def _is_kept(self, ack: _Ack) -> bool:
        """Return whether the outcome is stored; if not, the message will be redelivered."""
        error = ack.committed.error if ack.committed is not None else None
        if error is not None:
            self._logger.error("Message %s could not be acknowledged: %s", ack.message_id, error)
        return error is None

    def _gather(self, first: _Ack) -> tuple[list[_Ack], _Ack | None]:
        """Return *first* and the committed ones after it, and the next that is not committed."""
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
        """Send acknowledgements; sending one twice is harmless."""
        pause = RETRY_AFTER
        while acks:
            try:
                acks = self._try(acks)
            except Exception as e:  # noqa: BLE001
                # Never give up: an unacknowledged message would run again.
                self._stuck = True
                self._commit()
                self._logger.warning(
                    "%d acknowledgements cannot be sent yet, and are tried again: %s", len(acks), e
                )
                time.sleep(pause)
                pause = min(pause * 2, RETRY_AT_MOST)
        self._stuck = False

    def _try(self, acks: list[_Ack]) -> list[_Ack]:
        """Send those of the first queue in one round trip; return the others."""
        name, broker = acks[0].queue_name, self._broker
        mine = [ack for ack in acks if ack.queue_name == name]
        queue, dead = f"{broker.namespace}:{name}", f"{broker.namespace}:{q_name(name)}.XQ"
        held = f"{broker.namespace}:__acks__.{broker.broker_id}.{name}"
        arguments: list[Any] = [host_now()]
        for ack in mine:
            arguments += (ack.how, ack.message_id)
        self._settle(keys=[held, f"{queue}.msgs", dead, f"{dead}.msgs"], args=arguments)
        return [ack for ack in acks if ack.queue_name != name]


@dataclass(eq=False)
class _Ack:
    """An acknowledgement, or a rejection."""

    #: Released once it may be sent; None for a marker that is not an acknowledgement.
    committed: Receipt | None
    queue_name: str
    #: The broker's ID of the message.
    message_id: str
    #: Released once it is sent; None if no thread waits.
    sent: threading.Lock | None
    how: Literal["ack", "nack"] = "ack"


class _HandingConsumer(Consumer):
    """A wrapper of Dramatiq's consumer that hands over announced acknowledgements.

    Parameters:
      consumer: Dramatiq's consumer.
      acks: Receives the acknowledgements.
    """

    def __init__(self, consumer: Any, acks: HandedAcks) -> None:
        self._consumer = consumer
        self._acks = acks
        self._room = threading.Event()
        #: Fetch again below this number of unacknowledged messages: larger batches cost less, but
        #: no thread should have to wait for one.
        self._low = consumer.prefetch // 2
        #: Whether the last messages were all of actors with short runs, and started ahead.
        self._are_brief = False
        #: Messages that were fetched and not handed over yet.
        self._ready: deque[MessageProxy] = deque()
        self._is_delayed = consumer.queue_name.endswith(DELAY_SUFFIX)

    def __next__(self) -> MessageProxy | None:
        consumer = self._consumer
        if self._ready:
            return self._ready.popleft()
        # Short runs end before more can be fetched, so that larger batches delay nothing.
        waits_from = self._low + 1 if self._are_brief else consumer.prefetch
        if not consumer.message_cache and consumer.outstanding_message_count >= waits_from:
            # Dramatiq would sleep before it checks again, and short jobs would run out meanwhile.
            self._room.clear()
            if consumer.outstanding_message_count > self._low:
                self._room.wait(ROOM_WITHIN)
        message: MessageProxy | None = next(consumer)
        self._are_brief = False
        if message is None or self._is_delayed or not consumer.message_cache:
            return message
        # Kept here, so that none is lost if the connection breaks now.
        self._ready.append(message)
        self._start_ahead()
        return self._ready.popleft()

    def _start_ahead(self) -> None:
        """Take all other messages that were fetched, and commit starts together."""
        consumer = self._consumer
        # Only while the cache holds some: it would fetch more.
        while consumer.message_cache and (other := next(consumer)) is not None:
            self._ready.append(other)
        self._are_brief = self._acks.start_ahead(list(self._ready))
        if self._are_brief:
            # Longer runs do not end meanwhile.
            self._low = consumer.prefetch // 8 + self._acks.count_longer()
        else:
            self._low = consumer.prefetch // 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def ack(self, message: MessageProxy) -> None:
        if not self._hand_over(message, "ack"):
            self._consumer.ack(message)
        self._make_room()

    def nack(self, message: MessageProxy) -> None:
        if not self._hand_over(message, "nack"):
            self._consumer.nack(message)
        self._make_room()

    def _hand_over(self, message: MessageProxy, how: Literal["ack", "nack"]) -> bool:
        consumer = self._consumer
        if not self._acks._hand_over(consumer.queue_name, message, how):
            return False
        consumer.queued_message_ids.discard(message.message_id)
        return True

    def _make_room(self) -> None:
        if not self._room.is_set() and self._consumer.outstanding_message_count <= self._low:
            self._room.set()

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        messages = list(messages)
        # Before another process can take them.
        self._acks.withdraw(messages)
        self._consumer.requeue(messages)

    def close(self) -> None:
        ready, self._ready = self._ready, deque()
        try:
            self.requeue(ready)
        finally:
            self._consumer.close()


def _hears(middleware: Any, how: str) -> bool:
    """Return whether a middleware has hooks for acknowledgements, or for rejections."""
    name = f"after_{how}"
    own = getattr(type(middleware), name, None)
    return own is not getattr(Middleware, name) or name in vars(middleware)
