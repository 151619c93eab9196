"""Pauses that grow from one attempt to the next."""

from __future__ import annotations

import random
import time

#: Seconds between two tries: at first, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05


def rest(pause: float) -> float:
    """Sleep for about *pause* seconds; return the next pause."""
    # At random, so that waiting threads do not all wake at the same instant.
    time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
    return min(pause * 1.5, LONGEST_PAUSE)
