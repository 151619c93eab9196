"""Errors that are new, or several times as frequent as usual.

A log younger than an hour has no history to compare with.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from peewee import SQL, Select, fn

from dramatiq_joblog.payload.durations import plain
from dramatiq_joblog.schema.models import instant_of, to_millis
from dramatiq_joblog.schema.query import literal_states, word
from dramatiq_joblog.states import DeadReason, ProblemKind, State
from dramatiq_joblog.statistics.cells import DAY, HOUR, MINUTE

from .audit import open_dead
from .counted import counted
from .problem import Look, Problem, cut, jobs, plural, said, seen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dramatiq_joblog.schema.tables import Tables

    from .counted import Counted, Pair

#: Milliseconds for which an error counts as new, and before which it was not seen.
NEW_FOR, UNSEEN_FOR = DAY, 30 * DAY
#: The minimum age of a log in milliseconds for new errors, and for rising ones.
YOUNG, MIN_PAST = HOUR, 3 * HOUR
#: Milliseconds after a mark within which it may be the cause.
SOON_AFTER = HOUR
#: The number of retrying jobs from which an error without dead jobs counts as new.
MIN_RETRIED = 3
#: The number of failed runs in an hour from which an error counts as rising.
MIN_RISEN = 3

#: The maximum number of dead or retrying jobs read.
_LOOK = 5_000
#: The maximum number of jobs of an error checked for earlier occurrences.
_SEEN = 1_000
#: The maximum number of problems reported for each kind.
_MOST = 10
#: Errors that request a retry; and reasons for being dead that are intended, or are problems of
#: another kind.
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
    """The dead or retrying jobs of one error that need attention."""

    dead: int = 0
    retrying: int = 0
    #: When the first of them failed, in milliseconds since 1970.
    since: int = 1 << 62

    @property
    def count(self) -> int:
        return self.dead + self.retrying


class ErrorTrends:
    """Finds errors that are new or rising.

    Its methods are called with a connection open.

    Parameters:
      tables: The log's tables.
      ended: Counts of what has ended.
      now: The database's time, in milliseconds since 1970.
    """

    def __init__(self, tables: Tables[Any], ended: Counted, now: int) -> None:
        # Any: peewee's queries are untyped.
        self._job: Any = tables.job
        self._deploy: Any = tables.deploy
        self._ended = ended
        self._now = now

    def look(self) -> Look:
        """Check for new errors, and for errors several times as frequent as usual."""
        problems = [self._as_new(pair) for pair in list(self._new)[:_MOST]]
        problems += [self._as_rising(*rise) for rise in self._rising[:_MOST]]
        return Look("errors", "no error is new or rising", tuple(problems))

    @functools.cached_property
    def actors(self) -> set[str]:
        """The actors with a new or rising error."""
        return {actor for _, actor in (*self._new, *(pair for pair, _, _ in self._rising))}

    @functools.cached_property
    def _open(self) -> dict[Pair, _Open]:
        """The errors of dead and retrying jobs, by class and actor."""
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
        # Jobs that were run again need no attention.
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
    def _new(self) -> dict[Pair, _Open]:
        """The errors not seen for a month before, in order of their first occurrence."""
        began = self._ended.began
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
        left = {pair: one for pair, one in candidates.items() if counted(pair) not in seen}
        died = self._died_before(edge) if left else set()
        return {
            pair: one
            for pair, one in sorted(left.items(), key=lambda item: item[1].since)
            if pair not in died and not self._has_rows_before(pair, edge)
        }

    def _counted_before(self, pairs: Iterable[Pair], edge: int) -> set[Pair]:
        """Return those errors that are in the totals of the month before an instant.

        The last days are read first, because nearly all are found there.
        """
        left = {counted(pair) for pair in pairs}
        seen: set[Pair] = set()
        day = edge - edge % DAY
        days = [day, *(day - number * DAY for number in (2, 7)), edge - UNSEEN_FOR]
        for part in ((HOUR, day, edge), *((DAY, *span[::-1]) for span in pairwise(days))):
            seen |= self._ended.sums([part], left).keys()
            left -= seen
            if not left:
                break
        return seen

    def _died_before(self, edge: int) -> set[Pair]:
        """Return the errors of the newest jobs that died before an instant, in one query."""
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
        """Return whether one of the checked jobs sent before an instant failed with this error."""
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
            since=since,
            count=one.count,
            title=f"{cut(error)} is new in {cut(actor)}",
            rest=f" since {said(since)}{self._after(one.since)}: {_fates(one)}.",
            cure="look at the first traceback, fix the cause and run these jobs again, or "
            "dismiss them",
            search=_search_of(pair, one),
        )

    def _after(self, instant: int) -> str:
        """Return a text with how long after the last mark an instant was, if it was soon after."""
        deploy = self._deploy
        last = deploy.select().where(deploy.at <= instant).order_by(deploy.at.desc()).first()
        if last is None or instant - to_millis(last.at) > SOON_AFTER:
            return ""
        return f", {plain(instant - to_millis(last.at))} after {cut(last.name)}"

    @functools.cached_property
    def _rising(self) -> list[tuple[Pair, int, float]]:
        """The errors more frequent than usual, with their runs per hour, now and usually."""
        pairs = [pair for pair in self._open if pair not in self._new]
        if not pairs or self._ended.began is None or self._now - self._ended.began < MIN_PAST:
            return []
        hour = self._now - HOUR
        now = self._ended.failed(pairs, [(MINUTE, hour - hour % MINUTE, self._now)])
        if now is None:
            return []
        pairs = [pair for pair in pairs if now[counted(pair)] >= MIN_RISEN]
        usual = self._usual(pairs) if pairs else {}
        found = []
        for pair in pairs:
            count, rate = now[counted(pair)], usual.get(counted(pair))
            if rate is not None and count >= max(MIN_RISEN, 3 * rate + 3 * math.sqrt(rate)):
                found.append((pair, count, rate))
        return sorted(found, key=lambda rise: (-rise[1], rise[0]))

    def _as_rising(self, pair: Pair, count: int, rate: float) -> Problem:
        error, actor = pair
        one = self._open[pair]
        return seen(
            ProblemKind.RISING_ERROR,
            f"{error} in {actor}",
            since=instant_of(max(one.since, self._now - HOUR)),
            count=one.count,
            title=f"{cut(error)} is rising in {cut(actor)}",
            rest=f": {plural(count, 'failed run')} in the last hour, "
            f"usually {_rate(rate)}; {_fates(one)}.",
            cure="look at the newest tracebacks, and at what changed since",
            search=_search_of(pair, one),
        )

    def _usual(self, pairs: Sequence[Pair]) -> dict[Pair, float]:
        """Return how many runs per hour usually fail with each error.

        The mean of a week until an hour ago, or the same hours a week ago, whichever is higher.
        """
        now = self._now
        day, hour, week = now - now % DAY, now - now % HOUR - HOUR, 7 * DAY
        begin = max(self._ended.began or now, day - 6 * DAY)
        before = [(DAY, day - 6 * DAY, day), (HOUR, day, hour)]
        usual = self._ended.failed(pairs, before)
        same = self._ended.failed(pairs, [(HOUR, hour - week, hour - week + 3 * HOUR)])
        if usual is None or same is None:
            return {}
        hours = max(1.0, (hour - begin) / HOUR)
        return {
            counted(pair): max(usual[counted(pair)] / hours, same[counted(pair)] / 3)
            for pair in pairs
        }


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
