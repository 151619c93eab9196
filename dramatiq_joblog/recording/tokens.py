"""Tokens of runs: one for each run; runs of one delivery share its beginning."""

from __future__ import annotations

import hashlib
import os
import random

from dramatiq_joblog.payload.sanitize import fold_jid

#: As many characters of a token are the mark of its run's delivery.
_MARK = 12
#: How the mark of a delivery begins that the broker has no name for: no hexadecimal digit.
_STAMPED = "s"

#: Our own, whatever jobs seed theirs with.  To ask the system each time gives the interpreter away.
_random = random.Random()  # noqa: S311
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_token(delivery: str | None, *, stamped: bool = False) -> str:
    """Return a token for a run; those of one *delivery* of the broker begin in the same way.

    Parameters:
      delivery: The delivery's name, if it has one.
      stamped: Whether it has its name from us, and not from the broker.
    """
    if delivery is None:
        return f"{_random.getrandbits(112):028x}"
    mark = hashlib.sha256(fold_jid(delivery).encode()).hexdigest()[:_MARK]
    if stamped:
        mark = _STAMPED + mark[1:]
    return f"{mark}{_random.getrandbits(64):016x}"


def same_delivery(token: str | None, other: str) -> bool:
    """Return whether two runs were of one delivery, so that the second is a redelivery."""
    return token is not None and token[:_MARK] == other[:_MARK]


def mark_of(token: str) -> str:
    """Return what the tokens of all runs of one delivery begin with."""
    return token[:_MARK]


def is_stamped(token: str) -> bool:
    """Return whether the delivery of a run has its name from us, and not from the broker."""
    return token.startswith(_STAMPED)


def random_bits(number: int) -> int:
    """Return a random number of so many bits, whatever jobs seed theirs with."""
    return _random.getrandbits(number)
