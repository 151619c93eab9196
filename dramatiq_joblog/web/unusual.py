"""Job types compared with their own past, the worst change first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.reading.compared import in_words
from dramatiq_joblog.statistics.changes import Change, changes
from dramatiq_joblog.statistics.series import Percentiles

from . import charts, duration_charts
from .common import COUNTED_AT_MOST
from .periods import WEEK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .context import Visit
    from .periods import Period

#: The number of weeks to compare with: older totals are daily.
WEEKS = 2
#: One day.
_DAY = timedelta(days=1)


@dataclass
class Past:
    """A period, and the same period some weeks before."""

    now: Any
    before: list[Any]
    changes: list[Change]

    @property
    def was(self) -> dict[str, Any]:
        """The groups of the week before, by name."""
        return {group.name: group for group in self.before[0].groups} if self.before else {}


def past(visit: Visit, period: Period) -> Past | None:
    """Return the statistics of a period and the earlier ones; None if that takes too long."""
    log, keep = visit.joblog, visit.site.keep

    def now() -> Any:
        return log.stats(since=period.since, until=period.until, by="name", at_most=COUNTED_AT_MOST)

    def before() -> list[Any]:
        found = []
        for week in range(1, WEEKS + 1):
            since, until = period.ago(week * WEEK)
            stats = log.stats(since=since, until=until, by="name", at_most=COUNTED_AT_MOST)
            # Do not compare with a period that is only partly known.
            if stats.groups and stats.known_since is None:
                found.append(stats)
        return found

    stats = visit.part(
        "the charts", lambda: keep(f"stats {period.key}", now, times=period.times), None
    )
    if visit.whole(stats) is None:
        return None
    # Past figures do not change; they are queried again only to follow the clock.
    none: list[Any] = []
    earlier = visit.part(None, lambda: keep(f"before {period.key}", before, times=150), none)
    return Past(stats, earlier, changes(stats, earlier))


def type_rows(found: Past, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the job types, the worst change against their own past first."""
    by_name: dict[str, list[Change]] = {}
    for change in found.changes:
        if change.kind != "error":
            by_name.setdefault(change.name, []).append(change)
    groups = {group.name: group for group in found.now.groups}
    names = [*groups, *(name for name in by_name if name not in groups)]

    def rank(name: str) -> float:
        return max((c.surprise for c in by_name.get(name, ()) if c.is_worse), default=0.0)

    names.sort(key=lambda name: -rank(name))
    return [_row(name, groups.get(name), by_name.get(name, ()), found) for name in names[:limit]]


def _row(name: str, group: Any, changed: Sequence[Change], found: Past) -> dict[str, Any]:
    earlier = found.was.get(name)
    was = None if earlier is None else Percentiles.of(earlier.durations).p95
    counts: dict[str, int] = {} if group is None else group.counts
    ended = sum(counts.get(outcome, 0) for outcome in ("finished", "dead", "skipped"))
    failed = counts.get("dead", 0) + counts.get("retried", 0)
    ran = counts.get("finished", 0) + failed
    duration = None if group is None else Percentiles.of(group.durations)
    numbers = []
    if group is not None:
        rows = zip(*(group.series[o] for o in ("finished", "dead", "skipped")), strict=True)
        numbers = [sum(row) for row in rows]
    worse = [change for change in changed if change.is_worse]
    return {
        "name": name,
        "ended": ended,
        "spark": charts.spark(numbers, found.now.until, found.now.step),
        "strip": None if duration is None else duration_charts.strip(duration, was),
        "p95": None if duration is None else duration.p95,
        "failed": failed / ran if ran else None,
        "is_failing": any(change.kind == "failed" for change in worse),
        "said": [in_words(change) for change in (worse or changed)[:2]],
        "is_worse": bool(worse),
        "compared": bool(found.before),
    }


def last_week(period: Period, zone: Any) -> str:
    """Return the name of the period a week before: ``last Friday``, ``the week before``."""
    if period.length <= _DAY / timedelta(milliseconds=1):
        return f"last {period.end.astimezone(zone):%A}"
    return "the week before"
