"""JobLog: a log of jobs in one database."""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from dramatiq import Broker
from peewee import Database, Model, PeeweeException

from dramatiq_joblog.payload.values import host_now

from .admin import audit as people
from .admin import mutes
from .admin.cancel import Cancelled, Cancelling
from .admin.doctor import DEFAULT_TIMEOUT as DOCTORS_TIMEOUT
from .admin.doctor import Doctor
from .admin.queues import queues as queues_of
from .admin.retention import DEFAULT_BATCH
from .admin.standstill import MAX_UNSERVED, Standstill
from .alerts.alerting import DEFAULT_EVERY, AlertSettings
from .asking.aside import DEFAULT_TIMEOUT
from .asking.waiting import Following, wait_for_family, wait_for_jobs
from .broker.arguments import positional_names
from .broker.bulk import requeue_all
from .core import Core
from .database.checkout import checked_out, transaction
from .database.clock import database_now, read_now
from .database.django_alias import DjangoAlias
from .database.timeouts import bounded, refuse_event_loop
from .database.url import open_database
from .errors import (
    ConfigurationError,
    DatabaseAwayError,
    JobLogError,
    JobNotFound,
    LockNotAcquired,
    SearchError,
)
from .locking.by_hand import HeldByHand
from .locking.leases import Claim
from .locking.limits import check_limit_set, said_of
from .locking.locks import fold_key
from .locking.needs import SECTION
from .locking.options import DEFAULT_TTL, check_by_hand
from .payload.contents import Contents
from .payload.encryption import Seal
from .payload.given import (
    given_callable,
    given_flag,
    given_list,
    given_mapping,
    given_optional,
    given_text,
)
from .payload.redaction import Redactor
from .payload.sanitize import clean_optional, fold_jid
from .payload.values import MAX_BIGINT, MAX_INT, MAX_MILLIS, shown
from .reading import counts, saved, search
from .recording.current import running
from .recording.heartbeat import here
from .schema import models as rows
from .schema.fields import instant_of, millis_of
from .schema.migrations import migrate
from .schema.query import J, count_asked, query_asked
from .statistics import series as stats
from .statistics.profile import make_profile
from .statistics.rollups import level_of

if TYPE_CHECKING:
    import os
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from dramatiq import Message

    from .admin.audit import DeadGroup, DeadMessage
    from .admin.doctor import Finding
    from .admin.problem import Problem
    from .admin.queues import Queue
    from .admin.retention import Keep
    from .alerts.notifiers import Notify
    from .alerts.rules import Alert, Expect, ProblemAlert
    from .broker.requeue import Requeued
    from .database.queries import Select
    from .database.url import DatabaseURL
    from .locking.limits import LimitSet
    from .reading.counts import Count
    from .recording.outage import OnOutage
    from .schema.query import JobQuery
    from .states import State
    from .statistics.cells import Cell
    from .statistics.profile import Profile
    from .statistics.series import GroupedBy, Stats

T = TypeVar("T")
M = TypeVar("M", bound=Model)

#: The arguments of a *progress* callable, for error texts.
_OF_PROGRESS = "how many are done, and of how many"


class JobLog(Generic[J]):
    """A log of jobs in one database.

    Creating one opens no connection, thread or file.  Several logs, on the same database or on
    different ones, are independent.

    Example:
      >>> joblog = JobLog("sqlite:///jobs.db")
      >>> joblog.create_tables()
      >>> joblog.jobs.dead().count()
      0

    Parameters:
      database: A URL (``sqlite:///jobs.db``, ``postgresql://user@host/name``), or a peewee
        ``Database``.  The URL may be an object of SQLAlchemy or pydantic, and may name a driver,
        as in ``postgresql+asyncpg://``; the log uses its own driver.
      model: The job model: :class:`Job`, or a subclass of it with columns of your own.
      job_types: The allowed job types: an enum, or strings.  None allows any string.
      keep: Milliseconds to keep jobs after their end, by final state, as in
        ``{"finished": 7 * 86_400_000}``; jobs of other states are kept forever.  Workers delete
        older jobs, one process at a time; totals are kept.
      keep_types: Different times for some job types, by state or for all states; None keeps them
        forever: ``{"audit": None}``.
      on_outage: What to do with events while the database is unavailable: ``"spool"`` keeps them
        on this host's disk and replays them, ``"block"`` makes jobs wait, ``"drop"`` discards
        them and logs how many.
      redact: What to redact in stored arguments and ``meta``, besides passwords, tokens and the
        like: more names; or a callable that receives a name and its value and returns the value
        to store; or False to redact nothing.
      spool: The folder for events during an outage; by default in the user's state folder.
      store_args: Whether to store the arguments of jobs.
      seal_key: A Fernet key, or several, newest first.  Arguments that are not stored as
        they were sent are also stored encrypted, so that their jobs can be run again.
      alerts: Rules: :class:`Alert`, ``Alert.problems()`` and :class:`Expect`.  The worker
        processes check them, one process at a time.
      notify: Who is notified: a callable that receives a :class:`Notice`, or URLs of the library
        apprise, such as ``"slack://..."``.  None only logs notices.
      alerts_every: Milliseconds between two checks.
      on_dead: A callable that receives the row of each job that becomes dead.  It is called after
        the commit, on a separate thread of the process that wrote the row; its errors are logged.
      page_url: The URL of the log's dashboard, for links in notices.

    Raises:
      ConfigurationError: If the database cannot be used, a column of the model cannot be
        filled, or a rule is invalid.
    """

    def __init__(
        self,
        database: DatabaseURL | Database | DjangoAlias,
        *,
        model: type[J] = rows.Job,  # type: ignore[assignment]
        job_types: Any = None,
        keep: Keep | None = None,
        keep_types: Mapping[str, Keep | int | None] | None = None,
        on_outage: OnOutage = "spool",
        redact: Any = None,
        spool: str | os.PathLike[str] | None = None,
        store_args: bool = True,
        seal_key: str | bytes | Sequence[str | bytes] | None = None,
        alerts: Iterable[Alert | ProblemAlert | Expect] = (),
        notify: Notify | None = None,
        alerts_every: int = DEFAULT_EVERY,
        on_dead: Callable[[J], Any] | None = None,
        page_url: str | None = None,
    ) -> None:
        #: The alias of Django's database, if the log was created by :meth:`from_django`.
        self.django_alias = database.alias if isinstance(database, DjangoAlias) else None
        own = not isinstance(database, Database)
        #: Its parts, for the middleware, the dashboard and the command line.
        self.core: Core[J] = Core(
            open_database(database),
            model=model,
            owned=own,
            job_types=_texts_of(job_types),
            contents=Contents(
                Redactor(redact),
                Seal(seal_key) if seal_key is not None else None,
                given_flag("store_args", store_args),
            ),
            spool=spool,
            on_outage=on_outage,
            keep=keep,
            keep_types=keep_types,
            alerts=AlertSettings(alerts, notify, alerts_every, page_url),
            on_dead=on_dead,
        )

    @property
    def database(self) -> Database:
        """The peewee database."""
        return self.core.database

    # The models, bound to the database.

    @property
    def Job(self) -> type[J]:  # noqa: N802 - it is a class
        """The job model."""
        return self.core.tables.job

    @property
    def Failure(self) -> type[rows.Failure]:  # noqa: N802 - it is a class
        """The model of runs that did not finish, or were not the last of their job."""
        return self.core.tables.failure

    @property
    def Worker(self) -> type[rows.Worker]:  # noqa: N802 - it is a class
        """The model of worker processes."""
        return self.core.tables.worker

    @property
    def Lock(self) -> type[rows.Lock]:  # noqa: N802 - it is a class
        """The model of held keys."""
        return self.core.tables.lock

    @property
    def Line(self) -> type[rows.Line]:  # noqa: N802 - it is a class
        """The model of log lines."""
        return self.core.tables.line

    @property
    def Action(self) -> type[rows.Action]:  # noqa: N802 - it is a class
        """The model of recorded actions."""
        return self.core.tables.action

    @property
    def Deploy(self) -> type[rows.Deploy]:  # noqa: N802 - it is a class
        """The model of marks."""
        return self.core.tables.deploy

    @classmethod
    def from_django(
        cls,
        alias: str = "default",
        *,
        model: type[J] = rows.Job,  # type: ignore[assignment]
        **options: Any,
    ) -> JobLog[J]:
        """Return a log in one of Django's databases, with the settings of that database.

        The log uses its own connections, so its writes are not part of Django's transactions.

        Example:
          >>> joblog = JobLog.from_django("default")  # doctest: +SKIP

        Parameters:
          alias: The name of a SQLite, PostgreSQL, MySQL or MariaDB database in ``DATABASES``.
          model: The job model, as for :class:`JobLog`.
          options: All other options of :class:`JobLog`.

        Raises:
          ConfigurationError: If there is no such alias, or the log cannot use its engine.
        """
        return cls(DjangoAlias(alias), model=model, **options)

    @property
    def jobs(self) -> JobQuery[J]:
        """All jobs, newest first; refine the query with scopes and with peewee's own methods.

        It includes everything that this process has sent before.
        """
        job = self.Job
        query = job.select().asked_after(self.core.settle)
        return query.order_by(job.created_at.desc(), job.id.desc())

    @property
    def locks(self) -> Select[rows.Lock]:
        """The keys that are held now, by jobs and by :meth:`lock`: a select of :class:`Lock`.

        Each row also has ``lease_left``: the milliseconds until its lease expires unless it is
        renewed, by the database's clock.
        """
        lock, now = self.Lock, database_now(self.database)
        return (
            lock.select(lock, (lock.expires_at - now).alias("lease_left"))
            .where(lock.kind == SECTION, lock.owner.is_null(False), lock.expires_at > now)
            .order_by(lock.acquired_at, lock.id)
        )

    def waiters(self, key: str) -> JobQuery[J]:
        """Return the jobs that wait for *key*, the next one first."""
        key = fold_key(given_text("key", key, "the key of a section or of a rate"))
        with checked_out(self.database):
            query: JobQuery[J] = self.core.locks.waiters.all_of(key)
        return query

    def waiters_by_key(self, keys: Iterable[str], *, limit: int = 50) -> dict[str, list[J]]:
        """Return the jobs that wait for each of some keys, the next one first, in one query.

        Example:
          >>> joblog.waiters_by_key(["erp", "bank"])
          {}

        Parameters:
          keys: The keys; those without waiting jobs are not in the result.
          limit: Return at most this many jobs for each key.
        """
        limit = count_asked("limit", limit)
        named = given_list("keys", keys, "keys of sections or of rates")
        folded = {fold_key(given_text("keys", key, "keys of sections")): key for key in named}
        with checked_out(self.database):
            found = self.core.locks.waiters.of_each(list(folded), limit) if folded else {}
        return {folded[key]: line for key, line in found.items()}

    def lock(
        self, key: str, *, limit: int = 1, ttl: int = DEFAULT_TTL, wait: int | None = None
    ) -> HeldByHand:
        """Hold a key until the end of the block; the lease is renewed meanwhile.

        In a coroutine, use ``async with joblog.lock(...)``, which does not block the event loop.
        The lock is not re-entrant: a second block with the same key, or a block in a job that
        holds the key, would wait for itself and raises at once.  Jobs that have waited longer for
        the key come first.

        Example:
          >>> with joblog.lock("nightly report") as lease:
          ...     lease.fence
          1

        Parameters:
          key: The key; ``exclusive`` and locks share their keys.
          limit: How many holders the key may have at once.
          ttl: Milliseconds for which it stays held if this process dies.
          wait: Milliseconds to wait for it; None does not wait.

        Raises:
          LockNotAcquired: If the key is not free in time; or at once, if this block or the job
            around it would wait for itself.
          ConfigurationError: If a value is invalid.  Also, on entering the block: inside a
            transaction of the same database, because others could take the lock before they see
            what was done under it; and with *wait* inside a running event loop, unless
            ``async with`` is used.
          DatabaseAwayError: If the database is unavailable.
        """
        check_by_hand(key, limit=limit, ttl=ttl, wait=wait)
        locks = self.core.locks

        def claim(token: str) -> Claim:
            self._refuse_in_transaction(key)
            run, folded = running.get(), fold_key(key)
            held = () if run is None or run.lease is None else run.lease.leases
            return Claim(
                SECTION,
                folded,
                here() if run is None else run.jid,
                token,
                ttl,
                process=locks.leases.process,
                limit=limit,
                by_hand=True,
                of_job=sum(lease.key == folded and not lease.lost for lease in held),
            )

        return HeldByHand(locks, self.core.writer, key, claim, wait or 0)

    def _refuse_in_transaction(self, key: str) -> None:
        if not self.database.is_closed() and self.database.in_transaction():
            raise ConfigurationError(
                f"lock {key!r} is taken inside a transaction, which would end after the lock "
                "is free: take the lock first, and begin the transaction inside it"
            )

    @property
    def workers(self) -> Select[rows.Worker]:
        """The worker processes, newest first: a select of :class:`Worker`.

        Those that have ended are included for a week; see :attr:`Worker.ended_at`.
        """
        return self.Worker.select().order_by(self.Worker.id.desc())

    @property
    def name(self) -> str:
        """The kind and name of the database, for display, without its password."""
        return self.core.name

    def doctor(self, broker: Any = None) -> list[Finding]:
        """Check the log: its database, workers and files.

        It only reads, in about a dozen queries, and does not raise if the database is
        unavailable.  The result has every check, including those that passed; see
        :meth:`problems` for what needs attention.

        Example:
          >>> all(finding.ok for finding in joblog.doctor())
          True

        Parameters:
          broker: The broker with the log's middleware, to check it as well.
        """
        return Doctor.for_findings(self.core, broker).findings()

    def problems(
        self,
        *,
        patience: int = MAX_UNSERVED,
        timeout: int = DOCTORS_TIMEOUT,
        muted: bool = False,
    ) -> list[Problem]:
        """Return what needs attention now, each with its cure, the most serious first.

        Problems are: jobs lost with their worker, queues that no worker consumes, busy
        threads while jobs wait, overdue jobs, lost retries, new or rising errors, job types that
        fail more often or take longer than a week ago, stuck sections, events that wait on this
        host's disk, wrong clocks, and faults of the database.

        It only reads indexes and totals, so its cost does not grow with the number of jobs.  It
        does not raise if the database is unavailable: that is a problem too.

        Example:
          >>> [problem.text for problem in joblog.problems()]
          []

        Parameters:
          patience: Milliseconds that jobs may wait for a worker, or for a free thread.
          timeout: Milliseconds for all queries together; a check that does not finish in time is
            itself a problem.
          muted: Return muted problems too; their ``muted`` says who muted them.
        """
        patience = count_asked("patience", patience, least=0, most=MAX_MILLIS)
        timeout = count_asked("timeout", timeout, most=MAX_MILLIS)
        muted = given_flag("muted", muted)
        return self.core.problems(patience=patience, timeout=timeout, muted=muted)

    def mute(
        self, problem: Problem, *, until: datetime | int, reason: str, who: str | None = None
    ) -> rows.Mute:
        """Mute a known problem, until a time or until it gets worse.

        It returns after *until*, or when its count has more than doubled.  The dashboard and
        ``status`` still show it, in grey; metrics and alerts leave it out.

        Example:
          >>> for problem in joblog.problems():
          ...     joblog.mute(problem, until=monday, reason="ticket 12", who="ada")

        Parameters:
          problem: One of :meth:`problems`.
          until: An aware datetime or milliseconds since 1970, at most 31 days from now.
          reason: Why; it is recorded with *who* in ``joblog.actions``.
          who: Who does it.

        Raises:
          ConfigurationError: If a value is invalid, or the problem concerns the database.
          TypeError: If *until* is not an instant.
          ValueError: If *until* has no time zone.

        Returns:
          The :class:`Mute`.
        """
        problem, ends = mutes.check(problem), millis_of(until, "until")
        reason = self.core.redactor.text(given_text("reason", reason, "why it is muted").strip())
        given_optional("who", who)
        now = self.core.locks.now()
        if not now < ends <= now + mutes.LONGEST:
            raise ConfigurationError(
                f"until={shown(until)} is not within the next 31 days: a muted problem must come "
                "back"
            )
        said = f"{reason} ({problem.title}, until {instant_of(ends):%Y-%m-%d %H:%M} UTC)"
        with transaction(self.database):
            row = mutes.mute(self.core.tables.mute, problem, until=ends, reason=reason, who=who)
            self.core.record("mute", who=who or "", detail=said)
        return row

    @property
    def mutes(self) -> Select[rows.Mute]:
        """The muted problems, the first to end first: a select of :class:`Mute`."""
        found: Select[rows.Mute] = mutes.standing(self.core.tables.mute)
        return found

    def unmute(self, problem: Problem | rows.Mute, *, who: str | None = None) -> bool:
        """Unmute a problem, and return whether it was muted.

        Parameters:
          problem: One of ``problems(muted=True)``; or one of :attr:`mutes`, also if its problem
            is gone.
          who: Who does it, for ``joblog.actions``.
        """
        problem = mutes.check_muted(problem)
        given_optional("who", who)
        with transaction(self.database):
            if not mutes.unmute(self.core.tables.mute, problem):
                return False
            self.core.record("unmute", who=who or "", detail=problem.title)
        return True

    @property
    def alerts(self) -> Select[rows.AlertState]:
        """The state of each alert, open ones first: a select of :class:`AlertState`.

        Each row has whether the alert is open and since when, the last notice sent, and the notice
        still to be sent, with the error of the last attempt.
        """
        state = self.core.tables.alert
        return state.select().order_by(state.is_open.desc(), state.name)

    def queues(self) -> list[Queue]:
        """Return the queues that have due jobs or workers, the furthest behind first.

        Example:
          >>> [(queue.name, queue.due, queue.state) for queue in joblog.queues()]
          []
        """
        self.core.settle()
        with checked_out(self.database):
            standstill = Standstill(self.core.tables, patience=0)
            return queues_of(standstill, self.now())

    def get(self, jid: str) -> J:
        """Return the job with this jid, as an instance of the log's job model.

        Raises:
          JobNotFound: If the log has no such job.
        """
        self.core.settle()
        row = self.Job.get_or_none(self.Job.jid == fold_jid(jid))
        if row is None:
            raise JobNotFound(jid)
        return row

    def search(self, text: str, *, now: datetime | None = None, broker: Any = None) -> JobQuery[J]:
        """Select jobs by words, newest first: ``state:dead type:import since:2d timeout``.

        The keys are ``search.KEYS``.  A repeated key matches any of its values, ``-key:value``
        excludes, and a value with spaces needs quotes.  Text without a key is a full jid, or a
        part of an actor, a job type or an error.  ``state:dead`` leaves out dismissed jobs,
        unless ``dismissed:`` is given.  Words without an index, such as ``duration:``, ``args:``
        and ``lines:``, check a bounded number of jobs for each page.  ``saved:name`` is short for
        words that were saved by :meth:`save_search`.

        Example:
          >>> [job.jid for job in joblog.search("state:dead since:1h").page(limit=20).jobs]
          []

        Parameters:
          text: The words.
          now: The instant that relative times refer to; aware, by default this host's time.  A
            time without a zone is in the zone of *now*.
          broker: The broker whose actors name the positional arguments, for
            ``args.name:``; by default the one on which this process declared its actors.

        Raises:
          SearchError: If the words cannot be parsed; the text says what to write.
        """
        terms = saved.terms_of(self.core.tables.search, text)
        query = self.jobs
        if len(terms) == 1 and terms[0].key is None and not terms[0].negated:
            this = query.where(self.Job.jid == fold_jid(terms[0].value))
            if this.exists():
                return this
        names = {}
        if any((term.key or "").startswith("args.") for term in terms):
            names = positional_names(broker)
        return search.narrow(query, terms, now=now, names=names)

    @property
    def searches(self) -> Select[rows.SavedSearch]:
        """The saved searches, by name: a select of :class:`SavedSearch`."""
        model = self.core.tables.search
        return model.select().order_by(model.name)

    def save_search(self, name: str, words: str, *, who: str | None = None) -> rows.SavedSearch:
        """Save a search under a name for all users of the log; an older one is replaced.

        Example:
          >>> joblog.save_search("dead imports", "state:dead type:import", who="ada").words
          'state:dead type:import'
          >>> joblog.search('saved:"dead imports" since:1d').count()
          0

        Parameters:
          name: Its name, of at most 80 characters.
          words: The words, as for :meth:`search`.
          who: Who saves it, also for ``joblog.actions``.

        Raises:
          SearchError: If the words or the name are invalid.

        Returns:
          The :class:`SavedSearch`.
        """
        terms = search.parse(words)
        if not terms or any(term.key == "saved" for term in terms):
            raise SearchError("save the words of a search, such as 'state:dead type:import'")
        self.search(words)
        with transaction(self.database):
            row: rows.SavedSearch = saved.save(self.core.tables.search, name, words.strip(), who)
            self.core.record("save_search", who=who or "", detail=row.name)
        return row

    def delete_search(self, name: str, *, who: str | None = None) -> bool:
        """Delete a saved search, and return whether it existed.

        Parameters:
          name: Its name.
          who: Who deletes it, for ``joblog.actions``.

        Raises:
          SearchError: If the name is invalid.
        """
        given_optional("who", who)
        with transaction(self.database):
            if not saved.delete(self.core.tables.search, name):
                return False
            self.core.record("delete_search", who=who or "", detail=saved.name_of(name))
        return True

    def complete(
        self, key: str, prefix: str = "", *, limit: int = 8
    ) -> list[tuple[str, Count | None]]:
        """Complete a word of a search: return values of *key* that begin with *prefix*.

        The values come from the newest jobs, the most frequent first.

        Parameters:
          key: One of ``search.KEYS``, or ``args.`` for the names of arguments; other keys have no
            values.
          prefix: The beginning of the value.
          limit: Return at most this many values.

        Returns:
          Values, each with its number of jobs, or None if that is unknown.
        """
        limit = count_asked("limit", limit)
        key = given_text("key", key, "one that a search knows, such as 'state'")
        prefix = given_optional("prefix", prefix) or ""
        if key == "saved":
            names = [row.name for row in self.searches.limit(saved.MOST)]
            values = [name for name in names if name.lower().startswith(prefix.lower())][:limit]
        elif key == "args.":
            with checked_out(self.database):
                values = counts.argument_names(self.Job, prefix, limit, positional_names())
        else:
            with checked_out(self.database):
                values = counts.complete(self.Job, key, prefix, limit)
        if key != "state":
            return [(value, None) for value in values]
        by_state: Any = self.counts()
        return [(value, by_state.get(value)) for value in values]

    def counts(
        self, query: JobQuery[J] | None = None, *, cap: int = counts.DEFAULT_CAP
    ) -> dict[State, Count]:
        """Count jobs by state, up to *cap* for each, which bounds the cost on large tables.

        Parameters:
          query: The jobs; by default all.
          cap: Where counting stops; then ``count.capped`` is true.

        Returns:
          A count for every state, in the order in which jobs pass through them.
        """
        cap = count_asked("cap", cap, most=MAX_INT)
        query = self.jobs if query is None else query_asked(query, self.Job)
        with checked_out(self.database):
            return counts.by_state(query, cap)

    def stats(
        self,
        *,
        since: datetime,
        until: datetime | None = None,
        by: GroupedBy = "job_type",
        at_most: int | None = None,
    ) -> Stats:
        """Return statistics of the jobs that ended in a period, as a series of steps.

        Figures older than a few minutes come from totals, which outlive the jobs.  A step is a
        minute for up to six hours (within the last seven hours only), fifteen minutes for up to
        three days, an hour for up to two weeks, and otherwise a day.

        Parameters:
          since: The beginning of the period; aware.
          until: Its end; aware, by default now.
          by: How to group: ``"job_type"``, ``"actor"``, or ``"name"`` for the job type, or the
            actor of jobs without one.
          at_most: How many rows of each kind to count for the time that no worker has aggregated
            yet; by default all.  If there are more, the newest are counted, and ``known_since``
            of the result says since when the figures are complete.

        Raises:
          SearchError: If *by* is unknown, or the period ends before it begins.
          ValueError: If an instant has no time zone.
          TypeError: If it is not an instant.
        """
        if by not in stats.GROUPED_BY:
            raise SearchError(
                f"by={by!r} is not a way to group: use one of {', '.join(stats.GROUPED_BY)}"
            )
        begin, end, step = _steps_of(since, until)
        with checked_out(self.database):
            sums = self.core.totals.sums(step, begin, end, by)
            cells, known_since = self._not_counted(begin, end, step, at_most)
            for cell in cells:
                sums.add(cell, by)
        return stats.make(sums, begin, end, step, known_since)

    def profile(
        self,
        name: str,
        *,
        since: datetime,
        until: datetime | None = None,
        at_most: int | None = None,
    ) -> Profile:
        """Return the statistics of one job type in a period, with the steps of :meth:`stats`.

        Parameters:
          name: The job type, or the actor for its jobs without a type.
          since: The beginning of the period; aware.
          until: Its end; aware, by default now.
          at_most: As for :meth:`stats`.

        Raises:
          SearchError: If the time ends before it begins.
          ValueError: If an instant has no time zone.
          TypeError: If it is not an instant.
        """
        name = given_text("name", name, "a job type, or an actor")
        begin, end, step = _steps_of(since, until)
        with checked_out(self.database):
            cells = self.core.totals.read_of(name, step, begin, end)
            others, known_since = self._not_counted(begin, end, step, at_most)
            cells += [cell for cell in others if cell.name == name]
        return make_profile(name, cells, begin, end, step, known_since=known_since)

    def _not_counted(
        self, begin: int, end: int, step: int, at_most: int | None
    ) -> tuple[list[Cell], datetime | None]:
        """Count what is not in the totals yet; also return since when the counts are complete."""
        at_most = None if at_most is None else count_asked("at_most", at_most)
        counted = self.core.totals.counted()
        first = begin if counted is None else max(begin, counted)
        known = first
        if at_most is not None and end - first > stats.SOON_COUNTED:
            known = self.core.totals.few_since(first, end, at_most)
        cells = self.core.totals.since_counted(known, end, step)
        return cells, instant_of(known) if known > first else None

    def oldest(self, limit: int = 5) -> list[J]:
        """Return the due jobs that have waited longest, oldest first."""
        oldest = self._due().order_by(self.Job.created_at, self.Job.id)
        return list(oldest.limit(count_asked("limit", limit)))

    def dead_groups(self, windows: Iterable[int] = people.DEFAULT_WINDOWS) -> list[DeadGroup]:
        """Group the dead jobs that were not dismissed, by error and actor.

        Parameters:
          windows: The periods to count, in milliseconds before now.

        Returns:
          The groups with a job within the longest window, most recent death first.
        """
        windows = given_list("windows", windows, "milliseconds before now")
        windows = [count_asked("windows", window, most=MAX_MILLIS) for window in windows]
        with checked_out(self.database):
            return people.dead_groups(self.Job, windows, host_now()) if windows else []

    def dead_messages(
        self, window: int, *, among: int = 1_000
    ) -> dict[tuple[str | None, str], list[DeadMessage]]:
        """Group the jobs of :meth:`dead_groups` by the common part of their error messages.

        Parameters:
          window: Milliseconds before now.
          among: How many of the most recent deaths to check.

        Returns:
          By error and actor, the most frequent message first.
        """
        window = count_asked("window", window, most=MAX_MILLIS)
        with checked_out(self.database):
            return people.dead_messages(self.Job, window, host_now(), count_asked("among", among))

    def prune(
        self,
        keep: Keep | None = None,
        *,
        batch: int = DEFAULT_BATCH,
        dry_run: bool = False,
        progress: Callable[[Counter[str]], None] | None = None,
    ) -> Counter[str]:
        """Delete old jobs, with their failures and lines; totals stay.

        Only finished, dead and skipped jobs are deleted.  Workers do this automatically if the
        log has a *keep*; one process does it at a time.

        Example:
          >>> joblog.prune({"finished": 7 * 86_400_000}, dry_run=True)
          Counter()

        Parameters:
          keep: Milliseconds to keep jobs after their end, by final state; by default the log's
            own.  The log's *keep_types* always apply.
          batch: How many jobs to delete per transaction.
          dry_run: Only count the jobs.
          progress: Called after each batch with what was deleted so far.

        Returns:
          How many were deleted, by state; also ``failures``, ``lines``, ``workers`` and ``keys``.

        Raises:
          ConfigurationError: If *keep* is invalid.
          JobLogError: If another process is pruning.
        """
        self.core.settle()
        batch = count_asked("batch", batch)
        progress = given_callable("progress", progress, "a Counter")
        retention = self.core.chores.retention.but(keep)
        if given_flag("dry_run", dry_run):
            with checked_out(self.database):
                return +retention.count(host_now())
        return self.core.chores.prune(retention, batch, progress)

    @contextlib.contextmanager
    def reading(self, *, timeout: int) -> Iterator[None]:
        """Limit the time of queries in the block, which all use one connection.

        Example:
          >>> with joblog.reading(timeout=2_000):
          ...     page = joblog.search("state:dead").page()

        Parameters:
          timeout: Milliseconds that each query may take.

        Raises:
          QueryTimeout: If a query takes longer.
          ConfigurationError: Inside a running event loop, whose tasks would share the connection.
        """
        refuse_event_loop("joblog.reading() is used")
        self.core.settle()
        with checked_out(self.database), bounded(self.database, timeout):
            yield

    # Waiting, following, and queries from event loops

    def wait(self, jid: str, *, timeout: int | None = None) -> J:
        """Wait until a job has ended, and return it.

        You can wait for a job that was just sent and has no row yet.  A job that has already
        ended is returned at once.  All waits of a process share one query at a time.

        Example:
          >>> joblog.wait(message.message_id, timeout=10_000).state
          <State.FINISHED: 'finished'>

        Parameters:
          jid: The job.
          timeout: Milliseconds to wait; None to wait forever.

        Raises:
          WaitTimeout: If it has not ended by then.
          JobNotFound: If its row existed and was pruned.
          JobLogError: If the log is closed meanwhile.
          ConfigurationError: Inside a running event loop, or inside the job itself.

        Returns:
          The job as it ended: finished, dead or skipped.
        """
        return wait_for_jobs(self.core.watcher, [jid], timeout).here()[0][0]

    async def wait_async(self, jid: str, *, timeout: int | None = None) -> J:
        """Wait until a job has ended, like :meth:`wait`, in a coroutine."""
        return (await wait_for_jobs(self.core.watcher, [jid], timeout).aside())[0][0]

    def wait_all(self, jids: Iterable[str], *, timeout: int | None = None) -> list[J]:
        """Wait until several jobs have ended, such as those of a ``group``; see :meth:`wait`.

        Parameters:
          jids: The jobs.
          timeout: Milliseconds to wait for all of them; None to wait forever.

        Raises:
          WaitTimeout: If one has not ended by then.

        Returns:
          The jobs, in the order of *jids*.
        """
        found = wait_for_jobs(self.core.watcher, jids, timeout).here()
        return [job for [job] in found]

    async def wait_all_async(self, jids: Iterable[str], *, timeout: int | None = None) -> list[J]:
        """Wait until several jobs have ended, like :meth:`wait_all`, in a coroutine."""
        found = await wait_for_jobs(self.core.watcher, jids, timeout).aside()
        return [job for [job] in found]

    def wait_family(self, jid: str, *, timeout: int | None = None) -> list[J]:
        """Wait until a job's whole family has ended: the first job, and every job sent from it.

        The jobs of a pipeline are one family, and so is a group that a job sends.

        Parameters:
          jid: Any job of the family.
          timeout: Milliseconds to wait; None to wait forever.

        Raises:
          WaitTimeout: If one of them has not ended by then.

        Returns:
          The jobs of the family, oldest first.
        """
        return wait_for_family(self.core.watcher, jid, timeout).here()[0]

    async def wait_family_async(self, jid: str, *, timeout: int | None = None) -> list[J]:
        """Wait until a job's whole family has ended, like :meth:`wait_family`, in a coroutine."""
        return (await wait_for_family(self.core.watcher, jid, timeout).aside())[0]

    def follow(self, jid: str, *, timeout: int | None = None) -> Following[J]:
        """Follow a job to its end: with ``for`` in a thread, with ``async for`` in a coroutine.

        It yields the job as it is now, and again after each change of its state, attempt or
        progress, until it has ended.  Changes between two checks, about 50 ms apart, are merged.

        Example:
          >>> for job in joblog.follow(message.message_id, timeout=10_000):
          ...     print(job.state, job.progress)
          finished None

        Parameters:
          jid: The job; it may have just been sent.
          timeout: Milliseconds to follow it; None until it has ended.

        Raises:
          WaitTimeout: During iteration, if it has not ended by then.
          JobNotFound: If its row existed and is gone.
          JobLogError: If the log is closed meanwhile.
          ConfigurationError: For ``for`` inside a running event loop, or inside the job itself.
        """
        return Following(self.core.watcher, jid, timeout)

    async def get_async(self, jid: str, *, timeout: int = DEFAULT_TIMEOUT) -> J:
        """Return the job with this jid, like :meth:`get`, in a coroutine.

        Parameters:
          jid: The job.
          timeout: Milliseconds to wait for the answer.
        """
        return await self.core.aside.run(lambda: self.get(jid), timeout)

    @overload
    async def fetch(self, asked: Select[M], *, timeout: int = DEFAULT_TIMEOUT) -> list[M]: ...

    @overload
    async def fetch(self, asked: Callable[[], T], *, timeout: int = DEFAULT_TIMEOUT) -> T: ...

    async def fetch(self, asked: Any, *, timeout: int = DEFAULT_TIMEOUT) -> Any:
        """Run a query in a coroutine, without blocking the event loop.

        Example:
          >>> async def dead_imports():
          ...     jobs = await joblog.fetch(joblog.jobs.dead().of_type("import").limit(10))
          ...     counts = await joblog.fetch(joblog.counts)
          ...     return jobs, counts

        Parameters:
          asked: A query, whose rows are returned as a list; or a function, which is called on a
            thread of the log and may run any queries.
          timeout: Milliseconds to wait for the answer.

        Raises:
          DatabaseAwayError: If the database is unavailable, or there was no answer in time.
        """
        return await self.core.aside.fetch(asked, timeout)

    async def requeue_async(
        self,
        jid: str,
        *,
        arguments: Mapping[str, Any] | None = None,
        who: str | None = None,
        broker: Broker | None = None,
        timeout: int = DEFAULT_TIMEOUT,
    ) -> Message[Any]:
        """Run a job again, like :meth:`requeue`, in a coroutine."""
        return await self.core.aside.run(
            lambda: self.requeue(jid, arguments=arguments, who=who, broker=broker), timeout
        )

    async def cancel_async(
        self,
        jid: str,
        *,
        who: str | None = None,
        reason: str | None = None,
        timeout: int = DEFAULT_TIMEOUT,
    ) -> J:
        """Cancel a job that is not running, like :meth:`cancel`, in a coroutine."""
        return await self.core.aside.run(lambda: self.cancel(jid, who=who, reason=reason), timeout)

    # The audit log, and actions of people

    @property
    def actions(self) -> Select[rows.Action]:
        """The audit log: actions of people, newest first; a select of :class:`Action`."""
        return self.Action.select().order_by(self.Action.id.desc())

    def record(
        self,
        what: str,
        *,
        who: str,
        jid: str | None = None,
        key: str | None = None,
        detail: str | None = None,
    ) -> rows.Action:
        """Record an action of a person in the audit log, and return the :class:`Action`.

        Parameters:
          what: A verb of at most 32 characters, such as ``requeue``.
          who: Who did it, as far as known.
          jid: The job that it concerns.
          key: The key that it concerns.
          detail: The reason and the result.
        """
        what = given_text("what", what, "a verb, such as 'requeue'")
        given_optional("who", who)
        given_optional("detail", detail)
        return self.core.record(what, who=who, jid=jid, key=key, detail=detail)

    @property
    def marks(self) -> Select[rows.Deploy]:
        """All marks, newest first: a select of :class:`Deploy`."""
        return self.Deploy.select().order_by(self.Deploy.at.desc(), self.Deploy.id.desc())

    def mark(
        self, name: str, *, at: datetime | int | None = None, who: str | None = None
    ) -> rows.Deploy:
        """Record that something changed, such as a new version, for charts and problems.

        Example:
          >>> joblog.mark("v412", who="ada").name
          'v412'

        Parameters:
          name: The name of the change.
          at: When; an aware datetime or milliseconds since 1970, by default now.
          who: Who records it.

        Raises:
          ConfigurationError: If the name is not a string, or is empty.

        Returns:
          The :class:`Deploy`.
        """
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"a mark needs a name, such as 'v412', and not {name!r}")
        instant, who = None if at is None else millis_of(at, "at"), given_optional("who", who)
        with transaction(self.database):
            marked: rows.Deploy = people.mark(self.Deploy, name.strip(), at=instant, who=who)
        return marked

    def dismiss(self, *jids: str, who: str) -> list[str]:
        """Mark dead jobs as handled: lists of dead jobs leave them out.

        Each dismissal is recorded as an action.

        Parameters:
          jids: The jobs; those that are not dead, or already dismissed, are not changed.
          who: Who dismisses them.

        Returns:
          The jids of those that were dismissed.
        """
        given_optional("who", who)
        dismissed = []
        for start in range(0, len(jids), 500):
            with transaction(self.database):
                some = people.dismiss(self.Job, jids[start : start + 500])
                for jid in some:
                    people.record(self.Action, "dismiss", who=who, jid=jid, key=None, detail=None)
            dismissed += some
        return dismissed

    def unlock(self, key: str, *, slot: int = 0, fence: int, reason: str, who: str) -> rows.Lock:
        """Release a critical section, if the given holder still holds it.

        This does not stop the holder's job: it continues without its lease, and sees
        ``current_job().lease_lost`` at the next renewal, while the next job may start at once.
        Make sure that the job is gone, or that two jobs at the same time do no harm.

        Parameters:
          key: The section's key.
          slot: The number of the slot.
          fence: The holder's fence; if the section has another holder by now, nothing changes.
          reason: Why; it is recorded.
          who: Who does it.

        Returns:
          The :class:`Lock` row as it was.

        Raises:
          LockNotAcquired: If that holder no longer holds it.
        """
        key = fold_jid(given_text("key", key, "the key of a section"))
        reason = given_text("reason", reason, "why it is freed").strip()
        given_optional("who", who)
        slot = count_asked("slot", slot, least=0, most=MAX_INT)
        fence = count_asked("fence", fence, most=MAX_BIGINT)
        with transaction(self.database):
            held: rows.Lock | None = people.unlock(self.Lock, key, slot, fence)
            if held is None:
                raise LockNotAcquired(key, f"is not held with fence {fence} in slot {slot}")
            self.core.record(
                "unlock",
                who=who,
                key=held.key,
                jid=held.owner,
                detail=f"{reason} (slot {slot}, fence {fence}, held by {held.owner})",
            )
        return held

    @property
    def limits(self) -> list[LimitSet]:
        """The limits set by :meth:`set_limit` that apply now, by key."""
        with checked_out(self.database):
            return self.core.locks.limits.all()

    def set_limit(
        self,
        key: str,
        limit: int | None,
        *,
        until: datetime | int | None = None,
        who: str | None = None,
    ) -> None:
        """Set the limit of a key while jobs run, overriding the limit in the code.

        It applies to sections, rates and :meth:`lock`, from the next attempt on.  Running jobs
        continue.  With 0 the key is paused, even for retries that hold it.  Jobs that cannot
        start follow their *on_conflict*: with ``"skip"`` they are skipped.

        Example:
          >>> joblog.set_limit("erp", 0, who="ada")
          >>> [(limit.key, limit.limit, limit.who) for limit in joblog.limits]
          [('erp', 0, 'ada')]
          >>> joblog.set_limit("erp", None, who="ada")

        Parameters:
          key: The key, as the jobs name it.
          limit: The new limit; 0 pauses the key; None restores the limit in the code.
          until: When it ends, as an aware datetime or milliseconds since 1970; None for no end.
          who: Who does it, for ``joblog.actions``.

        Raises:
          ConfigurationError: If a value is invalid.
        """
        check_limit_set(key, limit)
        given_optional("who", who)
        stored, limits = fold_key(key), self.core.locks.limits
        with transaction(self.database):
            before = limits.get(stored)
            if limit is None:
                limits.remove(stored)
            else:
                ends = None if until is None else millis_of(until, "until")
                if ends is not None and ends <= self.core.locks.now():
                    raise ConfigurationError(
                        f"the limit of {key!r} is to hold until {until}, which is over: name a "
                        "later time, or None"
                    )
                limits.set(stored, limit, until=ends, who=clean_optional(who) or "unknown")
            after = limits.get(stored)
            detail = f"{said_of(after)} (before: {said_of(before)})"
            self.core.record("limit", who=who or "", key=stored, detail=detail)
        self.core.locks.freed.note({stored})

    # Cancelling jobs, and running them again

    def cancel(self, jid: str, *, who: str | None = None, reason: str | None = None) -> J:
        """Cancel a job that is not running: it becomes dead, with the reason ``cancelled``.

        Use this for a job whose message or worker is gone, and for a job that is no longer
        wanted.  Everything it holds is released: its section, its position in wait queues, and its
        unique key.  It can then be run again, dismissed and pruned like any other dead job.

        If its message arrives later, it does not run, even with *rerun*, and goes to the dead
        letters.  Only the log remembers this: once the job is pruned the message would run, and
        actors with ``start="soon"`` do not check.  A run that was wrongly considered gone is not
        stopped: if it ends, its outcome replaces ``cancelled``.

        Example:
          >>> joblog.cancel(job.jid, who="ada", reason="Redis was flushed").dead_reason
          'cancelled'

        Parameters:
          jid: A job that is enqueued, delayed, waiting, retrying or lost; or started, if the
            process that ran it is known to be gone.
          who: Who cancels it, for ``joblog.actions``.
          reason: Why, for ``joblog.actions``.

        Raises:
          JobNotFound: If the log has no such job.
          CancelError: If it is running, because the log cannot stop code, or has ended.

        Returns:
          The job as it is now.
        """
        self.core.settle()
        self._cancelling.one(jid, given_optional("who", who), given_optional("reason", reason))
        return self.get(jid)

    def cancel_all(
        self,
        query: JobQuery[J],
        *,
        limit: int = 1000,
        who: str | None = None,
        reason: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Cancelled:
        """Cancel the jobs of a query that are not running, oldest first, like :meth:`cancel`.

        This works in batches, each in one transaction.

        Example:
          >>> joblog.cancel_all(joblog.jobs.lost(), reason="Redis was flushed").cancelled
          []

        Parameters:
          query: The jobs; those that are running or have ended are left out.
          limit: How many at most.
          who: Who cancels them, for ``joblog.actions``.
          reason: Why, for ``joblog.actions``.
          progress: Called after each job, with the number done and the total.

        Raises:
          CancelInterruptedError: If the database became unavailable meanwhile; it has what was
            done so far, and repeating the call does the rest.

        Returns:
          The jids of the ``cancelled`` jobs, and the reasons, by jid, why others were
          ``refused``.
        """
        return self._cancelling.all(
            query_asked(query, self.Job),
            count_asked("limit", limit, least=0),
            who=given_optional("who", who),
            reason=given_optional("reason", reason),
            progress=given_callable("progress", progress, _OF_PROGRESS),
        )

    @property
    def _cancelling(self) -> Cancelling:
        return Cancelling(self.core)

    def requeue(
        self,
        jid: str,
        *,
        arguments: Mapping[str, Any] | None = None,
        who: str | None = None,
        broker: Broker | None = None,
    ) -> Message[Any]:
        """Run a job again: send a new message with the same actor, arguments and options.

        The new job's ``replay_of`` is the old jid, and the old job's ``replayed_by`` is the new
        one.  The message is enqueued before that is written.

        Parameters:
          jid: A job that is finished, dead or skipped.
          arguments: New values for some arguments, by the names of the actor's parameters; the
            others stay as they were sent.
          who: Who wants it, for ``joblog.actions``.
          broker: Where to send it; by default the broker on which this process declared the
            actor.  If several brokers have it, the one that declared an actor last.

        Raises:
          JobNotFound: If the log has no such job.
          RequeueError: If it cannot be run again unchanged; nothing was sent.

        Returns:
          The new message.
        """
        if arguments is not None:
            arguments = given_mapping("arguments", arguments, "values by the names of parameters")
        sender = self.core.checked_sender(jid)
        job, who = self.get(jid), given_optional("who", who)
        return sender.requeue(job, who=who, broker=broker, arguments=arguments)

    def requeue_all(
        self,
        query: JobQuery[J],
        *,
        limit: int = 1000,
        who: str | None = None,
        broker: Broker | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Requeued:
        """Run the jobs of a query again, oldest first, like :meth:`requeue`.

        Jobs that have not ended, or were already run again, are left out.  Jobs are sent in
        batches, each in one round trip if the broker can, and recorded together.  One process of
        a log does this at a time; others wait.

        Example:
          >>> joblog.requeue_all(joblog.jobs.dead().of_actor("index"), limit=100).sent
          []

        Parameters:
          query: The jobs.
          limit: How many at most.
          who: Who wants it, for ``joblog.actions``.
          broker: Where to send them; by default where this process declared its actors.
          progress: Called after each job, with the number done and the total.

        Raises:
          RequeueError: If this process has no broker to send them with, or another process is
            still running jobs again.
          RequeueInterruptedError: If it stopped because the broker or the database became
            unavailable; it has what was ``sent`` and ``refused`` so far.  Repeating the call
            sends those that are ``left``.

        Returns:
          The new messages that were ``sent``, in order, and the reasons, by jid, why others were
          ``refused``.
        """
        return requeue_all(
            self.core,
            query_asked(query, self.Job),
            count_asked("limit", limit, least=0),
            who=given_optional("who", who),
            broker=broker,
            progress=given_callable("progress", progress, _OF_PROGRESS),
        )

    # The log itself

    def now(self) -> datetime:
        """Return the database's time, which leases and heartbeats use."""
        with checked_out(self.database):
            return datetime.fromtimestamp(read_now(self.database) / 1000, timezone.utc)

    @property
    def models(self) -> tuple[Any, ...]:
        """The models of the log's tables, jobs first."""
        return tuple(self.core.tables)

    def create_tables(self) -> None:
        """Create the tables, or upgrade them to this version.

        It is safe to repeat, and to run in several processes at once.

        Raises:
          DatabaseAwayError: If the database is unavailable.
          JobLogError: If the database refuses, for example for lack of privileges.
        """
        try:
            with checked_out(self.database):
                migrate(self.core.tables)
        except (DatabaseAwayError, PeeweeException) as e:
            kind = DatabaseAwayError if isinstance(e, DatabaseAwayError) else JobLogError
            raise kind(
                f"the log's tables could not be made on {self.name}: "
                f"{str(e).strip()}; is the database up, and may this user create tables?"
            ) from e

    def release(self) -> None:
        """Return this thread's connection to the pool, if the log made its database.

        Connections that the log opens for a query are returned automatically.
        """
        self.core.release()

    def close(self) -> None:
        """Write all pending events and close idle connections; the log stays usable.

        A connection in use is closed when its query ends.  Waits raise a :class:`JobLogError`.  A
        database that was passed in keeps its pool, and the connections that the application
        opened.
        """
        self.core.close()

    def _due(self) -> JobQuery[J]:
        """Select the due jobs: those that a worker could run now."""
        return self.jobs.enqueued()


@contextlib.contextmanager
def moved(
    log: JobLog[Any], database: DatabaseURL | Database, *, model: Any = rows.Job, spool: Path
) -> Iterator[JobLog[Any]]:
    """Move a log to another database during the block, for everything that uses it: for tests.

    Its settings stay, and a database that was passed in still belongs to the application.
    """
    core = log.core
    own = core.owned if isinstance(database, Database) else True
    log.core = core.moved(open_database(database), owned=own, model=model, spool=spool)
    try:
        yield log
    finally:
        log.core = core


def given_log(value: Any) -> JobLog[Any]:
    """Return *value*, if it is a log.

    Raises:
      ConfigurationError: If it is not.
    """
    if isinstance(value, JobLog):
        return value
    raise ConfigurationError(
        f"joblog={shown(value)} is not a log: give a JobLog, such as JobLog('sqlite:///jobs.db')"
    )


def given_broker(value: Any) -> Broker | None:
    """Return *value*, if it is a broker or None.

    Raises:
      ConfigurationError: If it is neither.
    """
    if value is None or isinstance(value, Broker):
        return value
    raise ConfigurationError(f"broker={shown(value)} is not a broker of Dramatiq")


def _steps_of(since: datetime, until: datetime | None) -> tuple[int, int, int]:
    """Return the beginning and end of a period in whole steps, and the length of a step.

    Raises:
      SearchError: If the time ends before it begins.
    """
    now = host_now()
    begin = millis_of(since, "since")
    end = now if until is None else millis_of(until, "until")
    if end < begin:
        raise SearchError(f"since={since} is after until={until}: give the earlier one first")
    step = max(stats.step_of(end - begin), level_of(begin, now))
    return begin - begin % step, end - end % -step, step


def _texts_of(job_types: Any) -> list[str] | None:
    if job_types is None:
        return None
    known = given_list("job_types", job_types, "job types, or an Enum of them")
    return [str(getattr(t, "value", t)) for t in known]
