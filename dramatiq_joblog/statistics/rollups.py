"""Totals: counts of jobs by outcome and duration, in spans of time, that outlive the rows.

A minute that is over is counted from the rows, and the count replaces an earlier one: so counting
again, after a late event, gives the correct result.  Longer spans are sums of shorter ones, and of
older times only the longer ones are kept.  Deleted rows are counted separately, as *gone*, and
are a part of every later count of their span.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from peewee import SQL, fn

from dramatiq_joblog.database.checkout import in_transaction
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import FINAL

from .cells import DAY, ENDS, FAILED, HOUR, MINUTE, QUARTER, SPANS, Cell, Sums, add_up, count_rows
from .histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from peewee import Database

    from dramatiq_joblog.schema.tables import Tables

    from .watermarks import Marks

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


def _in_long_spans(span: int, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Split a period into parts, each with the longest spans that fit."""
    longer = next((other for other in SPANS if other > span), None)
    if longer is None or (first := begin - begin % -longer) >= (last := end - end % longer):
        yield span, begin, end
        return
    yield from ((span, *part) for part in ((begin, first), (last, end)) if part[0] < part[1])
    yield from _in_long_spans(longer, first, last)


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
            cell = Cell(at, actor, job_type, outcome, error_type, count)
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
