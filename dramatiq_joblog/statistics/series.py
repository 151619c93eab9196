"""Statistics of a period: series for charts, percentiles, and the most frequent errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from dramatiq_joblog.schema.models import instant_of
from dramatiq_joblog.states import Outcome, State

from .cells import DAY, HOUR, MINUTE, QUARTER
from .histogram import Histogram

if TYPE_CHECKING:
    from datetime import datetime

    from .cells import Sums

#: The outcomes that name the series: first those that end a job, then the others.
OUTCOMES = (
    State.FINISHED.value,
    State.SKIPPED.value,
    State.DEAD.value,
    Outcome.RETRIED.value,
    Outcome.INTERRUPTED.value,
    Outcome.WAITED.value,
)
#: What groups are formed by.
GroupedBy: TypeAlias = Literal["job_type", "actor", "name"]
GROUPED_BY: tuple[str, ...] = get_args(GroupedBy)

#: Milliseconds within which a worker has certainly counted what ended.
SOON_COUNTED = 10 * MINUTE
#: The length of the steps, for periods up to each length.
_STEPS = ((6 * HOUR, MINUTE), (3 * DAY, QUARTER), (14 * DAY, HOUR))


@dataclass(frozen=True)
class Percentiles:
    """How long some runs took: milliseconds, exact to a tenth; None if there were none."""

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
    """Statistics of the jobs of one job type, or of one actor."""

    #: The job type or the actor; empty for jobs without a type, unless grouped by ``"name"``.
    name: str
    #: The number of runs, by outcome, in each step.
    series: dict[str, list[int]]
    #: The number of runs, by outcome.
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
    """The number of runs that failed with one error in one actor."""

    error_type: str
    actor: str
    #: Runs that were retried and jobs that are dead.
    count: int
    #: Their number in each step.
    series: list[int]


@dataclass
class Stats:
    """Statistics of the jobs that ended in a period."""

    #: Start of the first step, and end of the last.
    since: datetime
    until: datetime
    #: Length of each step, in milliseconds.
    step: int
    #: Start of each step.
    times: list[datetime]
    #: The number of runs, by outcome (one of :data:`OUTCOMES`), in each step.
    series: dict[str, list[int]]
    #: By job type or actor, the one with most jobs first.
    groups: list[Group]
    #: The errors, the most frequent first.
    errors: list[ErrorCount]
    #: The time from which it is complete: earlier ends are in no total, and were too many to be
    #: counted.  None if all of it is complete.
    known_since: datetime | None = None

    @property
    def counts(self) -> dict[str, int]:
        """The number of runs, by outcome."""
        return {outcome: sum(numbers) for outcome, numbers in self.series.items()}


def step_of(length: int) -> int:
    """Return the step for a period of *length* milliseconds, which has at most some hundreds."""
    return next((step for longest, step in _STEPS if length <= longest), DAY)


def make(sums: Sums, begin: int, end: int, step: int, known_since: datetime | None = None) -> Stats:
    """Make the statistics of a period from its totals."""
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
