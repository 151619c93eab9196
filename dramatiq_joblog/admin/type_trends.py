"""Job types that fail more often, or take longer, than a week ago."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dramatiq_joblog.payload.durations import plain
from dramatiq_joblog.schema.models import instant_of
from dramatiq_joblog.schema.query import word
from dramatiq_joblog.states import ProblemKind, State
from dramatiq_joblog.statistics.cells import DAY, FAILED, HOUR, Cell
from dramatiq_joblog.statistics.histogram import Histogram
from dramatiq_joblog.statistics.judging import fails_more, is_slower

from .problem import Look, Problem, cut, jobs, plural, seen

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from datetime import datetime

    from .counted import Counted

#: The maximum number of problems reported for each kind.
_MOST = 10


@dataclass
class _Type:
    """The statistics of one job type in some hours."""

    finished: int = 0
    failed: int = 0
    durations: Histogram = field(default_factory=Histogram)
    actors: set[str] = field(default_factory=set)

    @property
    def runs(self) -> int:
        return self.finished + self.failed

    @property
    def share(self) -> float:
        """The share of its runs that failed, from 0 to 1."""
        return self.failed / self.runs if self.runs else 0.0


def look_at_types(ended: Counted, now: int, known: Callable[[], Collection[str]]) -> Look:
    """Check for job types that are slower, or fail more often, than a week ago.

    Parameters:
      ended: Counts of what has ended.
      now: The database's time, in milliseconds since 1970.
      known: Returns the actors whose failures are already reported with their cause.
    """
    well = "no job type is slower, or fails more often, than a week ago"
    begin, week = now - now % HOUR - HOUR, 7 * DAY
    present = ended.cells(begin, now)
    past = ended.cells(begin - week - HOUR, begin - week + 3 * HOUR) if present else None
    if not present or not past:
        return Look("types", well)
    types, before = _by_type(present), _by_type(past)
    problems = []
    for name in sorted(types.keys() & before.keys()):
        mine, then = types[name], before[name]
        if is_slower(mine.durations, then.durations):
            problems.append(_slower(name, mine, then, begin))
        fails_more_often = fails_more((mine.failed, mine.runs), (then.failed, then.runs))
        if fails_more_often and mine.actors.isdisjoint(known()):
            problems.append(_failing(name, mine, then, begin))
    return Look("types", well, tuple(problems[: 2 * _MOST]))


def _by_type(cells: Iterable[Cell]) -> dict[str, _Type]:
    """Add up cells by job type, else by actor."""
    types: dict[str, _Type] = {}
    for cell in cells:
        name = word("type", cell.job_type) if cell.job_type else word("actor", cell.actor)
        one = types.setdefault(name, _Type())
        one.actors.add(cell.actor)
        if cell.outcome == State.FINISHED:
            one.finished += cell.count
            one.durations.merge(cell.durations)
        elif cell.outcome in FAILED:
            one.failed += cell.count
    return types


def _slower(name: str, now: _Type, then: _Type, begin: int) -> Problem:
    before, after = ((h.percentile(0.95) or 0) for h in (then.durations, now.durations))
    middle = [h.percentile(0.5) or 0 for h in (then.durations, now.durations)]
    return seen(
        ProblemKind.SLOWER,
        name,
        since=instant_of(begin),
        count=now.finished,
        title=f"{_called(name)} is slower than a week ago",
        rest=f": p95 {plain(after)} instead of "
        f"{plain(before)}, p50 {plain(middle[1])} instead of {plain(middle[0])}, of "
        f"{jobs(now.finished)}.",
        cure="look at its slowest jobs, and at what changed since",
        search=f"{name} state:finished ended:{_instant(begin)}",
    )


def _failing(name: str, now: _Type, then: _Type, begin: int) -> Problem:
    return seen(
        ProblemKind.FAILING,
        name,
        since=instant_of(begin),
        count=now.failed,
        title=f"{_called(name)} fails more often than a week ago",
        rest=f": {now.share:.0%} of {plural(now.runs, 'run')} instead of {then.share:.0%}.",
        cure="look at its newest errors, and at what changed since",
        search=f"{name} state:dead state:retrying",
    )


def _called(name: str) -> str:
    """Return the name of the jobs that a word of a search finds."""
    return cut(name.partition(":")[2].strip('"'))


def _instant(at: int) -> str:
    text: datetime = instant_of(at)
    return f"{text:%Y-%m-%dT%H:%M}Z"
