"""Whether a job type got worse, beyond chance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .histogram import Histogram

#: The least number of ended jobs in each period, to compare them.
MIN_JOBS = 10
#: They are slower from this factor, and from this many additional milliseconds.
SLOWER, MIN_SLOWER = 2.0, 100
#: They fail more often from this many failed runs, this factor, and this share of all runs.
MIN_FAILED, FAILING, MIN_FAILING = 3, 2.0, 0.05

#: The percentiles that are compared, and the uncertainty of each: for one job, in units of the
#: standard deviation of the logarithms.
_PARTS = ((0.5, 1.25), (0.95, 2.1))


def is_slower(now: Histogram, then: Histogram) -> bool:
    """Return whether jobs take longer than before, beyond chance."""
    if min(now.count, then.count) < MIN_JOBS:
        return False
    low, high = (max(1, then.percentile(share) or 0) for share in (0.16, 0.84))
    spread = max(0.05, math.log(high / low) / 2)
    few = math.sqrt(1 / now.count + 1 / then.count)
    for share, factor in _PARTS:
        before, after = (max(1, h.percentile(share) or 0) for h in (then, now))
        if after - before < MIN_SLOWER or after < SLOWER * before:
            continue
        if math.log(after / before) > 3 * factor * spread * few:
            return True
    return False


def fails_more(now: tuple[int, int], then: tuple[int, int]) -> bool:
    """Return whether runs fail more often than before, beyond chance.

    Parameters:
      now: The number of failed runs, and of all runs.
      then: The same, before.
    """
    (failed, runs), (failed_then, runs_then) = now, then
    if min(runs, runs_then) < MIN_JOBS or failed < MIN_FAILED:
        return False
    share, share_then = failed / runs, failed_then / runs_then
    more = share - share_then
    if more < MIN_FAILING or share < FAILING * share_then:
        return False
    both = (failed + failed_then) / (runs + runs_then)
    return more > 3 * math.sqrt(both * (1 - both) * (1 / runs + 1 / runs_then))
