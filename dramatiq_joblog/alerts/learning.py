"""Job types that finish regularly, learnt from the totals."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.database.checkout import checked_out
from dramatiq_joblog.payload.values import iso_text
from dramatiq_joblog.schema.fields import instant_of
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import State
from dramatiq_joblog.statistics.cells import DAY, HOUR, MINUTE, QUARTER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from dramatiq_joblog.recording.log import Written
    from dramatiq_joblog.schema.tables import Tables

#: Spans of totals, how far back each is read, and how often a type must have finished.
_LOOKS = ((DAY, 120 * DAY, 5), (HOUR, 15 * DAY, 5), (QUARTER, 4 * DAY, 6), (MINUTE, 8 * HOUR, 8))
#: The least spans between two ends of a regular type; if fewer, a finer span is more precise.
_APART = 3
#: The longest gap may be at most this many times the usual one.
_EVEN = 1.6
#: From this many milliseconds on between two ends, they have a time of the day: the same of this
#: share of them, and of at least this many.
_DAILY, _MOSTLY, _LEAST_TIMES = 20 * HOUR, 0.8, 3


@dataclass(frozen=True)
class Regular:
    """A type of jobs that finishes regularly."""

    job_type: str
    #: Milliseconds between two ends, and about how many more the longest gap took.
    every: int
    grace: int
    #: How often it finished, and when last, in UTC.
    times: int
    last: datetime
    #: Milliseconds after midnight in UTC at which it usually finishes, to the quarter of an hour or
    #: the hour; None if that varies, or it runs more than once a day.
    usually: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as a dict for JSON."""
        return {
            "job_type": self.job_type,
            "every": self.every,
            "grace": self.grace,
            "times": self.times,
            "last": iso_text(self.last),
            "usually": self.usually,
        }


def regular_in(log: Written) -> list[Regular]:
    """Return the job types of a log that finish regularly, by name."""
    with checked_out(log.database):
        return regular_types(log.tables, log.locks.now())


def regular_types(tables: Tables[Any], now: int) -> list[Regular]:
    """Return the types of jobs that finish regularly, by name; *now* is in ms since 1970."""
    found: dict[str, Regular] = {}
    for span, back, least in _LOOKS:
        for job_type, ends in _ends(tables, span, now - back).items():
            regular = regular_of(job_type, ends, span, least)
            if regular is not None:
                # The longest spans come first: the longer of two is less likely to fit by chance.
                found.setdefault(job_type, regular)
    times = _times_of_day(tables, now, [r.job_type for r in found.values() if r.every >= _DAILY])
    return [replace(found[name], usually=times.get(name)) for name in sorted(found)]


def _times_of_day(tables: Tables[Any], now: int, names: list[str]) -> dict[str, int]:
    """Return at which time of the day types of jobs usually finish, of those that have one."""
    times: dict[str, int] = {}
    for span, back in ((QUARTER, 4 * DAY), (HOUR, 15 * DAY)) if names else ():
        for job_type, ends in _ends(tables, span, now - back).items():
            usual = time_of_day(ends, span)
            if job_type in names and usual is not None:
                times.setdefault(job_type, usual)
    return times


def time_of_day(ends: Iterable[int], span: int) -> int | None:
    """Return the time of the day of most ends, in milliseconds, as the begin of a span.

    Example:
      >>> time_of_day([n * DAY + 2 * HOUR for n in range(9)], HOUR) == 2 * HOUR
      True
      >>> time_of_day([n * DAY + n * HOUR for n in range(9)], HOUR) is None
      True
    """
    times = Counter(end % DAY for end in {*ends})
    if sum(times.values()) < _LEAST_TIMES:
        return None
    # One that ends about the full hour is of either hour.
    around = {at: count + times.get((at + span) % DAY, 0) for at, count in times.items()}
    best = max(around, key=lambda at: (around[at], -at))
    return best if around[best] >= _MOSTLY * sum(times.values()) else None


def regular_of(job_type: str, ends: Iterable[int], span: int, least: int) -> Regular | None:
    """Return the regularity of ends, given as starts of spans; None if they are not regular."""
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
    """Return the spans in which jobs of each type finished."""
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
