"""JobQuery: a peewee select of jobs that has the log's scopes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime  # noqa: TC003 - a field's type, for those who look
from typing import TYPE_CHECKING, Any, Generic

from peewee import SQL, Field, Model, fn

from dramatiq_joblog.database.queries import Select
from dramatiq_joblog.database.timeouts import in_event_loop
from dramatiq_joblog.errors import SearchError
from dramatiq_joblog.payload.given import is_whole
from dramatiq_joblog.payload.values import MAX_BIGINT, shown, to_millis
from dramatiq_joblog.states import ACTIVE, IN_PROGRESS, State

from .fields import millis_of, user_asked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import TypeVar

    from .models import Job

    #: The job model of a log: the package's, or the user's own.
    J = TypeVar("J", bound=Job, default=Job)
else:
    from typing import TypeVar

    J = TypeVar("J")


def user_field(model: type[Model]) -> Field:
    """Return the field of *model* that holds the user: its own ``user``, else ``user_id``."""
    fields: dict[str, Field] = model._meta.fields
    return fields.get("user") or fields["user_id"]


def word(key: str, value: Any) -> str:
    """Return one word of a search; a quote, which no word can contain, becomes a wildcard."""
    plain = str(value).replace('"', "*")
    return f'{key}:"{plain}"' if re.search(r"\s", plain) or not plain else f"{key}:{plain}"


def literal_states(states: Iterable[str]) -> SQL:
    """Return *states* as literals of the SQL.

    SQLite uses a partial index only if the values of the condition are literals.
    """
    return SQL("(" + ", ".join(f"'{State(state).value}'" for state in states) + ")")


def known_jids(model: Any, jids: Sequence[str]) -> frozenset[str]:
    """Return those of *jids* that have a job; at most some hundreds, in one statement.

    They are joined as rows: PostgreSQL compares each row with every value of a long list, unless
    it knows the values when it plans the statement.
    """
    if not jids:
        return frozenset()
    meta = model._meta
    wanted = f"SELECT {meta.database.param} AS jid" + " UNION ALL SELECT %s" * (len(jids) - 1)
    text = (
        f"SELECT job.jid FROM ({wanted.replace('%s', meta.database.param)}) AS wanted "
        f"JOIN {_quoted(meta)} AS job ON job.jid = wanted.jid"
    )
    return frozenset(jid for (jid,) in meta.database.execute_sql(text, list(jids)).fetchall())


def _quoted(meta: Any) -> str:
    return str(meta.entity.__sql__(meta.database.get_sql_context()).query()[0])


#: How many jobs a page checks if no index serves its conditions.
LOOK = 20_000

#: Columns by which the newest jobs can be sorted.
COMPARABLE = ("attempt", "duration", "queue_time")

_CURSOR = re.compile(r"(-?[0-9]{1,19})-([0-9]{1,19})")


@dataclass(frozen=True)
class Page(Generic[J]):
    """One page of a query, newest first, with cursors for the next pages."""

    #: The jobs.
    jobs: list[J]
    #: The cursor for ``page(after=...)``, which returns newer jobs; None if none are known.
    newer: str | None
    #: The cursor for ``page(before=...)``, which returns older jobs; None if there are none.
    older: str | None
    #: How far back the page searched, if it did not reach the oldest job: it may then have few
    #: jobs or none, although older ones exist.
    looked_back_to: datetime | None = None


def cursor_of(job: Any) -> str:
    """Return the cursor of a job, for ``page(before=...)`` and ``page(after=...)``."""
    return f"{to_millis(job.created_at)}-{job.id}"


class JobQuery(Select[J]):
    """A peewee select of jobs, with scopes that chain with each other and with peewee's methods.

    Nothing is sent to the database until it is iterated, or ``count()`` or ``exists()`` is
    called.

    Example:
      >>> financial = joblog.jobs.in_progress().of_type("import").for_user(7)
      >>> financial.excluding(jid).exists()
      False
    """

    # Any: peewee's queries are untyped, and every scope returns its receiver's type.

    #: The same query without the conditions that no index serves, if there are any.
    _walked: Any = None
    #: Called before the query is executed.
    _before: tuple[Callable[[], None], ...] = ()

    def asked_after(self, prepare: Callable[[], None]) -> JobQuery[J]:
        """Return the same query, executed only after *prepare* was called, which may block.

        It is called now; in an event loop, which must not block, when the query is executed.
        """
        if not in_event_loop():
            prepare()
            return self
        query: JobQuery[J] = self.clone()
        query._before = (*self._before, prepare)
        return query

    def about_to_ask(self) -> None:
        """Call what must be called before the query is executed."""
        before, self._before = self._before, ()
        for prepare in before:
            prepare()

    def walking(self, walked: JobQuery[J]) -> JobQuery[J]:
        """Return the same query, whose pages check the jobs of *walked*.

        Parameters:
          walked: The query without the conditions that no index serves.
        """
        query: JobQuery[J] = self.clone()
        query._walked = walked
        return query

    def enqueued(self) -> JobQuery[J]:
        """Jobs whose message is in the broker, and no run has begun."""
        return self.in_state(State.ENQUEUED)

    def delayed(self) -> JobQuery[J]:
        """Jobs that the broker holds back until their ``eta``."""
        return self.in_state(State.DELAYED)

    def waiting(self) -> JobQuery[J]:
        """Jobs whose critical section is taken."""
        return self.in_state(State.WAITING)

    def started(self) -> JobQuery[J]:
        """Jobs with a run in progress."""
        return self.in_state(State.STARTED)

    def retrying(self) -> JobQuery[J]:
        """Jobs that failed and wait for their retry."""
        return self.in_state(State.RETRYING)

    def lost(self) -> JobQuery[J]:
        """Jobs whose worker is gone."""
        return self.in_state(State.LOST)

    def finished(self) -> JobQuery[J]:
        """Jobs that are done."""
        return self.in_state(State.FINISHED)

    def dead(self) -> JobQuery[J]:
        """Jobs that will not run again by themselves."""
        return self.in_state(State.DEAD)

    def skipped(self) -> JobQuery[J]:
        """Jobs that were dropped on purpose."""
        return self.in_state(State.SKIPPED)

    def in_progress(self) -> JobQuery[J]:
        """Jobs that are started or retrying."""
        return self.in_state(*IN_PROGRESS)

    def active(self) -> JobQuery[J]:
        """Jobs that have not ended: enqueued, delayed, waiting, started, retrying or lost."""
        return self.in_state(*ACTIVE)

    def by_state(self) -> dict[State, int]:
        """Return the number of jobs in each state that has any.

        It counts every job of the query.

        Example:
          >>> joblog.jobs.of_actor("none").by_state()
          {}
        """
        job: Any = self.model
        bare: Any = self.order_by()
        counts = bare.select(job.state, fn.COUNT(job.id)).group_by(job.state)
        found = {str(state): int(number) for state, number in counts.tuples()}
        return {state: found[state] for state in State if state in found}

    def in_state(self, *states: str) -> JobQuery[J]:
        """Jobs in any of *states*.

        Raises:
          SearchError: If one of them is not a state.
        """
        if not states:
            return self._none()
        given: tuple[Any, ...] = states
        for state in given:
            if not isinstance(state, str) or state not in tuple(State):
                known = ", ".join(State)
                raise SearchError(f"{shown(state)} is not a state: use some of {known}, one by one")
        return self._narrow(self._job.state.in_(literal_states(states)))

    def of_type(self, *types: str) -> JobQuery[J]:
        """Jobs of any of these job types, given as strings or ``str`` enum members."""
        return self._any_of(self._job.job_type, types)

    def for_user(self, user: Any) -> JobQuery[J]:
        """Jobs of one user, given as an id, or as a row of a peewee or Django model.

        An id matches whether it was sent as a number or as a string; None matches jobs without a
        user.

        Raises:
          SearchError: If it cannot be a user's id, such as an object without a primary key.
        """
        field: Any = user_field(self._job)
        return self._narrow(field == user_asked(field, user))

    def of_actor(self, *names: str) -> JobQuery[J]:
        """Jobs of any of these actors, by name."""
        return self._any_of(self._job.actor, names)

    def in_queue(self, *names: str) -> JobQuery[J]:
        """Jobs of any of these queues, by name."""
        return self._any_of(self._job.queue, names)

    def excluding(self, jid: str) -> JobQuery[J]:
        """All jobs except one: usually the job that runs the query."""
        [jid] = _one_by_one((jid,))
        return self._narrow(self._job.jid != jid)

    def since(self, instant: datetime | date) -> JobQuery[J]:
        """Jobs created at or after *instant*, which must be aware; a date begins at midnight UTC.

        Raises:
          ValueError: If *instant* has no time zone.
          TypeError: If it is not an instant.
        """
        return self._narrow(self._job.created_at >= millis_of(instant, "since"))

    def until(self, instant: datetime | date) -> JobQuery[J]:
        """Jobs created before *instant*, which must be aware; a date begins at midnight UTC.

        Raises:
          ValueError: If *instant* has no time zone.
          TypeError: If it is not an instant.
        """
        return self._narrow(self._job.created_at < millis_of(instant, "until"))

    def dismissed(self) -> JobQuery[J]:
        """Jobs that someone dismissed."""
        return self._narrow(self._job.dismissed_at.is_null(False))

    def undismissed(self) -> JobQuery[J]:
        """Jobs that were not dismissed."""
        return self._narrow(self._job.dismissed_at.is_null())

    def page(
        self, *, limit: int = 50, before: str | None = None, after: str | None = None
    ) -> Page[J]:
        """Return one page of jobs, newest first by creation.

        Every page costs the same, because nothing is counted or skipped.  The query's own order
        is not used.  For conditions without an index, such as a part of an error, a page checks a
        bounded number of jobs; see :attr:`Page.looked_back_to`.

        Parameters:
          limit: How many jobs at most.
          before: The *older* of a page: what comes after it in the list.
          after: The *newer* of a page, or :func:`cursor_of` a job: what has come since.

        Raises:
          SearchError: If *before* or *after* is not from a page, or *limit* is out of bounds.
        """
        job, limit = self._job, count_asked("limit", limit)
        query: Any = self
        if before is not None:
            at, number = _position(before)
            # Not a plain OR, which no database turns into one range of an index.
            query = query.where(job.created_at <= at, (job.created_at < at) | (job.id < number))
        if after is not None:
            at, number = _position(after)
            query = query.where(job.created_at >= at, (job.created_at > at) | (job.id > number))
            rows = list(query.order_by(job.created_at, job.id).limit(limit + 1))
            more, rows = len(rows) > limit, rows[:limit][::-1]
            newer = cursor_of(rows[0]) if more else None
            return Page(rows, newer, cursor_of(rows[-1]) if rows else None)
        end = self._end_of_look(before)
        if end is not None:
            query = query.where(job.created_at >= end.created_at)
        rows = list(query.order_by(job.created_at.desc(), job.id.desc()).limit(limit + 1))
        more, rows = len(rows) > limit, rows[:limit]
        newer = cursor_of(rows[0]) if rows and before is not None else None
        if end is not None and not more:
            return Page(rows, newer, cursor_of(end), end.created_at)
        return Page(rows, newer, cursor_of(rows[-1]) if more else None)

    def greatest(self, name: str, *, limit: int = 50, among: int = 2_000) -> list[J]:
        """Return the jobs with the greatest values in a column, among the newest jobs.

        Its cost does not grow with the log.

        Parameters:
          name: The column: ``"duration"``, ``"queue_time"`` or ``"attempt"``.
          limit: How many jobs at most.
          among: How many of the newest jobs to compare.

        Raises:
          SearchError: If the column is unknown, or a number is out of bounds.
        """
        if name not in COMPARABLE:
            raise SearchError(f"{shown(name)} is not an order: use one of {', '.join(COMPARABLE)}")
        job, limit = self._job, count_asked("limit", limit)
        query: Any = self
        end = self._end_of_look(None)
        if end is not None:
            query = query.where(job.created_at >= end.created_at)
        field = getattr(job, name)
        newest = query.order_by(job.created_at.desc(), job.id.desc()).select(job.id, field)
        values = newest.limit(count_asked("among", among)).tuples()
        known = [(value, number) for number, value in values if value is not None]
        ids = [number for _, number in sorted(known, reverse=True)[:limit]]
        rows = {row.id: row for row in job.select().where(job.id.in_(ids))} if ids else {}
        return [rows[number] for number in ids if number in rows]

    def _end_of_look(self, before: str | None) -> Any:
        """Return the last job that a page after *before* may check; None if there is no bound."""
        if self._walked is None:
            return None
        job = self._job
        walked = self._walked.select(job.id, job.created_at)
        if before is not None:
            at, number = _position(before)
            walked = walked.where(job.created_at <= at, (job.created_at < at) | (job.id < number))
        newest = job.created_at.desc(), job.id.desc()
        return walked.order_by(*newest).offset(LOOK - 1).limit(1).first()

    @property
    def _job(self) -> Any:
        return self.model

    def _any_of(self, field: Field, values: tuple[str, ...]) -> JobQuery[J]:
        # The column converts them, as it did when they were stored.
        return self._narrow(field.in_(_one_by_one(values)))

    def _none(self) -> JobQuery[J]:
        return self._narrow(SQL("1 = 0"))

    def _narrow(self, condition: Any) -> JobQuery[J]:
        query: JobQuery[J] = self.where(condition)
        return query


def _one_by_one(values: tuple[Any, ...]) -> list[Any]:
    """Return the given values, each of which must be a single one.

    Raises:
      SearchError: If one of them is a list.
    """
    for value in values:
        if isinstance(value, (list, tuple, set, frozenset, dict)):
            raise SearchError(f"{shown(value)} is several values in one: give them one by one")
    return list(values)


def query_asked(query: Any, job: type[Model]) -> Any:
    """Return a query after checking that it selects this log's jobs.

    Raises:
      SearchError: If it is not a query, or is one of another log.
    """
    if not isinstance(query, JobQuery):
        raise SearchError(
            f"query={shown(query)} is not a query of jobs: give one, such as joblog.jobs.dead() or "
            "joblog.search('state:dead')"
        )
    if query.model is not job:
        raise SearchError("query= asks for the jobs of another log: begin it with this log's jobs")
    return query


def _position(cursor: str) -> tuple[int, int]:
    found = _CURSOR.fullmatch(cursor) if isinstance(cursor, str) else None
    at, number = (int(part) for part in found.groups()) if found is not None else (0, -1)
    if found is None or abs(at) > MAX_BIGINT or number > MAX_BIGINT:
        raise SearchError(f"{shown(cursor)} is not a place in a list of jobs: use one of a page")
    return at, number


def count_asked(name: str, value: int, *, least: int = 1, most: int = 1_000_000) -> int:
    """Return a number after checking that it is within bounds.

    Raises:
      SearchError: If it is not a whole number from *least* to *most*.
    """
    if not is_whole(value, least, most):
        raise SearchError(
            f"{name}={shown(value)} must be a whole number from {least:,} to {most:,}"
        )
    return int(value)
