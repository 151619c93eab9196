"""What ended in a period: from totals, or from a bounded number of rows not in them yet."""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, Any

from peewee import SQL, fn

from dramatiq_joblog.schema.models import MAX_TOTAL_ERROR, to_millis
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import FINAL, State
from dramatiq_joblog.statistics.cells import (
    DAY,
    FAILED,
    HOUR,
    MINUTE,
    Cell,
    count_failed,
    count_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dramatiq_joblog.schema.tables import Tables
    from dramatiq_joblog.statistics.rollups import Totals

    #: An error's class, and the actor.
    Pair = tuple[str, str]

#: The maximum number of rows counted that are not in the totals.
_UNCOUNTED = 2_000
#: Milliseconds that the totals may lag behind.
_LAG = 10 * MINUTE


class Counted:
    """Counts of what ended in a log.

    Its methods are called with a connection open.

    Parameters:
      tables: The log's tables.
      totals: The totals.
      now: The database's time, in milliseconds since 1970.
    """

    def __init__(self, tables: Tables[Any], totals: Totals, now: int) -> None:
        # Any: peewee's queries are untyped.
        self._job: Any = tables.job
        self._failure: Any = tables.failure
        self._total: Any = tables.total
        self._totals = totals
        self._now = now

    @functools.cached_property
    def began(self) -> int | None:
        """The beginning of the log's history; None if it has none."""
        job, total = self._job, self._total
        oldest = job.select(fn.MIN(job.created_at)).scalar()
        instants = [] if oldest is None else [to_millis(oldest)]
        for span in (MINUTE, DAY):
            # Not from daily totals: the first day may be incomplete.
            first = total.select(total.at).where(total.span == span).order_by(total.at).limit(1)
            instants += [to_millis(at) + (span if span == DAY else 0) for (at,) in first.tuples()]
        return min(instants, default=None)

    def cells(self, begin: int, end: int) -> list[Cell] | None:
        """Return what ended in some hours; None if it is not in the totals and too many."""
        if self._is_counted(end):
            return self._totals.read(HOUR, begin, end)
        return self._rows(begin, end, HOUR)

    def _rows(self, begin: int, end: int, span: int) -> list[Cell] | None:
        """Count the rows, if they are few."""
        if self._are_many(begin, end, sorted(FINAL)):
            return None
        return count_rows(self._job, self._failure, begin, end, span)

    def sums(self, parts: Iterable[tuple[int, int, int]], pairs: Iterable[Pair]) -> Counter[Pair]:
        """Add up failed runs by error; each part is a length of spans, a beginning and an end."""
        pairs = list(pairs)
        total = self._total
        errors = {error[:MAX_TOTAL_ERROR] for error, _ in pairs}
        actors = {actor for _, actor in pairs}
        sums: Counter[Pair] = Counter()
        for span, begin, end in parts:
            query = (
                total.select(total.error_type, total.actor, fn.SUM(total.count))
                .where(
                    *(total.span == span, total.at >= begin, total.at < end, total.gone == 0),
                    *(total.outcome.in_(FAILED), total.error_type.in_(sorted(errors))),
                    total.actor.in_(sorted(actors)),
                )
                .group_by(total.error_type, total.actor)
            )
            # Raw rows, without models, because there may be many.
            for error, actor, count in total._meta.database.execute(query):
                sums[error, actor] += int(count)
        return sums

    def failed(
        self, pairs: Sequence[Pair], parts: Sequence[tuple[int, int, int]]
    ) -> Counter[Pair] | None:
        """Count failed runs by error; None if they are not in the totals and too many to count."""
        parts = [part for part in parts if part[1] < part[2]]
        if not parts:
            return Counter()
        end = max(end for _, _, end in parts)
        if self._is_counted(end):
            return self.sums(parts, pairs)
        sums: Counter[Pair] = Counter()
        for _, begin, end in parts:
            if self._are_many(begin, end, [State.DEAD]):
                return None
            counts = count_failed(self._job, self._failure, begin, end)
            for (error, actor), count in counts.items():
                sums[counted((error, actor))] += count
        return sums

    @functools.cached_property
    def _counted_until(self) -> int:
        return self._totals.counted() or 0

    def _is_counted(self, end: int) -> bool:
        return self._counted_until >= min(end, self._now) - _LAG

    def _are_many(self, begin: int, end: int, states: Iterable[State]) -> bool:
        """Return whether many jobs ended in these states in a period, or many runs failed."""
        job, failure = self._job, self._failure
        for state in states:
            where = job.state.in_(literal_states([state])), job.finished_at >= begin
            if self._is_many(job.select(SQL("1")).where(*where, job.finished_at < end)):
                return True
        where = failure.finished_at >= begin, failure.finished_at < end
        return self._is_many(failure.select(SQL("1")).where(*where))

    def _is_many(self, query: Any) -> bool:
        # Not exists(), which drops the offset in older versions of peewee.
        return query.limit(1).offset(_UNCOUNTED).scalar() is not None


def counted(pair: Pair) -> Pair:
    """Return an error as the totals name it."""
    return pair[0][:MAX_TOTAL_ERROR], pair[1]
