"""Counts the jobs that ended, by actor, job type, outcome, error and span of time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peewee import SQL, fn

from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.schema.models import MAX_TOTAL_ERROR
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import FINAL, Outcome, State

from .histogram import Histogram, bucket_expression

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Milliseconds of a minute, a quarter of an hour, an hour and a day.
MINUTE, QUARTER, HOUR, DAY = SPANS = (60_000, 900_000, 3_600_000, 86_400_000)
#: Ends of jobs, and ends of runs that failed.
ENDS = tuple(sorted(state.value for state in FINAL))
FAILED = (State.DEAD.value, Outcome.RETRIED.value)
#: Runs that did not finish and did not end their job: these failures are counted too.
COUNTED_FAILURES = (Outcome.RETRIED, Outcome.INTERRUPTED, Outcome.WAITED)


@dataclass
class Cell:
    """The counts of one actor, job type, outcome and error in one span.

    The times of all errors are in the cell without an error, whatever its count.
    """

    #: Start of the span, in milliseconds since 1970.
    at: int
    actor: str
    job_type: str
    outcome: str
    error_type: str
    count: int = 0
    durations: Histogram = field(default_factory=Histogram)
    queue_times: Histogram = field(default_factory=Histogram)

    def __post_init__(self) -> None:
        self.error_type = self.error_type[:MAX_TOTAL_ERROR]

    @property
    def name(self) -> str:
        """The job type, or the actor where there is none."""
        return self.job_type or self.actor

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The key of the cell in its span."""
        return (self.actor, self.job_type, self.outcome, self.error_type)


@dataclass
class Sums:
    """The sums of the cells of a period."""

    #: Numbers by start of the span, actor or job type, and outcome.
    counts: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    #: Numbers of failed runs by start of the span, error and actor.
    errors: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    #: How long jobs that ended took, and waited, by actor or job type.
    durations: dict[str, Histogram] = field(default_factory=dict)
    queue_times: dict[str, Histogram] = field(default_factory=dict)

    def add(self, cell: Cell, by: str) -> None:
        """Add one cell."""
        name = getattr(cell, by)
        self.counts[cell.at, name, cell.outcome] += cell.count
        if cell.outcome in FAILED:
            self.errors[cell.at, cell.error_type, cell.actor] += cell.count
        if cell.outcome in ENDS:
            self.durations.setdefault(name, Histogram()).merge(cell.durations)
            self.queue_times.setdefault(name, Histogram()).merge(cell.queue_times)


def count_rows(job: Any, failure: Any, begin: int, end: int, span: int) -> list[Cell]:
    """Count from the rows what ended from *begin* until before *end*, in milliseconds since 1970.

    Returns:
      The counts, in spans of one length.
    """
    cells: dict[tuple[int, tuple[str, str, str, str]], Cell] = {}

    def cell_of(at: Any, *key: str | None) -> Cell:
        texts = _texts(*key)
        return cells.setdefault((int(at), texts), Cell(int(at), *texts))

    # Two queries: in a single one, nearly every job would be a group of its own.
    taken = (
        *_jobs(job, job.duration, begin, end, span),
        *_failures(job, failure, begin, end, span),
    )
    for *key, error_type, bucket, number in taken:
        cell_of(*key, error_type).count += number
        if bucket is not None:
            # Times are stored once for all errors, because they are expensive to read.
            cell_of(*key, None).durations.merge({bucket: number})
    for *key, _, bucket, number in _jobs(job, job.queue_time, begin, end, span):
        if bucket is not None:
            cell_of(*key, None).queue_times.merge({bucket: number})
    return list(cells.values())


def count_failed(job: Any, failure: Any, begin: int, end: int) -> Counter[tuple[str, str]]:
    """Count from the rows the runs that failed in a period, by error and actor."""
    dead = (
        job.select(job.error_type, job.actor, fn.COUNT(SQL("*")))
        .where(
            job.state.in_(literal_states([State.DEAD])),
            job.finished_at >= begin,
            job.finished_at < end,
        )
        .group_by(job.error_type, job.actor)
    )
    failed = (
        failure.select(failure.error_type, job.actor, fn.COUNT(SQL("*")))
        .join(job, on=(job.jid == failure.jid))
        .where(
            is_counted(job, failure),
            failure.outcome.in_(FAILED),
            failure.finished_at >= begin,
            failure.finished_at < end,
        )
        .group_by(failure.error_type, job.actor)
    )
    counts: Counter[tuple[str, str]] = Counter()
    for query in (dead, failed):
        for error, actor, number in job._meta.database.execute(query):
            counts[error or "", actor] += int(number)
    return counts


def _texts(*parts: str | None) -> tuple[str, str, str, str]:
    actor, job_type, outcome, error_type = (str(part or "") for part in parts)
    return actor, job_type, outcome, error_type


def add_up(cells: Iterable[Cell], span: int) -> list[Cell]:
    """Add up cells into cells of longer spans."""
    sums: dict[tuple[Any, ...], Cell] = {}
    for cell in cells:
        at = cell.at - cell.at % span
        total = sums.setdefault((at, *cell.key), Cell(at, *cell.key))
        total.count += cell.count
        total.durations.merge(cell.durations)
        total.queue_times.merge(cell.queue_times)
    return list(sums.values())


def _jobs(job: Any, taken: Any, begin: int, end: int, span: int) -> Iterator[Any]:
    return iter(
        job.select(
            *(span_of(job.finished_at, span), job.actor, job.job_type, job.state, job.error_type),
            *(bucket_expression(taken), fn.COUNT(SQL("*"))),
        )
        .where(
            job.state.in_(literal_states(sorted(FINAL))),
            job.finished_at >= begin,
            job.finished_at < end,
        )
        .group_by(SQL("1, 2, 3, 4, 5, 6"))
        .tuples()
    )


def _failures(job: Any, failure: Any, begin: int, end: int, span: int) -> Iterator[Any]:
    return iter(
        failure.select(
            *(span_of(failure.finished_at, span), job.actor, job.job_type),
            *(failure.outcome, failure.error_type, bucket_expression(failure.duration)),
            fn.COUNT(SQL("*")),
        )
        .join(job, on=(job.jid == failure.jid))
        .where(
            is_counted(job, failure),
            failure.finished_at >= begin,
            failure.finished_at < end,
        )
        .group_by(SQL("1, 2, 3, 4, 5, 6"))
        .tuples()
    )


def is_counted(job: Any, failure: Any) -> Any:
    """Return the expression for the failures that count in addition to the outcomes on jobs' rows.

    An end that is kept counts as it did when it was the job's outcome, before another delivery of
    its message.
    """
    stands = (failure.token == fn.COALESCE(job.token, "")) & (failure.outcome == job.state)
    counted = [outcome.value for outcome in COUNTED_FAILURES]
    return failure.outcome.in_(counted) | (failure.outcome.in_(ENDS) & ~stands)


def span_of(instant: Any, span: int) -> Any:
    """Return the expression for the start of an instant's span."""
    return instant - dialect_of(instant.model._meta.database).remainder(instant, span)
