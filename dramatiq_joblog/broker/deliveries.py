"""Which delivery of the broker a message is: the same again, or a new one.

Redis names each enqueue by ``redis_message_id``, and keeps the name through a redelivery.  Where
a broker has no such name, a stamp of ours travels with the message, renewed at each enqueue.

A delayed message is enqueued twice: with its delay, and once that is over, by the thread that
held it back.  That is a move of one delivery.  A worker that is killed between the move and the
acknowledgement makes the move happen again, and only the first name shows that the second copy
is a repetition.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from dramatiq_joblog.payload.sanitize import text_of
from dramatiq_joblog.recording.tokens import random_bits

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The option with the first name of a delivery, and the name it is valid under.
STAMP = "joblog_delivery"
#: The option in which Redis names an enqueue.
_REDIS = "redis_message_id"

_moves = threading.local()


class Delivery(NamedTuple):
    """What is known of a message's delivery."""

    #: Its name, the same each time it is delivered; None if nobody named it.
    name: str | None
    #: Whether it has its name from us, and not from the broker.
    stamped: bool = False


def delivery_of(message: Any) -> Delivery:
    """Return which delivery a message is."""
    options = message.options
    own = _own_name(options)
    first, valid_under = _stamp_of(options)
    if own is not None:
        # A copy that someone else enqueued has the stamp of the original, and another name.
        return Delivery(first if valid_under == own else own)
    return Delivery(first, stamped=True)


def hold(message: Any) -> None:
    """Note on a message that is held back which delivery it is; its sender may have no log."""
    name, _ = delivery_of(message)
    if name is None:
        name = f"{message.message_id} {message.options.get('eta')}"
    # It may go on as it is, under the broker's name that it has.
    message.options[STAMP] = [name, _own_name(message.options)]


def stamp(message: Any) -> None:
    """Note on a message that is being enqueued which delivery it will be."""
    options = message.options
    own = _own_name(options)
    first, _ = _stamp_of(options)
    if is_move() and first is not None:
        options[STAMP] = [first, own]
    elif own is not None:
        options.pop(STAMP, None)
    else:
        options[STAMP] = [f"{random_bits(64):x}", None]


def only_moves() -> None:
    """Note that this thread passes on messages that were held back, and sends none of its own."""
    _moves.on = True


@contextlib.contextmanager
def moving() -> Iterator[None]:
    """Pass on messages that were held back, on a thread that may send others too."""
    before = is_move()
    _moves.on = True
    try:
        yield
    finally:
        _moves.on = before


def is_move() -> bool:
    """Return whether this thread passes on messages that were held back."""
    return getattr(_moves, "on", False)


def _own_name(options: Any) -> str | None:
    """Return the name that the broker gave a delivery; another producer may write what it likes."""
    name = options.get(_REDIS)
    return None if name is None else text_of(name)


def _stamp_of(options: Any) -> tuple[str | None, str | None]:
    """Return the two parts of a message's stamp; another producer may write what it likes."""
    value = options.get(STAMP)
    if isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str):
        return value[0], value[1] if isinstance(value[1], str) else None
    return None, None
