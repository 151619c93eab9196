"""What goes worse than it used to: errors that are new or rise, job types that fail or take longer.

It is answered from the totals, and from a bounded number of rows where nobody has counted them.
A log that is younger than an hour has no past to compare with.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from peewee import SQL, Select, fn

from dramatiq_joblog.payload.durations import plain
from dramatiq_joblog.schema.models import MAX_TOTAL_ERROR, instant_of, to_millis
from dramatiq_joblog.schema.query import literal_states, word
from dramatiq_joblog.states import FINAL, DeadReason, ProblemKind, State
from dramatiq_joblog.statistics.histogram import Histogram
from dramatiq_joblog.statistics.judging import fails_more, is_slower
from dramatiq_joblog.statistics.rollups import (
    DAY,
    FAILED,
    HOUR,
    MINUTE,
    Cell,
    count_failed,
    count_rows,
)

from .audit import open_dead
from .problem import Look, Problem, cut, jobs, plural, said, seen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from dramatiq_joblog.schema.tables import Tables
    from dramatiq_joblog.statistics.rollups import Totals

    Pair = tuple[str, str]

#: Milliseconds that an error is new for, and those before in which it was not seen.
NEW_FOR, UNSEEN_FOR = DAY, 30 * DAY
#: Milliseconds of a log's life in which nothing is new, and those until something can rise.
YOUNG, MIN_PAST = HOUR, 3 * HOUR
#: Milliseconds after a change in which it may be the reason.
SOON_AFTER = HOUR
#: An error that no job is dead of yet is new once so many are retried.
MIN_RETRIED = 3
#: An error rises from so many failed runs in an hour on.
MIN_RISEN = 3

#: As many dead or retrying jobs are looked at, and rows that nobody has counted.
_LOOK, _UNCOUNTED = 5_000, 2_000
#: As many jobs of an error are looked at for whether it was seen before.
_SEEN = 1_000
#: As many problems of a kind are said.
_MOST = 10
#: Milliseconds that the totals may lag behind.
_LAG = 10 * MINUTE
#: Errors by which actors and the host ask for another run; deaths that somebody wanted, and those
#: that are a problem of another kind.
_ON_PURPOSE = ("Retry", "RateLimitExceeded", "LockNotAcquired")
_WANTED = tuple(
    reason.value
    for reason in (
        *(DeadReason.ABORTED, DeadReason.CANCELLED),
        *(DeadReason.RETRY_LOST, DeadReason.THROWS),
    )
)


@dataclass
class _Open:
    """The jobs that are dead or retried because of one error, and that need someone."""

    dead: int = 0
    retrying: int = 0
    #: When the first of them failed.
    since: int = 1 << 62

    @property
    def count(self) -> int:
        return self.dead + self.retrying


@dataclass
class _Type:
    """What became of the jobs of one type in some hours."""

    finished: int = 0
    failed: int = 0
    durations: Histogram = field(default_factory=Histogram)
    actors: set[str] = field(default_factory=set)

    @property
    def runs(self) -> int:
        return self.finished + self.failed

    @property
    def share(self) -> float:
        """How many of its runs failed, of 1."""
        return self.failed / self.runs if self.runs else 0.0


class Trends:
    """Compares now with then.

    Its methods are called with a connection open.

    Parameters:
      tables: The log's tables.
      totals: What was counted.
      now: The database's time, in milliseconds since 1970.
    """

    def __init__(self, tables: Tables[Any], totals: Totals, now: int) -> None:
        # Any: peewee's queries are untyped.
        self._job: Any = tables.job
        self._failure: Any = tables.failure
        self._deploy: Any = tables.deploy
        self._total: Any = tables.total
        self._totals = totals
        self._now = now

    def errors(self) -> Look:
        """Look for errors that are new, and for those that are several times as frequent."""
        problems = [self._as_new(pair) for pair in list(self._new)[:_MOST]]
        problems += [self._as_rising(*rise) for rise in self._rising[:_MOST]]
        return Look("errors", "no error is new or rising", tuple(problems))

    def types(self) -> Look:
        """Look for job types that are slower, or fail more often, than a week ago."""
        well = "no job type is slower, or fails more often, than a week ago"
        begin, end = self._now - self._now % HOUR - HOUR, self._now
        week = 7 * DAY
        present = self._cells(begin, end)
        past = self._cells(begin - week - HOUR, begin - week + 3 * HOUR) if present else None
        if not present or not past:
            return Look("types", well)
        now, then = _by_type(present), _by_type(past)
        # Why they fail is said by the error.
        known = {actor for _, actor in (*self._new, *(pair for pair, _, _ in self._rising))}
        problems = []
        for name in sorted(now.keys() & then.keys()):
            mine, before = now[name], then[name]
            if is_slower(mine.durations, before.durations):
                problems.append(_slower(name, mine, before, begin))
            fails_more_often = fails_more((mine.failed, mine.runs), (before.failed, before.runs))
            if fails_more_often and not mine.actors & known:
                problems.append(_failing(name, mine, before, begin))
        return Look("types", well, tuple(problems[: 2 * _MOST]))

    # Errors

    @functools.cached_property
    def _open(self) -> dict[Pair, _Open]:
        """The errors, by their class and the actor, that jobs are dead of or retried for."""
        found: dict[Pair, _Open] = {}
        for state, query in ((State.DEAD, self._dead()), (State.RETRYING, self._retrying())):
            for error, actor, count, at in self._job._meta.database.execute(query):
                if error in _ON_PURPOSE:
                    continue
                one = found.setdefault((error, actor), _Open())
                one.since = min(one.since, int(at))
                if state == State.DEAD:
                    one.dead = int(count)
                else:
                    one.retrying = int(count)
        return found

    def _dead(self) -> Any:
        job = self._job
        newest = (
            job.select(
                job.error_type.alias("error"),
                job.actor.alias("actor"),
                job.finished_at.alias("at"),
                job.replayed_by.alias("again"),
                job.dead_reason.alias("reason"),
            )
            .where(*open_dead(job, self._now - NEW_FOR))
            .order_by(job.finished_at.desc())
            .limit(_LOOK)
        )
        # What was run again has been seen to.
        return self._grouped(newest).where(
            SQL("again IS NULL"), SQL("reason IS NULL") | SQL("reason").not_in(_WANTED)
        )

    def _retrying(self) -> Any:
        job = self._job
        newest = (
            job.select(
                job.error_type.alias("error"),
                job.actor.alias("actor"),
                job.updated_at.alias("at"),
            )
            .where(job.state.in_(literal_states([State.RETRYING])))
            .order_by(job.created_at.desc())
            .limit(_LOOK)
        )
        return self._grouped(newest).where(SQL("at") >= self._now - NEW_FOR)

    def _grouped(self, rows: Any) -> Any:
        columns = [SQL("error"), SQL("actor"), fn.COUNT(SQL("*")), fn.MIN(SQL("at"))]
        query = Select([rows.alias("newest")], columns).where(SQL("error IS NOT NULL"))
        return query.group_by(SQL("error"), SQL("actor"))

    @functools.cached_property
    def _began(self) -> int | None:
        """When the log's past begins; None if it has none."""
        job, total = self._job, self._total
        oldest = job.select(fn.MIN(job.created_at)).scalar()
        instants = [] if oldest is None else [to_millis(oldest)]
        for span in (MINUTE, DAY):
            # Of a day it is not known how much of it the log was there for.
            first = total.select(total.at).where(total.span == span).order_by(total.at).limit(1)
            instants += [to_millis(at) + (span if span == DAY else 0) for (at,) in first.tuples()]
        return min(instants, default=None)

    @functools.cached_property
    def _new(self) -> dict[Pair, _Open]:
        """The errors that were not seen for a month, by when they came."""
        began = self._began
        if began is None or self._now - began < YOUNG:
            return {}
        candidates = {
            pair: one
            for pair, one in self._open.items()
            if one.since >= began + YOUNG and (one.dead or one.retrying >= MIN_RETRIED)
        }
        if not candidates:
            return {}
        edge = self._now - NEW_FOR
        edge -= edge % HOUR
        seen = self._counted_before(candidates, edge)
        left = {pair: one for pair, one in candidates.items() if _counted(pair) not in seen}
        died = self._died_before(edge) if left else set()
        return {
            pair: one
            for pair, one in sorted(left.items(), key=lambda item: item[1].since)
            if pair not in died and not self._has_rows_before(pair, edge)
        }

    def _counted_before(self, pairs: Iterable[Pair], edge: int) -> set[Pair]:
        """Return those of some errors that were counted in the month before an instant.

        The last days come first: nearly all are seen there.
        """
        left = {_counted(pair) for pair in pairs}
        seen: set[Pair] = set()
        day = edge - edge % DAY
        days = [day, *(day - number * DAY for number in (2, 7)), edge - UNSEEN_FOR]
        for part in ((HOUR, day, edge), *((DAY, *span[::-1]) for span in pairwise(days))):
            seen |= self._sums([part], left).keys()
            left -= seen
            if not left:
                break
        return seen

    def _sums(self, parts: Iterable[tuple[int, int, int]], pairs: Iterable[Pair]) -> Counter[Pair]:
        """Add up failed runs by error in spans: each a length, a begin and an end."""
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
            # As the driver gives them: they can be many.
            for error, actor, count in total._meta.database.execute(query):
                sums[error, actor] += int(count)
        return sums

    def _died_before(self, edge: int) -> set[Pair]:
        """Return the errors of the newest jobs that died before an instant, from an index alone."""
        job = self._job
        before = (
            job.select(job.error_type.alias("error"), job.actor.alias("actor"))
            .where(*open_dead(job, 0), job.finished_at < edge)
            .order_by(job.finished_at.desc())
            .limit(_LOOK)
        )
        pairs = Select([before.alias("died")], [SQL("error"), SQL("actor")]).distinct()
        return set(job._meta.database.execute(pairs))

    def _has_rows_before(self, pair: Pair, edge: int) -> bool:
        """Return whether a job that was sent before an instant failed so, as far as one looks."""
        job, (error, actor) = self._job, pair
        before = (
            job.select(job.actor)
            .where(job.error_type == error, job.created_at < edge)
            .order_by(job.created_at.desc())
            .limit(_SEEN)
        )
        return any(name == actor for (name,) in before.tuples())

    def _as_new(self, pair: Pair) -> Problem:
        error, actor = pair
        one = self._open[pair]
        since = instant_of(one.since)
        return seen(
            ProblemKind.NEW_ERROR,
            f"{error} in {actor}",
            since,
            one.count,
            f"{cut(error)} is new in {cut(actor)}",
            f" since {said(since)}{self._after(one.since)}: {_fates(one)}.",
            "look at the first traceback; then mend it and run these jobs again, or dismiss them",
            _search_of(pair, one),
        )

    def _after(self, instant: int) -> str:
        """Say how long after the last change an instant was, if it was soon."""
        deploy = self._deploy
        last = deploy.select().where(deploy.at <= instant).order_by(deploy.at.desc()).first()
        if last is None or instant - to_millis(last.at) > SOON_AFTER:
            return ""
        return f", {plain(instant - to_millis(last.at))} after {cut(last.name)}"

    @functools.cached_property
    def _rising(self) -> list[tuple[Pair, int, float]]:
        """The errors that are more frequent than usual: how many runs an hour, now and usually."""
        pairs = [pair for pair in self._open if pair not in self._new]
        if not pairs or self._began is None or self._now - self._began < MIN_PAST:
            return []
        hour = self._now - HOUR
        now = self._failed(pairs, [(MINUTE, hour - hour % MINUTE, self._now)])
        if now is None:
            return []
        pairs = [pair for pair in pairs if now[_counted(pair)] >= MIN_RISEN]
        usual = self._usual(pairs) if pairs else {}
        found = []
        for pair in pairs:
            count, rate = now[_counted(pair)], usual.get(_counted(pair))
            if rate is not None and count >= max(MIN_RISEN, 3 * rate + 3 * math.sqrt(rate)):
                found.append((pair, count, rate))
        return sorted(found, key=lambda rise: (-rise[1], rise[0]))

    def _as_rising(self, pair: Pair, count: int, rate: float) -> Problem:
        error, actor = pair
        one = self._open[pair]
        return seen(
            ProblemKind.RISING_ERROR,
            f"{error} in {actor}",
            instant_of(max(one.since, self._now - HOUR)),
            one.count,
            f"{cut(error)} is rising in {cut(actor)}",
            f": {plural(count, 'failed run')} in the last hour, "
            f"usually {_rate(rate)}; {_fates(one)}.",
            "look at the newest tracebacks, and at what changed since",
            _search_of(pair, one),
        )

    def _usual(self, pairs: Sequence[Pair]) -> dict[Pair, float]:
        """Return how many runs an hour usually fail with some errors.

        That is the mean of a week until an hour ago, or the same hours a week ago if it was more.
        """
        now = self._now
        day, hour, week = now - now % DAY, now - now % HOUR - HOUR, 7 * DAY
        begin = max(self._began or now, day - 6 * DAY)
        before = [(DAY, day - 6 * DAY, day), (HOUR, day, hour)]
        usual = self._failed(pairs, before)
        same = self._failed(pairs, [(HOUR, hour - week, hour - week + 3 * HOUR)])
        if usual is None or same is None:
            return {}
        hours = max(1.0, (hour - begin) / HOUR)
        return {
            _counted(pair): max(usual[_counted(pair)] / hours, same[_counted(pair)] / 3)
            for pair in pairs
        }

    def _failed(
        self, pairs: Sequence[Pair], parts: Sequence[tuple[int, int, int]]
    ) -> Counter[Pair] | None:
        """Count failed runs by error in spans; None if nobody has counted and there are many."""
        parts = [part for part in parts if part[1] < part[2]]
        if not parts:
            return Counter()
        end = max(end for _, _, end in parts)
        if self._is_counted(end):
            return self._sums(parts, pairs)
        sums: Counter[Pair] = Counter()
        for _, begin, end in parts:
            if self._are_many(begin, end, [State.DEAD]):
                return None
            counts = count_failed(self._job, self._failure, begin, end)
            for (error, actor), count in counts.items():
                sums[_counted((error, actor))] += count
        return sums

    # What was counted

    @functools.cached_property
    def _counted_until(self) -> int:
        return self._totals.counted() or 0

    def _is_counted(self, end: int) -> bool:
        return self._counted_until >= min(end, self._now) - _LAG

    def _cells(self, begin: int, end: int) -> list[Cell] | None:
        """Return what ended in some hours; None if nobody has counted it and it is much."""
        if self._is_counted(end):
            return self._totals.read(HOUR, begin, end)
        return self._rows(begin, end, HOUR)

    def _rows(self, begin: int, end: int, span: int) -> list[Cell] | None:
        """Count from the rows, if they are few."""
        if self._are_many(begin, end, sorted(FINAL)):
            return None
        return count_rows(self._job, self._failure, begin, end, span)

    def _are_many(self, begin: int, end: int, states: Iterable[State]) -> bool:
        """Return whether many jobs ended so in a time, or many runs failed."""
        job, failure = self._job, self._failure
        for state in states:
            where = job.state.in_(literal_states([state])), job.finished_at >= begin
            if self._is_many(job.select(SQL("1")).where(*where, job.finished_at < end)):
                return True
        where = failure.finished_at >= begin, failure.finished_at < end
        return self._is_many(failure.select(SQL("1")).where(*where))

    def _is_many(self, query: Any) -> bool:
        # Not exists(): in older versions of peewee it forgets the offset.
        return query.limit(1).offset(_UNCOUNTED).scalar() is not None


def _counted(pair: Pair) -> Pair:
    """Return an error as the totals name it."""
    return pair[0][:MAX_TOTAL_ERROR], pair[1]


def _search_of(pair: Pair, one: _Open) -> str:
    states = ["state:dead"] * bool(one.dead) + ["state:retrying"] * bool(one.retrying)
    return " ".join([word("error", pair[0]), word("actor", pair[1]), *states])


def _fates(one: _Open) -> str:
    dead = f"{jobs(one.dead)} {'is' if one.dead == 1 else 'are'} dead" if one.dead else ""
    retried = f"{one.retrying:,} will be retried" if one.retrying else ""
    if retried and not dead:
        retried = f"{jobs(one.retrying)} will be retried"
    return " and ".join(filter(None, [dead, retried]))


def _rate(rate: float) -> str:
    if rate < 0.05:
        return "none"
    return f"{rate:.0f}" if rate >= 9.5 else f"{rate:.1f}"


# Job types


def _by_type(cells: Iterable[Cell]) -> dict[str, _Type]:
    """Add cells up by what people call a job: its type, else its actor."""
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
        instant_of(begin),
        now.finished,
        f"{_called(name)} is slower than a week ago",
        f": p95 {plain(after)} instead of "
        f"{plain(before)}, p50 {plain(middle[1])} instead of {plain(middle[0])}, of "
        f"{jobs(now.finished)}.",
        "look at its slowest jobs, and at what changed since",
        f"{name} state:finished ended:{_instant(begin)}",
    )


def _failing(name: str, now: _Type, then: _Type, begin: int) -> Problem:
    return seen(
        ProblemKind.FAILING,
        name,
        instant_of(begin),
        now.failed,
        f"{_called(name)} fails more often than a week ago",
        f": {now.share:.0%} of {plural(now.runs, 'run')} instead of {then.share:.0%}.",
        "look at its newest errors, and at what changed since",
        f"{name} state:dead state:retrying",
    )


def _called(name: str) -> str:
    """Return what people call the jobs that a word of a search finds."""
    return cut(name.partition(":")[2].strip('"'))


def _instant(at: int) -> str:
    text: datetime = instant_of(at)
    return f"{text:%Y-%m-%dT%H:%M}Z"
