"""What people and programs ask of a log beside its selects, and what people do to its jobs."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Generic

from .admin import audit as people
from .admin.retention import DEFAULT_BATCH
from .database.checkout import checked_out, transaction
from .database.timeouts import bounded, refuse_event_loop
from .errors import JobLogError, LockNotAcquired, SearchError
from .payload.sanitize import fold_jid
from .payload.values import MAX_INT, MAX_MILLIS
from .reading import counts, search
from .schema.fields import millis_of
from .schema.query import J, count_asked
from .statistics import series as stats
from .statistics.rollups import level_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from peewee import Database

    from .admin.audit import DeadGroup
    from .admin.maintenance import Chores
    from .admin.retention import Keep
    from .database.queries import Select
    from .payload.redaction import Redactor
    from .reading.counts import Count
    from .schema.models import Action as ActionRow
    from .schema.models import Failure
    from .schema.models import Lock as LockRow
    from .schema.query import JobQuery
    from .states import State
    from .statistics.rollups import Totals
    from .statistics.series import GroupedBy, Stats


#: Steps that a time is told in at most.
_MOST_STEPS = 10_000


class Asking(Generic[J]):
    """The questions of a log: a part of :class:`JobLog`."""

    # What the log has; Any, as models are untyped.
    database: Database
    Job: type[J]
    Failure: type[Failure]
    Lock: type[LockRow]
    Total: Any
    Action: type[ActionRow]
    chores: Chores
    redactor: Redactor
    totals: Totals

    @property
    def jobs(self) -> JobQuery[J]:
        """All jobs, newest first."""
        raise NotImplementedError

    def search(self, text: str, *, now: datetime | None = None) -> JobQuery[J]:
        """Select jobs by words, newest first: ``state:dead type:import since:2d timeout``.

        Keys are those of ``search.KEYS``; a repeated key means any of its values, ``-key:value``
        leaves out, and a value with spaces stands in quotes.  Text without a key is a whole jid,
        or else a part of an actor, a job type or an error.  ``state:dead`` leaves out what was
        dismissed, unless ``dismissed:`` says otherwise.

        Example:
          >>> [job.jid for job in joblog.search("state:dead since:1h").page(limit=20).jobs]
          []

        Parameters:
          text: The words.
          now: What relative times are counted from; aware, by default this host's time.

        Raises:
          SearchError: If the words cannot be understood; its text says what to write.
        """
        terms = search.parse(text)
        query = self.jobs
        if len(terms) == 1 and terms[0].key is None and not terms[0].negated:
            this = query.where(self.Job.jid == fold_jid(terms[0].value))
            if this.exists():
                return this
        return search.narrow(query, terms, now=now)

    def complete(
        self, key: str, prefix: str = "", *, limit: int = 8
    ) -> list[tuple[str, Count | None]]:
        """Return how a word of a search may go on: values of *key* that begin with *prefix*.

        Values are those of the newest jobs, the most frequent first.

        Parameters:
          key: One of ``search.KEYS``; for any other there is nothing.
          prefix: What was typed of the value.
          limit: How many values at most.

        Returns:
          Values, each with the number of its jobs where that is known.
        """
        limit = count_asked("limit", limit)
        with checked_out(self.database):
            values = counts.complete(self.Job, key, prefix, limit)
        if key != "state":
            return [(value, None) for value in values]
        by_state: Any = self.counts()
        return [(value, by_state.get(value)) for value in values]

    def counts(
        self, query: JobQuery[J] | None = None, *, cap: int = counts.DEFAULT_CAP
    ) -> dict[State, Count]:
        """Count jobs by state, up to *cap* of each, so that a large table costs no more.

        Parameters:
          query: The jobs; by default all.
          cap: Where counting stops; ``count.capped`` tells that there are more.

        Returns:
          A count for every state, in the order of their lives.
        """
        cap = count_asked("cap", cap, most=MAX_INT)
        query = self.jobs if query is None else query
        with checked_out(self.database):
            return counts.by_state(query, cap)

    def stats(
        self,
        *,
        since: datetime,
        until: datetime | None = None,
        by: GroupedBy = "job_type",
    ) -> Stats:
        """Return what became of the jobs that ended in a time, in steps that suit its length.

        What is older than a few minutes comes from totals, which outlive the jobs; steps are of
        a minute for six hours and of the last seven hours only, of fifteen minutes for three
        days, of an hour for two weeks, and else of a day.

        Parameters:
          since: Begin of the time; aware.
          until: Its end; by default now.
          by: What the groups are: ``"job_type"`` or ``"actor"``.

        Raises:
          SearchError: If *by* is nothing to group by, or the time ends before it begins.
          ValueError: If an instant has no time zone.
          TypeError: If it is no instant.
        """
        if by not in stats.GROUPED_BY:
            raise SearchError(
                f"by={by!r} is nothing to group by: use one of {', '.join(stats.GROUPED_BY)}"
            )
        begin, end = millis_of(since), _now() if until is None else millis_of(until)
        if end < begin:
            raise SearchError(f"since={since} is after until={until}: give the earlier one first")
        step = max(stats.step_of(end - begin), level_of(begin, _now()))
        begin, end = begin - begin % step, end - end % -step
        with checked_out(self.database):
            counted = self.totals.counted()
            open_since = begin if counted is None else max(begin, counted)
            sums = self.totals.sums(step, begin, end, by)
            for cell in self.totals.since_counted(open_since, end, step):
                sums.add(cell, by)
        return stats.make(sums, begin, end, step)

    def oldest(self, limit: int = 5) -> list[J]:
        """Return the jobs that have waited longest for a run that is due, the oldest first."""
        oldest = self._due().order_by(self.Job.created_at, self.Job.id)
        return list(oldest.limit(count_asked("limit", limit)))

    def retries_lost(self) -> int:
        """Count the jobs of the last week whose retry could not be enqueued.

        The broker has forgotten them: only :meth:`requeue` brings their work back.  Those that
        were run again or dismissed are not counted, and only the newest 5,000 dead jobs are
        looked at.
        """
        return people.retries_lost(self.Job, _now())

    def dead_groups(self, windows: Iterable[int] = people.DEFAULT_WINDOWS) -> list[DeadGroup]:
        """Group the dead jobs that nobody dismissed by error and actor.

        Parameters:
          windows: The times, in milliseconds before now, to count them in.

        Returns:
          The groups with a job within the longest window; those that died last come first.
        """
        windows = [count_asked("windows", window, most=MAX_MILLIS) for window in windows]
        with checked_out(self.database):
            return people.dead_groups(self.Job, windows, _now()) if windows else []

    def dead_series(self, window: int, *, step: int) -> dict[tuple[str | None, str], list[int]]:
        """Tell when the jobs of :meth:`dead_groups` became dead.

        Parameters:
          window: Milliseconds before now.
          step: Milliseconds of each step; the first begins at a multiple of them since 1970, and
            the last ends after now.

        Returns:
          How many in each step, by error and actor.
        """
        window = count_asked("window", window, most=MAX_MILLIS)
        step = count_asked("step", step, least=-(-window // _MOST_STEPS), most=MAX_MILLIS)
        return people.dead_series(self.Job, window, step, _now())

    def prune(
        self,
        keep: Keep | None = None,
        *,
        batch: int = DEFAULT_BATCH,
        dry_run: bool = False,
        progress: Callable[[Counter[str]], None] | None = None,
    ) -> Counter[str]:
        """Delete jobs that ended long ago, with their failures and lines; totals stay.

        Only finished, dead and skipped jobs go.  Worker processes do this by themselves where
        the log has a *keep*; only one process does it at a time.

        Example:
          >>> joblog.prune({"finished": 7 * 86_400_000}, dry_run=True)
          Counter()

        Parameters:
          keep: Milliseconds that jobs are kept after their end, by final state; by default the
            log's own.  Its *keep_types* hold in any case.
          batch: How many jobs are deleted in one transaction.
          dry_run: Only count the jobs.
          progress: Called after each batch with what was deleted so far.

        Returns:
          How many went, by state; also ``failures``, ``lines``, ``workers`` and ``keys``.

        Raises:
          ConfigurationError: If *keep* makes no sense.
          JobLogError: If another process prunes now.
        """
        self._settle()
        batch = count_asked("batch", batch)
        retention = self.chores.retention.but(keep)
        if dry_run:
            with checked_out(self.database):
                return +retention.count(_now())
        return self.chores.prune(retention, batch, progress)

    @contextlib.contextmanager
    def reading(self, *, timeout: int) -> Iterator[None]:
        """Ask within a bound, on one connection that is given back at the end.

        Example:
          >>> with joblog.reading(timeout=2_000):
          ...     page = joblog.search("state:dead").page()

        Parameters:
          timeout: Milliseconds that one question may take.

        Raises:
          QueryTimeout: If one takes longer.
          ConfigurationError: Inside a running event loop, whose tasks would share the connection.
        """
        refuse_event_loop("joblog.reading() is used")
        self._settle()
        with checked_out(self.database), bounded(self.database, timeout):
            yield

    # What people do

    @property
    def actions(self) -> Select[ActionRow]:
        """What people did to jobs and keys, newest first: a select of :class:`Action`."""
        return self.Action.select().order_by(self.Action.id.desc())

    def record(
        self,
        what: str,
        *,
        who: str,
        jid: str | None = None,
        key: str | None = None,
        detail: str | None = None,
    ) -> ActionRow:
        """Write down what someone did, and return the :class:`Action`.

        Parameters:
          what: A verb of at most 32 characters, as ``requeue``.
          who: Who did it, as far as it is known.
          jid: The job it was done to.
          key: The key it was done to.
          detail: Why, and what came of it.
        """
        detail = None if detail is None else self.redactor.text(detail)
        with transaction(self.database):
            action: ActionRow = people.record(
                self.Action, what, who=who, jid=jid, key=key, detail=detail
            )
        return action

    def dismiss(self, *jids: str, who: str) -> list[str]:
        """Say that dead jobs need no more attention: lists of dead jobs leave them out.

        Each is recorded as an action.

        Parameters:
          jids: The jobs; those that are not dead, or were dismissed before, are left alone.
          who: Who says so.

        Returns:
          The jids of those that were dismissed.
        """
        dismissed = []
        for start in range(0, len(jids), 500):
            with transaction(self.database):
                some = people.dismiss(self.Job, jids[start : start + 500])
                for jid in some:
                    people.record(self.Action, "dismiss", who=who, jid=jid, key=None, detail=None)
            dismissed += some
        return dismissed

    def unlock(self, key: str, *, slot: int = 0, fence: int, reason: str, who: str) -> LockRow:
        """Free a critical section by hand, if it is still held by whom you saw.

        The job that holds it is not stopped: it goes on without its lease, and sees
        ``current_job().lease_lost`` at its next renewal; the next job may enter at once.  Be
        sure that it is gone, or that two at once do no harm.

        Parameters:
          key: The section's key.
          slot: Which of its places.
          fence: That of the holder; if another holds it by now, nothing happens.
          reason: Why; it is recorded.
          who: Who does it.

        Returns:
          The :class:`Lock` row as it was.

        Raises:
          LockNotAcquired: If that holder does not hold it any more.
        """
        if not reason.strip():
            raise JobLogError(f"unlocking {key!r} needs a reason")
        with transaction(self.database):
            held: LockRow | None = people.unlock(self.Lock, fold_jid(key), slot, fence)
            if held is None:
                raise LockNotAcquired(
                    key, f"is not held with fence {fence} in slot {slot} any more"
                )
            self.record(
                "unlock",
                who=who,
                key=held.key,
                jid=held.owner,
                detail=f"{reason.strip()} (slot {slot}, fence {fence}, held by {held.owner})",
            )
        return held

    def _due(self) -> JobQuery[J]:
        """Select the jobs that could run now, if a worker took them."""
        return self.jobs.enqueued()

    def _settle(self) -> None:
        """Write what this process handed over."""

    def release(self) -> None:
        """Give this thread's connection back."""


def _now() -> int:
    """Return this host's time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
