"""Statistics of one job type over a period, step by step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dramatiq_joblog.schema.models import instant_of

from .cells import ENDS, FAILED
from .histogram import Histogram
from .series import OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from .cells import Cell


@dataclass
class Profile:
    """Statistics of the jobs of one type that ended in a period."""

    #: The job type, or the actor of jobs without one.
    name: str
    #: Start of the first step, and end of the last.
    since: datetime
    until: datetime
    #: Length of each step, in milliseconds.
    step: int
    #: Start of each step.
    times: list[datetime]
    #: The number of runs, by outcome, in each step.
    series: dict[str, list[int]]
    #: How long the last runs of jobs that ended took, in each step.
    durations: list[Histogram]
    #: How long jobs that ended waited before their first run, over the whole period.
    queue_times: Histogram = field(default_factory=Histogram)
    #: How many runs failed, by the class of their error; empty for one without.
    errors: Counter[str] = field(default_factory=Counter)
    #: Names of its actors, the one with most jobs first.
    actors: list[str] = field(default_factory=list)
    #: The time from which it is complete; None if all of it is.
    known_since: datetime | None = None

    @property
    def counts(self) -> dict[str, int]:
        """The number of runs, by outcome."""
        return {outcome: sum(numbers) for outcome, numbers in self.series.items()}

    @property
    def ended(self) -> int:
        """How many jobs ended."""
        counts = self.counts
        return sum(counts[outcome] for outcome in ENDS)

    @property
    def duration(self) -> Histogram:
        """How long the last runs took, over the whole period."""
        whole = Histogram()
        for part in self.durations:
            whole.merge(part)
        return whole


def make_profile(
    name: str,
    cells: Iterable[Cell],
    begin: int,
    end: int,
    step: int,
    *,
    known_since: datetime | None = None,
) -> Profile:
    """Make the profile of a period from its totals."""
    steps = max(0, end - begin) // step
    profile = Profile(
        name=name,
        since=instant_of(begin),
        until=instant_of(end),
        step=step,
        times=[instant_of(at) for at in range(begin, end, step)],
        series={outcome: [0] * steps for outcome in OUTCOMES},
        durations=[Histogram() for _ in range(steps)],
        known_since=known_since,
    )
    actors: Counter[str] = Counter()
    for cell in cells:
        index = (cell.at - begin) // step
        profile.series[cell.outcome][index] += cell.count
        actors[cell.actor] += cell.count
        if cell.outcome in FAILED:
            profile.errors[cell.error_type] += cell.count
        if cell.outcome in ENDS:
            profile.durations[index].merge(cell.durations)
            profile.queue_times.merge(cell.queue_times)
    profile.actors = [actor for actor, _ in actors.most_common()]
    profile.errors = +profile.errors
    return profile
