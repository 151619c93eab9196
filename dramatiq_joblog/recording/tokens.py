"""Tokens of runs: unique for each run; runs of the same delivery share a prefix."""

from __future__ import annotations

import hashlib
import os
import random

from dramatiq_joblog.payload.sanitize import fold_jid

#: The length of the prefix that identifies the delivery.
_MARK = 12
#: The first character if the broker has no ID for deliveries; not a hexadecimal digit.
_STAMPED = "s"

#: Separate from the generator that jobs may seed.  Asking the system would release the GIL.
_random = random.Random()  # noqa: S311
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_token(delivery: str | None, *, stamped: bool = False) -> str:
    """Return a token for a run; tokens of the same *delivery* share a prefix.

    Parameters:
      delivery: The delivery's ID, if it has one.
      stamped: Whether this package assigned the ID, not the broker.
    """
    if delivery is None:
        return f"{_random.getrandbits(112):028x}"
    mark = hashlib.sha256(fold_jid(delivery).encode()).hexdigest()[:_MARK]
    if stamped:
        mark = _STAMPED + mark[1:]
    return f"{mark}{_random.getrandbits(64):016x}"


def same_delivery(token: str | None, other: str) -> bool:
    """Return whether two runs have the same delivery, so that the second is a redelivery."""
    return token is not None and token[:_MARK] == other[:_MARK]


def mark_of(token: str) -> str:
    """Return the prefix that all runs of a delivery share."""
    return token[:_MARK]


def is_stamped(token: str) -> bool:
    """Return whether this package assigned the ID of a run's delivery."""
    return token.startswith(_STAMPED)


def random_bits(number: int) -> int:
    """Return a random number of *number* bits, from the generator that jobs cannot seed."""
    return _random.getrandbits(number)
