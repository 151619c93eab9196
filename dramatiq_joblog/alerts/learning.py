"""Job types that finish regularly, learnt from the totals."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.schema.fields import instant_of
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import State
from dramatiq_joblog.statistics.rollups import DAY, HOUR, MINUTE, QUARTER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dramatiq_joblog.schema.tables import Tables

#: Spans of totals, how far back each is looked at, and how often a type must have finished.
_LOOKS = ((DAY, 120 * DAY, 5), (HOUR, 15 * DAY, 5), (QUARTER, 4 * DAY, 6), (MINUTE, 8 * HOUR, 8))
#: So many spans lie between two ends of what is regular at least: else a finer span says more.
_APART = 3
#: The longest time between two is so many times the usual one at most.
_EVEN = 1.6


@dataclass(frozen=True)
class Regular:
    """A type of jobs that finishes regularly."""

    job_type: str
    #: Milliseconds between two ends, and by how many more it was late at most, about.
    every: int
    grace: int
    #: How often that was seen, and the last time, in UTC.
    times: int
    last: datetime

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        last = self.last.astimezone(timezone.utc).isoformat(timespec="milliseconds")
        return {
            "job_type": self.job_type,
            "every": self.every,
            "grace": self.grace,
            "times": self.times,
            "last": last.replace("+00:00", "Z"),
        }


def regular_types(tables: Tables[Any], now: int) -> list[Regular]:
    """Return the types of jobs that finish regularly, by name; *now* is in ms since 1970."""
    found: dict[str, Regular] = {}
    for span, back, least in _LOOKS:
        for job_type, ends in _ends(tables, span, now - back).items():
            regular = regular_of(job_type, ends, span, least)
            if regular is not None:
                # The longest spans come first: of two that fit, the longer says less by chance.
                found.setdefault(job_type, regular)
    return [found[name] for name in sorted(found)]


def regular_of(job_type: str, ends: Iterable[int], span: int, least: int) -> Regular | None:
    """Return what is regular about ends, as begins of spans; None if nothing is."""
    at = sorted({*ends})
    gaps = [later - earlier for earlier, later in pairwise(at)]
    if len(at) < least:
        return None
    every = int(statistics.median(gaps))
    if every < _APART * span or max(gaps) > every * _EVEN or min(gaps) < every / _EVEN:
        return None
    grace = max(max(gaps) - every + span, every // 10)
    return Regular(job_type, every, grace, len(at), instant_of(at[-1]))


def _ends(tables: Tables[Any], span: int, since: int) -> dict[str, list[int]]:
    """Return in which spans jobs of each type finished."""
    total: Any = tables.total
    rows = (
        total.select(total.job_type, total.at)
        .where(
            total.span == span,
            total.at >= since,
            total.gone == 0,
            total.job_type != "",
            total.outcome == State.FINISHED.value,
            total.count > 0,
        )
        .distinct()
        .tuples()
    )
    ends: dict[str, list[int]] = {}
    for job_type, at in rows:
        ends.setdefault(job_type, []).append(to_millis(at))
    return ends
