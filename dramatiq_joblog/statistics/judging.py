"""Whether a job type got worse, by more than chance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .histogram import Histogram

#: Jobs that must have ended, now and then, to compare them.
MIN_JOBS = 10
#: They are slower if they take so many times as long, and so many milliseconds more.
SLOWER, MIN_SLOWER = 2.0, 100
#: They fail more often if so many runs do, so many times as often, and so much of all of them.
MIN_FAILED, FAILING, MIN_FAILING = 3, 2.0, 0.05

#: The parts of the jobs that are compared, and how uncertain the time of such a part is: of one
#: job, in units of the spread of the logarithms.
_PARTS = ((0.5, 1.25), (0.95, 2.1))


def is_slower(now: Histogram, then: Histogram) -> bool:
    """Return whether jobs take longer than they did, by more than chance would have it."""
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
    """Return whether more of the runs fail than did, by more than chance would have it.

    Parameters:
      now: How many runs failed, and how many there were.
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
