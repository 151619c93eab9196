"""Which delivery of the broker a message is: a repetition, or a new one.

Redis gives each enqueued message a ``redis_message_id``, which survives a redelivery.  For brokers
without such an ID, we add a stamp to the message, renewed each time it is enqueued.

A delayed message is enqueued twice: with its delay, and after the delay by the thread that held it.
The second is a move of the same delivery.  If a worker is killed between the move and the
acknowledgement, the move is repeated, and only the first ID shows that the second copy is a
repetition.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from dramatiq_joblog.payload.sanitize import text_of
from dramatiq_joblog.recording.tokens import random_bits

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The option with the first ID of a delivery, and the ID under which it is valid.
STAMP = "joblog_delivery"
#: The option with Redis's ID.
_REDIS = "redis_message_id"


class _Moves(threading.local):
    #: Whether the thread only moves delayed messages now.
    on = False


_moves = _Moves()


class Delivery(NamedTuple):
    """The identity of a message's delivery."""

    #: Its ID, the same for each redelivery; None if unknown.
    name: str | None
    #: Whether this package assigned the ID, not the broker.
    stamped: bool = False


def delivery_of(message: Any) -> Delivery:
    """Return the identity of a message's delivery."""
    options = message.options
    own = _own_name(options)
    first, valid_under = _stamp_of(options)
    if own is not None:
        # A copy enqueued by other code has the original's stamp, but another ID.
        return Delivery(first if valid_under == own else own)
    return Delivery(first, stamped=True)


def hold(message: Any) -> None:
    """Stamp a delayed message with its delivery; its sender may not use this package."""
    name, _ = delivery_of(message)
    if name is None:
        name = f"{message.message_id} {message.options.get('eta')}"
    # It may be moved without a new ID of the broker.
    message.options[STAMP] = [name, _own_name(message.options)]


def stamp(message: Any) -> None:
    """Stamp a message that is being enqueued with its delivery."""
    options = message.options
    own = _own_name(options)
    first, _ = _stamp_of(options)
    if first is not None and is_move():
        options[STAMP] = [first, own]
    elif own is not None:
        options.pop(STAMP, None)
    else:
        options[STAMP] = [f"{random_bits(64):x}", None]


def only_moves() -> None:
    """Mark this thread as one that only moves delayed messages."""
    _moves.on = True


@contextlib.contextmanager
def moving() -> Iterator[None]:
    """Mark messages enqueued in the block as moves, on a thread that may also send others."""
    before = is_move()
    _moves.on = True
    try:
        yield
    finally:
        _moves.on = before


def is_move() -> bool:
    """Return whether this thread is moving delayed messages."""
    return _moves.on


def _own_name(options: Any) -> str | None:
    """Return the broker's ID of a delivery; other producers may write anything."""
    name = options.get(_REDIS)
    return None if name is None else text_of(name)


def _stamp_of(options: Any) -> tuple[str | None, str | None]:
    """Return the two parts of a message's stamp; other producers may write anything."""
    value = options.get(STAMP)
    if isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str):
        return value[0], value[1] if isinstance(value[1], str) else None
    return None, None
