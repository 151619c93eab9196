"""Enqueues many messages in as few round trips as their broker allows.

On Redis, Dramatiq's own code makes each command, and redis-py's pipeline sends them together.  On
any other broker, messages are enqueued one by one.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import sys
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from dramatiq.errors import ActorNotFound, QueueNotFound
from dramatiq.middleware import MiddlewareError

from dramatiq_joblog.errors import DatabaseAwayError

from .options import UNIQUE, option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from dramatiq import Broker, Message

    Enqueue = Callable[..., Message[Any]]

#: Errors that concern a single message, not the broker.
_OF_ONE = (ActorNotFound, MiddlewareError, QueueNotFound)


@dataclass
class Sending:
    """Messages being enqueued, and the results; each message has a unique ID."""

    #: The messages that the broker has, by ID.
    sent: dict[str, Message[Any]] = field(default_factory=dict)
    #: The errors of refused messages, by ID.
    refused: dict[str, Exception] = field(default_factory=dict)

    def send(
        self, broker: Broker, messages: Sequence[Message[Any]], ours: Enqueue | None = None
    ) -> None:
        """Enqueue *messages* in their order.

        Parameters:
          broker: The broker to send to.
          messages: The messages.
          ours: The middleware's wrapper around the broker's ``enqueue``, if any.

        Raises:
          Exception: If the broker is unavailable; messages neither sent nor refused may or may
          not have arrived.
        """
        pipelines = can_pipeline(broker, ours)
        for together, some in itertools.groupby(
            messages, lambda message: pipelines and not _is_unique(broker, message)
        ):
            if together:
                self._send_together(broker, some)
            else:
                self._send_each(broker, some)

    def _send_each(self, broker: Broker, messages: Iterable[Message[Any]]) -> None:
        for message in messages:
            with self._refusing(message):
                self.sent[message.message_id] = broker.enqueue(message)

    def _send_together(self, broker: Any, messages: Iterable[Message[Any]]) -> None:
        """Enqueue messages in one round trip to Redis, atomically."""
        with broker.client.pipeline(transaction=True) as pipeline:
            collector = _Collector(broker, pipeline)
            for message in messages:
                with self._refusing(message):
                    collector.enqueue(message)
            answers = pipeline.execute(raise_on_error=False)
        failed = [answer for answer in answers if isinstance(answer, Exception)]
        for (message, emit), answer in zip(collector.enqueued, answers, strict=True):
            if not isinstance(answer, Exception):
                emit()
                self.sent[message.message_id] = message
        if failed:
            # A server error, such as full memory: the next message would fail too.
            raise failed[0]

    @contextlib.contextmanager
    def _refusing(self, message: Message[Any]) -> Iterator[None]:
        """Record an error that concerns only this message; let any other propagate."""
        try:
            yield
        except Exception as e:
            if not _is_of_one(e, message):
                raise
            self.refused[message.message_id] = e


def _is_of_one(error: Exception, message: Message[Any]) -> bool:
    """Return whether an error concerns one message, not its broker or the log."""
    if isinstance(error, DatabaseAwayError):
        return False
    if isinstance(error, _OF_ONE):
        return True
    try:
        message.encode()
    except Exception:  # noqa: BLE001
        # The user's encoder failed.
        return True
    return False


class _Collector:
    """A Redis broker whose commands go into a pipeline.

    Parameters:
      broker: The broker.
      pipeline: A pipeline of its Redis client.
    """

    def __init__(self, broker: Any, pipeline: Any) -> None:
        self._broker = broker
        #: The messages, each with the call that signals that it is enqueued.
        self.enqueued: list[tuple[Message[Any], Callable[[], None]]] = []
        # Dramatiq's own code makes the command, and the middleware gets the real broker.
        dispatch = functools.partial(broker.scripts["dispatch"], client=pipeline)
        self._copy = copy.copy(broker)
        self._copy.scripts = broker.scripts | {"dispatch": dispatch}
        self._copy.emit_before = broker.emit_before
        self._copy.emit_after = self._note

    def enqueue(self, message: Message[Any]) -> None:
        """Add a message to the pipeline."""
        type(self._broker).enqueue(self._copy, message)

    def _note(self, signal: str, message: Message[Any], *rest: Any) -> None:
        """Store a signal to emit once the message is enqueued."""
        emit = functools.partial(self._broker.emit_after, signal, message, *rest)
        self.enqueued.append((message, emit))


def can_pipeline(broker: Broker, ours: Enqueue | None = None) -> bool:
    """Return whether messages of a broker may be enqueued in one round trip.

    *ours* is the middleware's wrapper around the broker's ``enqueue``: it manages unique keys,
    which these messages do not have.  Brokers of unknown classes and versions get messages one
    by one.
    """
    redis = sys.modules.get("dramatiq.brokers.redis")
    if redis is None or not isinstance(broker, redis.RedisBroker):
        return False
    if int(metadata.version("dramatiq").split(".")[0]) > 2:
        return False
    known = ("enqueue", "_dispatch", "__getattr__", "emit_before", "emit_after")
    if any(getattr(type(broker), name) is not getattr(redis.RedisBroker, name) for name in known):
        return False
    replaced = vars(broker).get("enqueue")
    own: Any = broker.enqueue if replaced is None else getattr(ours, "__wrapped__", None)
    if (replaced is not None and replaced is not ours) or getattr(
        own, "__func__", None
    ) is not redis.RedisBroker.enqueue:
        return False
    return isinstance(broker.client, redis.redis.Redis)


def _is_unique(broker: Broker, message: Message[Any]) -> bool:
    """Return whether a message claims a unique key when it is sent, which needs the wrapper."""
    return UNIQUE in message.options or bool(option(broker, message, "unique"))
