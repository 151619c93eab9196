"""What changed: the same hours now and before, compared by one measure.

Surprise is the factor by which something grew, relative to how much it usually varies, weighted by
the number of jobs.  Below :data:`USUAL` nothing unusual happened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median, pstdev
from typing import TYPE_CHECKING

from .cells import ENDS
from .histogram import Histogram
from .judging import fails_more, is_slower

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .series import ErrorCount, Group, Stats

#: Changes with less surprise, or with a smaller factor, are left out.
USUAL, SMALLEST = 1.0, 1.25
#: Percentiles of fewer jobs mean nothing.
LEAST = 20
#: Milliseconds below which a change of duration does not matter, whatever its factor.
NOTHING = {"duration": 50.0, "queue_time": 1000.0}
#: An error is rising from this many runs, and from this factor.
RISING, RISING_FACTOR = 3, 3.0
#: The surprise of something that is new, or that stopped: above all measured ones.
ABOVE = 1000.0


@dataclass(frozen=True)
class Change:
    """One change."""

    #: ``duration``, ``queue_time``, ``failed``, ``jobs``, ``error``, ``new`` or ``silent``.
    kind: str
    #: The job type or actor; for an error, its class.
    name: str
    #: Milliseconds, a share from 0 to 1, or a number of jobs or runs scaled to the same length of
    #: time, in the earlier period.
    before: float
    #: The same, now.
    now: float
    #: How surprising it is; :data:`ABOVE` or more for something new, or something that stopped.
    surprise: float
    #: The factor by which it grew; None if there is none.
    factor: float | None = None
    #: The actor, for an error.
    actor: str = ""

    @property
    def is_worse(self) -> bool:
        """Whether it is worse than before."""
        if self.kind in {"silent", "error"}:
            return self.factor is None or self.factor > 1
        return self.kind in {"duration", "queue_time", "failed"} and (self.factor or 0) > 1


def surprise(now: float, before: Sequence[float], jobs: int) -> float:
    """Return how surprising a number is compared with earlier ones; all are above zero.

    Example:
      >>> surprise(20, [10, 10], 100) > surprise(11, [10, 10], 100)
      True
    """
    known = [value for value in before if value > 0]
    if now <= 0 or not known:
        return 0.0
    spread = pstdev([math.log(value) for value in known])
    change = abs(math.log(now / median(known)))
    return change / max(spread, math.log(SMALLEST)) * math.log(1 + jobs)


def changes(now: Stats, before: Sequence[Stats]) -> list[Change]:
    """Return the changes compared with the same hours before, the most surprising first."""
    found = [*_of_groups(now, before), *_of_errors(now, before)]
    return sorted(found, key=lambda change: (-change.surprise, change.kind, change.name))


def _of_groups(now: Stats, before: Sequence[Stats]) -> Iterable[Change]:
    groups = {group.name: group for group in now.groups}
    past = [{group.name: group for group in stats.groups} for stats in before]
    names = dict.fromkeys([*groups, *(name for each in past for name in each)])
    for name in names:
        earlier = [each[name] for each in past if name in each]
        rates = [_ended(each.get(name)) / _length(s) for each, s in zip(past, before, strict=True)]
        yield from _of_one(name, groups.get(name), earlier, rates, _length(now))


def _of_one(
    name: str, group: Group | None, earlier: Sequence[Group], rates: Sequence[float], length: float
) -> Iterable[Change]:
    count, usually = _ended(group), (median(rates) * length if rates else 0.0)
    if rates and not any(rates) and count:
        yield Change("new", name, 0, count, ABOVE + math.log(1 + count))
        return
    # A type that also had no jobs in an earlier period has not fallen silent.
    if not count and rates and min(rates) * length >= RISING:
        yield Change("silent", name, usually, 0, 2 * ABOVE + math.log(1 + usually))
        return
    if group is None or not earlier:
        return
    for kind in ("duration", "queue_time"):
        current, others = _p95(group, kind), [_p95(each, kind) for each in earlier]
        known = [value for value in others if value is not None]
        found: list[Change] = []
        if current is not None and known:
            found = list(_compared(kind, name, current, known, count))
        yield from found
        if kind == "duration" and not any(change.is_worse for change in found):
            yield from _slower(group, earlier)
    yield from _of_failures(name, group, earlier)
    if any(rates):
        yield from _compared("jobs", name, float(count), [r * length for r in rates], count)


def _slower(group: Group, earlier: Sequence[Group]) -> Iterable[Change]:
    """Add job types that are a problem, although they have few jobs or varying times."""
    then = Histogram()
    for each in earlier:
        then.merge(each.durations)
    before, now = (float(max(1, h.percentile(0.95) or 0)) for h in (then, group.durations))
    if now > before and is_slower(group.durations, then):
        yield Change("duration", group.name, before, now, USUAL, now / before)


def _of_failures(name: str, group: Group, earlier: Sequence[Group]) -> Iterable[Change]:
    count = _ended(group)
    many = [each for each in earlier if _ended(each) >= LEAST]
    found: list[Change] = []
    if many and count >= LEAST:
        smooth = [_failed(each, never=0.5) for each in many]
        found = list(_compared("failed", name, _failed(group, never=0.5), smooth, count))
        before, share = median(_failed(each) for each in many), _failed(group)
        # Smoothed shares differ with the number of runs, even if none failed.
        found = [replace(change, before=before, now=share) for change in found if before or share]
    yield from found
    now, then = _runs(group), _runs(*earlier)
    if not any(change.is_worse for change in found) and fails_more(now, then):
        # If none failed before, assume one failure in all earlier runs and one more.
        factor = (now[0] / now[1]) / max(then[0] / then[1], 1 / (then[1] + 1))
        yield Change("failed", name, then[0] / then[1], now[0] / now[1], USUAL, factor)


def _compared(
    kind: str, name: str, now: float, before: Sequence[float], jobs: int
) -> Iterable[Change]:
    usually = median(before)
    if now <= 0 or usually <= 0:
        return
    factor = now / usually
    much = surprise(now, before, jobs)
    if much >= USUAL and not 1 / SMALLEST < factor < SMALLEST:
        yield Change(kind, name, usually, now, much, factor)


def _of_errors(now: Stats, before: Sequence[Stats]) -> Iterable[Change]:
    past = [{(e.error_type, e.actor): e.count for e in stats.errors} for stats in before]
    for error in now.errors:
        key = error.error_type, error.actor
        rates = [each.get(key, 0) / _length(s) for each, s in zip(past, before, strict=True)]
        usually = median(rates) * _length(now) if rates else 0.0
        if rates and not any(rates):
            much = ABOVE + math.log(1 + error.count)
            yield Change("error", *_named(error, 0, much), actor=error.actor)
        elif usually and error.count >= max(RISING, RISING_FACTOR * usually):
            much = math.log(error.count / usually) / math.log(SMALLEST) * math.log(1 + error.count)
            made = _named(error, usually, much)
            yield Change("error", *made, error.count / usually, actor=error.actor)


def _named(error: ErrorCount, before: float, much: float) -> tuple[str, float, float, float]:
    return error.error_type, before, float(error.count), much


def _ended(group: Group | None) -> int:
    return 0 if group is None else sum(group.counts.get(outcome, 0) for outcome in ENDS)


def _failed(group: Group, *, never: float = 0.0) -> float:
    """Return the share of runs that failed; *never* is used in place of zero failures."""
    bad, ran = _runs(group)
    return (bad + never) / (ran + 2 * never) if ran or never else 0.0


def _runs(*groups: Group) -> tuple[int, int]:
    """Return how many runs of some groups failed, and the number of all runs."""
    failed = sum(group.counts.get(name, 0) for group in groups for name in ("dead", "retried"))
    return failed, failed + sum(group.counts.get("finished", 0) for group in groups)


def _p95(group: Group, kind: str) -> float | None:
    histogram = group.durations if kind == "duration" else group.queue_times
    found = histogram.percentile(0.95) if histogram.count >= LEAST else None
    return None if found is None else max(float(found), NOTHING[kind])


def _length(stats: Stats) -> float:
    return max(1.0, (stats.until - stats.since).total_seconds())
