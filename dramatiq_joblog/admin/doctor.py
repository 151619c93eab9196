"""Checks of a log, its database and its workers, each with a cure.

All checks only read, within a time limit; a check that does not finish is a problem too.
:meth:`Doctor.problems` returns what needs attention, :meth:`Doctor.findings` every check.
"""

from __future__ import annotations

import contextlib
import functools
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

from peewee import PeeweeException

from dramatiq_joblog.database.checkout import checked_out
from dramatiq_joblog.database.clock import database_now, read_now
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.database.timeouts import bounded, cut_after, lent_within
from dramatiq_joblog.errors import DatabaseAwayError, QueryTimeout
from dramatiq_joblog.payload.secret_texts import scrub
from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.states import FINAL, ProblemKind

from . import mutes
from .audit import retries_lost
from .counted import Counted
from .database_checks import MOST, DatabaseChecks
from .error_trends import ErrorTrends
from .finding import Finding
from .middleware_check import look_at_middleware
from .problem import Look, Problem, cut, in_order, jobs, plural, quoted, said, seen
from .spool_check import MAX_SPOOLED, Spooling, look_at_spools
from .standstill import MAX_LOST, MAX_UNSERVED, MAX_WAIT, Standstill
from .type_trends import look_at_types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dramatiq_joblog.schema.tables import Tables
    from dramatiq_joblog.statistics.rollups import Totals

__all__ = ["MAX_SPOOLED", "MAX_WAIT", "Doctor", "Finding"]

#: Milliseconds that all queries together may take.
DEFAULT_TIMEOUT = 5_000
#: Milliseconds reserved for reading mutes, even after slow checks.
_LEAST = 100
#: Milliseconds that the server may take beyond that.
_SILENT = 1_000
#: The maximum number of missing jobs reported.
_MOST_MISSED = 100

_UNKNOWN_CURE = (
    "call create_tables() on the log if tables or columns are missing; if the database is slow, "
    "find out what else it is doing"
)


class Checked(Spooling, Protocol):
    """The parts of a log that are checked."""

    @property
    def name(self) -> str:
        """The kind and name of the database, without its password."""

    @property
    def tables(self) -> Tables[Any]:
        """The log's tables."""

    @property
    def totals(self) -> Totals:
        """The totals of ended jobs by period."""


class Doctor:
    """Checks a log once.

    Parameters:
      core: The log's parts.
      broker: The broker with the log's middleware, to check it as well.
      patience: Milliseconds that jobs may wait for a worker, or for a thread.
      lost_for: Milliseconds that a job may be lost.
      expected: Whether to check expected jobs.
      timeout: Milliseconds that all queries together may take.
    """

    def __init__(
        self,
        core: Checked,
        broker: Any = None,
        *,
        patience: int = MAX_UNSERVED,
        lost_for: int = 0,
        timeout: int = DEFAULT_TIMEOUT,
        expected: bool = True,
    ) -> None:
        self._core = core
        self._broker = broker
        self._database: Any = core.database
        self._dialect = dialect_of(core.database)
        self._timeout = timeout
        self._asks_for_expected = expected
        self._deadline = 0.0
        #: The current mutes.
        self._muted: list[Any] = []
        self._checks = DatabaseChecks(core.tables)
        self._standstill = Standstill(core.tables, patience=patience, lost_for=lost_for)

    @classmethod
    def for_findings(cls, core: Checked, broker: Any) -> Doctor:
        """Return a doctor with longer tolerances, for :meth:`findings`."""
        return cls(core, broker, lost_for=MAX_LOST, expected=False)

    def findings(self) -> list[Finding]:
        """Return the results of all checks, in a fixed order."""
        found = [_finding_of(look) for look in self._looks()]
        if self._broker is not None:
            found.append(look_at_middleware(self._broker, self._core))
        return found

    def problems(self) -> list[Problem]:
        """Return the problems, most serious first; muted ones have who muted them."""
        looks = list(self._looks())
        problems = [problem for look in looks for problem in look.problems]
        unknown = [look for look in looks if look.unknown]
        if unknown and not _is_behind(problems):
            problems.append(_unknown_of(unknown))
        return in_order(mutes.apply(problems, self._muted))

    def _looks(self) -> Iterator[Look]:
        self._deadline = time.monotonic() + self._timeout / 1000
        try:
            with contextlib.ExitStack() as stack:
                with lent_within(self._database, self._timeout):
                    stack.enter_context(checked_out(self._database))
                stack.enter_context(cut_after(self._database, self._timeout + _SILENT))
                yield self._connection()
                for name, look in self._questions().items():
                    yield self._within_time(name, look)
                self._muted = self._mutes()
        except (DatabaseAwayError, PeeweeException) as e:
            yield _unanswered(
                f"{self._core.name} is unavailable: {scrub(str(e).strip())}",
                "start the database, or correct its address, user, password or rights; until "
                "then events are handled as on_outage says",
            )
        yield look_at_spools(self._core)

    def _questions(self) -> dict[str, Callable[[], Look]]:
        checks, standstill = self._checks, self._standstill
        pooler = {"pooler": checks.pooler} if self._dialect.has_poolers else {}
        return {
            "schema": checks.schema,
            "durability": checks.durability,
            **pooler,
            "clock": checks.clock,
            "workers": standstill.workers,
            "sections": self._sections,
            "queues": standstill.queues,
            "threads": standstill.threads,
            "overdue": standstill.overdue,
            "lost": standstill.lost,
            "retries": self._retries,
            **({"expected": self._expected} if self._asks_for_expected else {}),
            "errors": self._errors,
            "types": self._types,
        }

    def _errors(self) -> Look:
        return self._error_trends.look()

    def _types(self) -> Look:
        return look_at_types(self._ended, self._instant, lambda: self._error_trends.actors)

    def _within_time(self, name: str, look: Callable[[], Look]) -> Look:
        left = round((self._deadline - time.monotonic()) * 1000)
        late = f"the database took longer than {self._timeout / 1000:g} s"
        if left <= 0:
            return Look(name, "", unknown=late)
        try:
            with bounded(self._database, left):
                return look()
        except QueryTimeout:
            return Look(name, "", unknown=late)
        except DatabaseAwayError as e:
            # A missing table or column is reported like this too.
            return self._unless_away(name, e)
        except PeeweeException as e:
            return Look(name, "", unknown=scrub(str(e).strip()))

    def _unless_away(self, name: str, error: DatabaseAwayError) -> Look:
        """Return the result of a check that failed, if the database is available otherwise.

        Raises:
          DatabaseAwayError: If it is unavailable.
        """
        try:
            self._database.execute_sql("SELECT 1").fetchall()
        except PeeweeException:
            raise error from None
        return Look(name, "", unknown=scrub(str(error).strip()))

    def _mutes(self) -> list[Any]:
        """Return the current mutes; empty if they cannot be read."""
        left = round((self._deadline - time.monotonic()) * 1000)
        try:
            with bounded(self._database, max(left, _LEAST)):
                return list(mutes.standing(self._core.tables.mute))
        except (DatabaseAwayError, PeeweeException):
            # The check of the schema reports the missing table.
            return []

    def _connection(self) -> Look:
        began = time.monotonic()
        version = self._checks.version()
        took = (time.monotonic() - began) * 1000
        return Look("connection", f"{self._core.name} is {version}; it answered in {took:.0f} ms")

    @functools.cached_property
    def _instant(self) -> int:
        """The database's time, in milliseconds since 1970."""
        return read_now(self._database)

    @functools.cached_property
    def _ended(self) -> Counted:
        return Counted(self._core.tables, self._core.totals, self._instant)

    @functools.cached_property
    def _error_trends(self) -> ErrorTrends:
        return ErrorTrends(self._core.tables, self._ended, self._instant)

    def _sections(self) -> Look:
        # Any: peewee's queries are untyped.
        lock: Any = self._core.tables.lock
        job: Any = self._core.tables.job
        now = database_now(self._database)
        well = "no section is held by a job that has ended"
        stuck = list(
            lock.select(
                lock.key, lock.owner, job.finished_at, (lock.expires_at > now).alias("held")
            )
            .join(job, on=(job.jid == lock.owner))
            .where(lock.owner.is_null(False), lock.kind == "section", job.state.in_(list(FINAL)))
            .order_by(lock.id)
            .limit(MOST)
            .objects()
        )
        if not stuck:
            return Look("sections", well)
        named = ", ".join(f"{quoted(row.key)} by job {cut(row.owner)}" for row in stuck[:5])
        holding = sum(bool(row.held) for row in stuck)
        since = min((row.finished_at for row in stuck if row.finished_at), default=_now())
        problem = seen(
            ProblemKind.SECTIONS,
            "",
            since=since,
            count=len(stuck),
            title=f"{plural(len(stuck), 'section')} {'is' if len(stuck) == 1 else 'are'} stuck",
            rest=f": held by jobs that have ended, {holding} of them with a lease that has not "
            f"expired: {named}.",
            cure="free each with dramatiq-joblog unlock KEY --reason ..., or on the page Locks; a "
            "lease that is not renewed expires by itself",
            search=" ".join(dict.fromkeys(f"id:{row.owner}" for row in stuck[:5])),
        )
        return Look("sections", well, (problem,))

    def _retries(self) -> Look:
        count, since = retries_lost(self._core.tables.job, host_now())
        well = "no retry was lost in the last week"
        if since is None:
            return Look("retries", well)
        one = count == 1
        problem = seen(
            ProblemKind.RETRIES_LOST,
            "",
            since=since,
            count=count,
            title=f"{jobs(count)} {'has' if one else 'have'} lost "
            f"{'its' if one else 'their'} retry",
            rest=f", which the broker refused, and {'is' if one else 'are'} dead since "
            f"{said(since)}.",
            cure="run them again with joblog.requeue(jid), or dismiss them; make room in "
            "the broker",
            search="state:dead reason:retry_lost",
        )
        return Look("retries", well, (problem,))

    def _expected(self) -> Look:
        """Check for expected jobs that did not run, from the state of the alert rules."""
        # Any: peewee's queries are untyped.
        state: Any = self._core.tables.alert
        rows = state.select().where(state.is_open, state.expects.is_null(False)).limit(_MOST_MISSED)
        problems = [
            seen(
                ProblemKind.MISSED,
                row.expects,
                since=row.since or row.seen_at,
                count=1,
                title=f"a job of type {cut(row.expects)!r} is missing",
                rest=f", which should have finished by {said(row.since or row.seen_at)}.",
                cure="check whether its sender runs, and what happened to the last one",
                search=row.search or "",
            )
            for row in rows
        ]
        return Look("expected", "no expected job is missing", tuple(problems))


def _finding_of(look: Look) -> Finding:
    if look.unknown:
        text = f"it could not be checked: {look.unknown}"
        return Finding(look.name, False, text, _UNKNOWN_CURE)
    if not look.problems:
        return Finding(look.name, True, look.well)
    text = " ".join(problem.text for problem in look.problems)
    cures = dict.fromkeys(problem.cure for problem in look.problems)
    return Finding(look.name, False, text, "; ".join(cures))


def _unanswered(text: str, cure: str) -> Look:
    title = "The database does not respond"
    problem = seen(
        ProblemKind.DATABASE,
        "connection",
        since=_now(),
        count=1,
        title=title,
        rest=f": {text}.",
        cure=cure,
    )
    return Look("connection", "", (problem,))


def _is_behind(problems: Sequence[Problem]) -> bool:
    """Return whether the tables do not match this version, which causes other problems."""
    return any((p.kind, p.subject) == (ProblemKind.DATABASE, "schema") for p in problems)


def _unknown_of(looks: Sequence[Look]) -> Problem:
    """Return one problem for all checks that could not be made."""
    several = ", ".join(look.name for look in looks)
    return seen(
        ProblemKind.DATABASE,
        "unknown",
        since=_now(),
        count=len(looks),
        title="Not everything could be checked",
        rest=f" of {several}: {looks[0].unknown}.",
        cure=_UNKNOWN_CURE,
    )


def _now() -> datetime:
    return datetime.now(timezone.utc)
