"""How many jobs ended how, and how long they took: counts by spans of time, from the rows.

Times are kept as histograms whose buckets are a tenth wide, so that they can be added up.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peewee import SQL, NodeList, fn

from .query import literal_states
from .states import FINAL, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: The longest time that has a bucket of its own, in milliseconds.
_LONGEST = 7 * 86_400_000


def _bounds() -> tuple[int, ...]:
    bounds = [0, 1]
    while bounds[-1] < _LONGEST:
        bounds.append(max(bounds[-1] + 1, round(bounds[-1] * 1.1)))
    return tuple(bounds)


#: Bucket n counts the times from ``BOUNDS[n]`` milliseconds on, up to the next bound.
BOUNDS = _bounds()
#: Runs that did not finish and are no end of their job: these failures are counted too.
COUNTED_FAILURES = (Outcome.RETRIED, Outcome.INTERRUPTED, Outcome.WAITED)


class Histogram(dict[int, int]):
    """How many took how long: counts by the number of their bucket."""

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.values())

    def merge(self, other: dict[Any, int]) -> None:
        """Add the counts of *other*, whose keys may be text, as JSON has them."""
        for bucket, number in other.items():
            self[int(bucket)] = self.get(int(bucket), 0) + number

    def percentile(self, share: float) -> int | None:
        """Return the milliseconds that *share* of them took at most, as 0.95; None without any.

        It is right to the width of a bucket, a tenth.
        """
        wanted, seen = share * self.count, 0
        for bucket in sorted(self):
            inside = self[bucket]
            if seen + inside >= wanted:
                low = BOUNDS[bucket]
                last = BOUNDS[bucket + 1] - 1 if bucket + 1 < len(BOUNDS) else low
                return low + round((last - low) * (wanted - seen) / inside)
            seen += inside
        return None


@dataclass
class Cell:
    """What was counted of one actor, job type, outcome and error in one span."""

    #: Begin of the span, in milliseconds since 1970.
    at: int
    actor: str
    job_type: str
    outcome: str
    error_type: str
    count: int = 0
    durations: Histogram = field(default_factory=Histogram)
    queue_times: Histogram = field(default_factory=Histogram)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is about."""
        return (self.actor, self.job_type, self.outcome, self.error_type)


def bucket_of(milliseconds: int) -> int:
    """Return the number of the bucket that counts a time."""
    return bisect_right(BOUNDS, max(0, milliseconds)) - 1


def count_rows(job: Any, failure: Any, begin: int, end: int) -> list[Cell]:
    """Count what ended from *begin* to before *end*, in milliseconds since 1970, from the rows."""
    cells: dict[tuple[str, str, str, str], Cell] = {}
    rows = (*_jobs(job, begin, end), *_failures(job, failure, begin, end))
    for *key, duration, queue_time, number in rows:
        texts = _texts(*key)
        cell = cells.setdefault(texts, Cell(begin, *texts))
        cell.count += number
        for histogram, bucket in ((cell.durations, duration), (cell.queue_times, queue_time)):
            if bucket is not None:
                histogram.merge({bucket: number})
    return list(cells.values())


def _texts(*parts: str | None) -> tuple[str, str, str, str]:
    actor, job_type, outcome, error_type = (str(part or "") for part in parts)
    return actor, job_type, outcome, error_type


def add_up(cells: Iterable[Cell], span: int) -> list[Cell]:
    """Add up cells into those of longer spans."""
    sums: dict[tuple[Any, ...], Cell] = {}
    for cell in cells:
        at = cell.at - cell.at % span
        total = sums.setdefault((at, *cell.key), Cell(at, *cell.key))
        total.count += cell.count
        total.durations.merge(cell.durations)
        total.queue_times.merge(cell.queue_times)
    return list(sums.values())


def _jobs(job: Any, begin: int, end: int) -> Iterator[Any]:
    states = sorted(FINAL)
    return iter(
        job.select(
            *(job.actor, job.job_type, job.state, job.error_type),
            *(_bucket(job.duration), _bucket(job.queue_time), fn.COUNT(SQL("*"))),
        )
        .where(
            job.state.in_(literal_states(states)),
            job.finished_at >= begin,
            job.finished_at < end,
        )
        .group_by(SQL("1, 2, 3, 4, 5, 6"))
        .tuples()
    )


def _failures(job: Any, failure: Any, begin: int, end: int) -> Iterator[Any]:
    return iter(
        failure.select(
            *(job.actor, job.job_type, failure.outcome, failure.error_type),
            *(_bucket(failure.duration), SQL("NULL"), fn.COUNT(SQL("*"))),
        )
        .join(job, on=(job.jid == failure.jid))
        .where(
            failure.outcome.in_([outcome.value for outcome in COUNTED_FAILURES]),
            failure.finished_at >= begin,
            failure.finished_at < end,
        )
        .group_by(SQL("1, 2, 3, 4, 5"))
        .tuples()
    )


def _bucket(column: Any) -> Any:
    """Return the expression for the bucket of a column: no database has logarithms for sure."""
    parts = _TREE.split("?")
    nodes = [SQL(parts[0])]
    for part in parts[1:]:
        nodes += [column, SQL(part)]
    return NodeList(nodes)


def _choose(low: int, high: int) -> str:
    """Return a CASE that halves the buckets from *low* to *high* until one is left."""
    if low == high:
        return str(low)
    middle = (low + high + 1) // 2
    left, right = _choose(low, middle - 1), _choose(middle, high)
    return f"CASE WHEN ? < {BOUNDS[middle]} THEN {left} ELSE {right} END"


_TREE = f"CASE WHEN ? IS NULL THEN NULL ELSE {_choose(0, len(BOUNDS) - 1)} END"
