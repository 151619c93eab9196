"""What became of the jobs of a time: series to draw, percentiles, and what failed most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import SearchError
from .histogram import Histogram
from .models import instant_of
from .states import Outcome, State
from .totals import DAY, HOUR, MINUTE, QUARTER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from .totals import Cell

#: How a run can end, as the series are named: first how its job ended, then the others.
OUTCOMES = (
    State.FINISHED.value,
    State.SKIPPED.value,
    State.DEAD.value,
    Outcome.RETRIED.value,
    Outcome.INTERRUPTED.value,
    Outcome.WAITED.value,
)
#: Ends of jobs, and ends of runs that failed.
_ENDS = {"finished", "skipped", "dead"}
_FAILED = {"dead", "retried"}
#: What :func:`make` can group by.
GROUPED_BY = ("job_type", "actor")

#: Up to which length of time which steps are drawn.
_STEPS = ((6 * HOUR, MINUTE), (3 * DAY, QUARTER), (14 * DAY, HOUR))


@dataclass(frozen=True)
class Percentiles:
    """How long some runs took: milliseconds, right to a tenth; None if there were none."""

    count: int
    p50: int | None
    p95: int | None
    p99: int | None

    @classmethod
    def of(cls, histogram: Histogram) -> Percentiles:
        """Read them from a histogram."""
        p50, p95, p99 = (histogram.percentile(share) for share in (0.5, 0.95, 0.99))
        return cls(histogram.count, p50, p95, p99)


@dataclass
class Group:
    """What became of the jobs of one job type, or of one actor."""

    #: The job type or the actor; empty for jobs without one.
    name: str
    #: How many, by outcome, in each step of the time.
    series: dict[str, list[int]]
    #: How many, by outcome.
    counts: dict[str, int] = field(default_factory=dict)
    #: How long the last runs of jobs that ended took.
    durations: Histogram = field(default_factory=Histogram)
    #: How long they waited before their first run.
    queue_times: Histogram = field(default_factory=Histogram)

    @property
    def duration(self) -> Percentiles:
        """Percentiles of :attr:`durations`."""
        return Percentiles.of(self.durations)

    @property
    def queue_time(self) -> Percentiles:
        """Percentiles of :attr:`queue_times`."""
        return Percentiles.of(self.queue_times)


@dataclass(frozen=True)
class ErrorCount:
    """How many runs failed with one error in one actor."""

    error_type: str
    actor: str
    #: Runs that were retried and jobs that are dead.
    count: int


@dataclass
class Stats:
    """What became of the jobs that ended in a time."""

    #: Begin of the first step and end of the last.
    since: datetime
    until: datetime
    #: Milliseconds that each step is long.
    step: int
    #: Begin of each step.
    times: list[datetime]
    #: How many, by outcome (one of :data:`OUTCOMES`), in each step.
    series: dict[str, list[int]]
    #: By job type or actor, the one with most jobs first.
    groups: list[Group]
    #: What failed, the most frequent first.
    errors: list[ErrorCount]

    @property
    def counts(self) -> dict[str, int]:
        """How many, by outcome."""
        return {outcome: sum(numbers) for outcome, numbers in self.series.items()}


def step_of(length: int) -> int:
    """Return the step for a time of *length* milliseconds: some hundreds of them at most."""
    return next((step for longest, step in _STEPS if length <= longest), DAY)


def make(cells: Iterable[Cell], begin: int, end: int, step: int, by: str) -> Stats:
    """Make the statistics of a time from what was counted in it.

    Raises:
      SearchError: If *by* is nothing to group by.
    """
    if by not in GROUPED_BY:
        raise SearchError(f"by={by!r} is nothing to group by: use one of {', '.join(GROUPED_BY)}")
    steps = (end - begin) // step

    def empty() -> dict[str, list[int]]:
        return {outcome: [0] * steps for outcome in OUTCOMES}

    series = empty()
    groups: dict[str, Group] = {}
    errors: dict[tuple[str, str], int] = {}
    for cell in cells:
        index = (cell.at - begin) // step
        name = getattr(cell, by)
        group = groups.setdefault(name, Group(name, empty(), dict.fromkeys(OUTCOMES, 0)))
        series[cell.outcome][index] += cell.count
        group.series[cell.outcome][index] += cell.count
        group.counts[cell.outcome] += cell.count
        if cell.outcome in _ENDS:
            group.durations.merge(cell.durations)
            group.queue_times.merge(cell.queue_times)
        if cell.outcome in _FAILED:
            key = (cell.error_type, cell.actor)
            errors[key] = errors.get(key, 0) + cell.count
    return Stats(
        since=instant_of(begin),
        until=instant_of(end),
        step=step,
        times=[instant_of(at) for at in range(begin, end, step)],
        series=series,
        groups=sorted(groups.values(), key=lambda g: (-sum(g.counts.values()), g.name)),
        errors=sorted(
            (ErrorCount(*key, count) for key, count in errors.items()),
            key=lambda e: (-e.count, e.error_type, e.actor),
        ),
    )
