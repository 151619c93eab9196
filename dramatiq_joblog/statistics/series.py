"""What became of the jobs of a time: series to draw, percentiles, and what failed most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from dramatiq_joblog.schema.models import instant_of
from dramatiq_joblog.states import Outcome, State

from .histogram import Histogram
from .rollups import DAY, HOUR, MINUTE, QUARTER

if TYPE_CHECKING:
    from datetime import datetime

    from .rollups import Sums

#: How a run can end, as the series are named: first how its job ended, then the others.
OUTCOMES = (
    State.FINISHED.value,
    State.SKIPPED.value,
    State.DEAD.value,
    Outcome.RETRIED.value,
    Outcome.INTERRUPTED.value,
    Outcome.WAITED.value,
)
#: What there can be groups of.
GroupedBy: TypeAlias = Literal["job_type", "actor", "name"]
GROUPED_BY: tuple[str, ...] = get_args(GroupedBy)

#: Milliseconds in which a worker has counted what ended, and far more.
SOON_COUNTED = 10 * MINUTE
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

    #: The job type or the actor; empty for jobs without a type, unless they go by their name.
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
    #: How many of them in each step of the time.
    series: list[int]


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
    #: Since when it is complete: no totals have what ended before, and it was too much to be
    #: counted.  None if all of it is.
    known_since: datetime | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many, by outcome."""
        return {outcome: sum(numbers) for outcome, numbers in self.series.items()}


def step_of(length: int) -> int:
    """Return the step for a time of *length* milliseconds: some hundreds of them at most."""
    return next((step for longest, step in _STEPS if length <= longest), DAY)


def make(sums: Sums, begin: int, end: int, step: int, known_since: datetime | None = None) -> Stats:
    """Make the statistics of a time from what was counted in it."""
    steps = (end - begin) // step

    def empty() -> dict[str, list[int]]:
        return {outcome: [0] * steps for outcome in OUTCOMES}

    series = empty()
    groups: dict[str, Group] = {}
    for (at, name, outcome), count in sums.counts.items():
        index = (at - begin) // step
        group = groups.get(name)
        if group is None:
            group = groups[name] = Group(
                name,
                empty(),
                dict.fromkeys(OUTCOMES, 0),
                sums.durations.get(name, Histogram()),
                sums.queue_times.get(name, Histogram()),
            )
        series[outcome][index] += count
        group.series[outcome][index] += count
        group.counts[outcome] += count
    return Stats(
        since=instant_of(begin),
        until=instant_of(end),
        step=step,
        times=[instant_of(at) for at in range(begin, end, step)],
        series=series,
        groups=sorted(groups.values(), key=lambda g: (-sum(g.counts.values()), g.name)),
        errors=_errors(sums, begin, step, steps),
        known_since=known_since,
    )


def _errors(sums: Sums, begin: int, step: int, steps: int) -> list[ErrorCount]:
    series: dict[tuple[str, str], list[int]] = {}
    for (at, *kind), count in sums.errors.items():
        numbers = series.setdefault((kind[0], kind[1]), [0] * steps)
        numbers[(at - begin) // step] += count
    errors = [ErrorCount(*kind, sum(numbers), numbers) for kind, numbers in series.items()]
    return sorted((e for e in errors if e.count), key=lambda e: (-e.count, e.error_type, e.actor))
