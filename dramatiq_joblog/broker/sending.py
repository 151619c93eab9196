"""Enqueues many messages, in as few round trips as their broker allows.

Redis takes many in one: the host's own code makes each command, and redis-py's pipeline sends
them together.  Any other broker is given them one by one.
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

#: What a broker may raise for one message, and take the next.
_OF_ONE = (ActorNotFound, MiddlewareError, QueueNotFound)


@dataclass
class Sending:
    """Messages that are being enqueued, and what became of them; each has an id of its own."""

    #: Those that the broker has, by their ids.
    sent: dict[str, Message[Any]] = field(default_factory=dict)
    #: Why one was not taken, by its id.
    refused: dict[str, Exception] = field(default_factory=dict)

    def send(
        self, broker: Broker, messages: Sequence[Message[Any]], ours: Enqueue | None = None
    ) -> None:
        """Enqueue *messages* in their order.

        Parameters:
          broker: Where to.
          messages: What.
          ours: The ``enqueue`` that the log's middleware put around the broker's own, if it did.

        Raises:
          Exception: If the broker is unavailable; of those that are neither sent nor refused
            then, nobody knows.
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
        """Enqueue messages in one round trip of Redis: it takes all or, if it fails, none."""
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
            # The server itself, as when its memory is full: the next would fare no better.
            raise failed[0]

    @contextlib.contextmanager
    def _refusing(self, message: Message[Any]) -> Iterator[None]:
        """Note an error that is about this message alone, and let any other pass."""
        try:
            yield
        except Exception as e:
            if not _is_of_one(e, message):
                raise
            self.refused[message.message_id] = e


def _is_of_one(error: Exception, message: Message[Any]) -> bool:
    """Return whether an error is about one message, and not about its broker or the log."""
    if isinstance(error, DatabaseAwayError):
        return False
    if isinstance(error, _OF_ONE):
        return True
    try:
        message.encode()
    except Exception:  # noqa: BLE001
        # The user's own encoder.
        return True
    return False


class _Collector:
    """A Redis broker whose commands go into a pipeline.

    Parameters:
      broker: The broker.
      pipeline: A pipeline of its client.
    """

    def __init__(self, broker: Any, pipeline: Any) -> None:
        self._broker = broker
        #: The messages, each with the call that says it is enqueued.
        self.enqueued: list[tuple[Message[Any], Callable[[], None]]] = []
        # The host's own code makes the command, and the middleware sees its own broker.
        dispatch = functools.partial(broker.scripts["dispatch"], client=pipeline)
        self._copy = copy.copy(broker)
        self._copy.scripts = broker.scripts | {"dispatch": dispatch}
        self._copy.emit_before = broker.emit_before
        self._copy.emit_after = self._note

    def enqueue(self, message: Message[Any]) -> None:
        """Add a message to the pipeline."""
        type(self._broker).enqueue(self._copy, message)

    def _note(self, signal: str, message: Message[Any], *rest: Any) -> None:
        """Keep what is to be called once the message is enqueued."""
        emit = functools.partial(self._broker.emit_after, signal, message, *rest)
        self.enqueued.append((message, emit))


def can_pipeline(broker: Broker, ours: Enqueue | None = None) -> bool:
    """Return whether messages of a broker may be enqueued in one round trip.

    *ours* is the ``enqueue`` that the log's middleware put around the broker's own: it looks
    after keys that messages take, which these do not.
    What is not known by its class and version is enqueued as it is, one by one.
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
    """Return whether a message takes a key as it is sent, which ``enqueue`` looks after."""
    return UNIQUE in message.options or bool(option(broker, message, "unique"))
