"""Totals: counts of jobs by outcome and duration, in spans of time, that outlive the rows.

A minute that is over is counted from the rows, and the count replaces an earlier one: so counting
again, after a late event, gives the correct result.  Longer spans are sums of shorter ones, and of
older times only the longer ones are kept.  Deleted rows are counted separately, as *gone*, and
are a part of every later count of their span.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from peewee import SQL, fn

from dramatiq_joblog.database.checkout import in_transaction
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.schema.models import MAX_TOTAL_ERROR, to_millis
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import FINAL, Outcome, State

from .histogram import Histogram, bucket_expression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from peewee import Database

    from dramatiq_joblog.schema.tables import Tables

    from .watermarks import Marks

#: Milliseconds of a minute, a quarter of an hour, an hour and a day.
MINUTE, QUARTER, HOUR, DAY = SPANS = (60_000, 900_000, 3_600_000, 86_400_000)
#: How far back spans of each length are kept, in milliseconds, and the next longer length.
_LEVELS = ((MINUTE, 7 * HOUR, QUARTER), (QUARTER, 4 * DAY, HOUR), (HOUR, 15 * DAY, DAY))
#: How much longer they are kept in fact.
_SLACK = DAY
#: The last minutes are counted again, to include events that were committed a little late.
_AGAIN = 2 * MINUTE
#: Events later than this are marked by the process that writes them.
LATE = MINUTE
#: How many spans are counted before the position is stored.
_CHUNK = 60
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
    #: Whether it counts rows deleted since, and is a part of another cell.
    gone: bool = False

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


def _in_long_spans(span: int, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Split a period into parts, each with the longest spans that fit."""
    longer = next((other for other in SPANS if other > span), None)
    if longer is None or (first := begin - begin % -longer) >= (last := end - end % longer):
        yield span, begin, end
        return
    yield from ((span, *part) for part in ((begin, first), (last, end)) if part[0] < part[1])
    yield from _in_long_spans(longer, first, last)


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


def level_of(at: int, now: int) -> int:
    """Return the length of the spans in which an end at *at* is counted."""
    for span, back, longer in _LEVELS:
        edge = now - back
        if at >= edge - edge % longer:
            return span
    return DAY


def _name_of(total: Any) -> Any:
    """Return the expression for the job type, or the actor where there is none."""
    return fn.COALESCE(fn.NULLIF(total.job_type, ""), total.actor)


class Totals:
    """Reads the totals, and counts them.

    Parameters:
      tables: The log's tables.
      marks: The position of the counting.
    """

    #: The name of the mark before which every minute is counted.
    COUNTED = "counted"

    def __init__(self, tables: Tables[Any], marks: Marks) -> None:
        # Any: peewee's queries are untyped.
        self._job: Any = tables.job
        self._failure: Any = tables.failure
        self._total: Any = tables.total
        self.marks = marks
        self._database: Database = tables.database

    def counted(self) -> int | None:
        """Return the instant before which everything is counted, or None if nothing is."""
        return self.marks.get(self.COUNTED)

    def catch_up(self, now: int, *, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Count the minutes that are over and not yet counted, and those with late events.

        Only one process may count at a time, the one that also prunes.

        Parameters:
          now: Milliseconds since 1970.
          go_on: Called between steps; counting stops if it returns False.

        Returns:
          Whether everything was counted.
        """
        current = now - now % MINUTE
        counted = self.counted()
        if counted is None:
            first = self._first()
            if first is None or first >= current:
                # The next round begins earlier than this, to include what is committed late.
                self.marks.put(self.COUNTED, current)
                return True
            counted = first
        at = counted - _AGAIN
        while at < current:
            at = self._count_some(at, current, now)
            self.marks.put(self.COUNTED, max(counted, at))
            if not go_on():
                return False
        for minute, times in self.marks.late(limit=1000).items():
            span = level_of(minute, now)
            self._count(span, minute - minute % span, minute - minute % span + span)
            self.marks.clear(minute, times)
            if not go_on():
                return False
        self._forget(now)
        return True

    def read(self, span: int, begin: int, end: int) -> list[Cell]:
        """Return the counts in the spans of one length from *begin* until before *end*."""
        return self._read(span, begin, end, gone=False)

    def read_of(self, name: str, span: int, begin: int, end: int) -> list[Cell]:
        """Return the counts of one job type, or of an actor's jobs without a type."""
        total = self._total
        is_type = (total.job_type == name) | ((total.job_type == "") & (total.actor == name))
        return self._read(span, begin, end, is_type, gone=False)

    def sums(self, span: int, begin: int, end: int, by: str) -> Sums:
        """Add up the counts from *begin* until before *end*, by actor, job type or name.

        The database adds up the counts; the times, which are expensive to read, come from the
        longest possible spans.
        """
        total = self._total
        name: Any = _name_of(total) if by == "name" else getattr(total, by)
        sums = Sums()

        def where(span: int, begin: int, end: int) -> tuple[Any, ...]:
            place = total.at >= begin, total.at < end
            return (total.span == span, *place, total.gone == 0)

        counts = total.select(total.at, name, total.outcome, fn.SUM(total.count))
        counts = counts.where(*where(span, begin, end)).group_by(SQL("1, 2, 3"))
        for at, text, outcome, number in counts.tuples():
            sums.counts[to_millis(at), text, outcome] += int(number)
        kinds = total.at, total.error_type, total.actor
        errors = total.select(*kinds, fn.SUM(total.count)).where(
            *where(span, begin, end), total.outcome.in_(FAILED)
        )
        # These can be many thousands of rows, so they are read as plain tuples.
        for at, error_type, actor, number in self._database.execute(errors.group_by(*kinds)):
            sums.errors[at, error_type, actor] += int(number)
        for part in _in_long_spans(span, begin, end):
            times = total.select(name, total.durations, total.queue_times)
            has_times = total.durations.is_null(False) | total.queue_times.is_null(False)
            times = times.where(*where(*part), total.outcome.in_(ENDS), has_times).tuples()
            for text, durations, queue_times in times:
                sums.durations.setdefault(text, Histogram()).merge(durations or {})
                sums.queue_times.setdefault(text, Histogram()).merge(queue_times or {})
        return sums

    def few_since(self, begin: int, end: int, rows: int) -> int:
        """Return from when a limited number of rows of each kind covers a period; *begin* if all.

        An index has each kind in order, so no more rows are read.
        """
        job, failure = self._job, self._failure
        ends = [
            (job.finished_at, job.state.in_(literal_states([state]))) for state in sorted(FINAL)
        ]
        for at, *where in (*ends, (failure.finished_at,)):
            within = at >= begin, at < end
            newest = at.model.select(at).where(*where, *within).order_by(at.desc())
            one_more = newest.limit(1).offset(rows).scalar()
            if one_more is not None:
                begin = max(begin, to_millis(one_more) + 1)
        return begin

    def since_counted(self, begin: int, end: int, span: int) -> list[Cell]:
        """Count from the rows what is not yet counted, in spans of one length."""
        return count_rows(self._job, self._failure, begin, end, span) if begin < end else []

    def add_gone(self, cells: Iterable[Cell], now: int) -> None:
        """Store the counts of rows deleted in this transaction, as a part of every later count."""
        by_place: dict[tuple[int, int], list[Cell]] = {}
        for cell in cells:
            span = level_of(cell.at, now)
            cell.gone = True
            by_place.setdefault((span, cell.at - cell.at % span), []).append(cell)
        for (span, at), new in sorted(by_place.items()):
            before = self._read(span, at, at + span, gone=True)
            self._write(span, at, at + span, add_up([*before, *new], span), gone=True)
        for span in {span for span, _ in by_place}:
            instants = [at for s, at in by_place if s == span]
            self._roll(span, min(instants), max(instants) + span, gone=True)

    def _count_some(self, at: int, current: int, now: int) -> int:
        """Count some spans of one length from *at* on; return the start of the next."""
        span = level_of(at, now)
        begin = end = at - at % span
        while end < min(current, begin + _CHUNK * span) and level_of(end, now) == span:
            end += span
        self._count(span, begin, end)
        return end

    def _count(self, span: int, begin: int, end: int) -> None:
        """Count spans of one length from the rows, and the longer spans that contain them."""
        # Outside the transaction, which others would wait for; the process that counts deletes.
        cells = count_rows(self._job, self._failure, begin, end, span)

        def write() -> None:
            gone = self._read(span, begin, end, gone=True)
            for cell in gone:
                cell.gone = False
            self._write(span, begin, end, add_up([*cells, *gone], span), gone=False)
            self._roll(span, begin, end, gone=False)

        in_transaction(self._database, write)

    def _roll(self, span: int, begin: int, end: int, *, gone: bool) -> None:
        """Set the longer spans that contain *begin* to *end* to the sums of the shorter ones."""
        for shorter, longer in pairwise(SPANS):
            if shorter >= span:
                begin, end = begin - begin % longer, end - end % -longer
                cells = self._read(shorter, begin, end, gone=gone)
                self._write(longer, begin, end, add_up(cells, longer), gone=gone)

    def _read(self, span: int, begin: int, end: int, *conditions: Any, gone: bool) -> list[Cell]:
        total = self._total
        query = total.select(
            *(total.at, total.actor, total.job_type, total.outcome, total.error_type),
            *(total.count, total.durations, total.queue_times),
        ).where(
            *(total.span == span, total.at >= begin, total.at < end),
            *(total.gone == int(gone), *conditions),
        )
        cells = []
        # A chart reads thousands of rows: plain tuples take a third of the time.
        for row in self._database.execute(query):
            at, actor, job_type, outcome, error_type, count, durations, queue_times = row
            cell = Cell(at, actor, job_type, outcome, error_type, count, gone=gone)
            for histogram, text in ((cell.durations, durations), (cell.queue_times, queue_times)):
                if text is not None:
                    histogram.update((int(bucket), n) for bucket, n in json.loads(text).items())
            cells.append(cell)
        return cells

    def _write(self, span: int, begin: int, end: int, cells: Iterable[Cell], *, gone: bool) -> None:
        """Replace the cells of the spans of one length by *cells*."""
        total = self._total
        total.delete().where(
            total.span == span, total.at >= begin, total.at < end, total.gone == int(gone)
        ).execute()
        rows = [
            {
                "span": span,
                "at": cell.at,
                "gone": int(gone),
                "actor": cell.actor,
                "job_type": cell.job_type,
                "outcome": cell.outcome,
                "error_type": cell.error_type,
                "count": cell.count,
                "durations": dict(cell.durations) or None,
                "queue_times": dict(cell.queue_times) or None,
            }
            for cell in cells
        ]
        for start in range(0, len(rows), 50):
            total.insert_many(rows[start : start + 50]).execute()

    def _first(self) -> int | None:
        """Return when the first job ended, or None if none has."""
        job, failure = self._job, self._failure
        firsts = [
            job.select(fn.MIN(job.finished_at))
            .where(job.state.in_(literal_states([state])), job.finished_at.is_null(False))
            .scalar()
            for state in FINAL
        ]
        firsts.append(failure.select(failure.finished_at).order_by(failure.id).limit(1).scalar())
        return min((to_millis(at) for at in firsts if at is not None), default=None)

    def _forget(self, now: int) -> None:
        """Delete the spans that longer ones now cover."""
        total = self._total
        for span, back, longer in _LEVELS:
            edge = now - back - _SLACK
            total.delete().where(total.span == span, total.at < edge - edge % longer).execute()
