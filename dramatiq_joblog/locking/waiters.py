"""The jobs that wait for a key: which of them are alive, and in which order they come in.

A waiter's message lies in the memory of a worker process, which looks after it and says so by
the waiter's ``eta``.  One whose ``eta`` is over is absent: it keeps its place, and nobody waits
for it.

A job that needs several keys stands in the line of the first that keeps it out, and keeps its
place in those that it has come to the head of: they are kept for it meanwhile.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from peewee import SQL, Select, fn

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import State

from .limits import LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from peewee import Database

#: Milliseconds that a waiter is expected for after its process looked after it.
ATTENDED = 10_000
#: Milliseconds between two times that a process says which waiters it looks after.
ATTEND_EVERY = 3_000
#: Milliseconds that a waiter may be late before it is considered absent.
PATIENCE = 5_000
#: Milliseconds after which a waiter's message comes back by itself, at most.
COMES_BACK = 300_000
#: The kind of rows of keys that are kept for a job which waits for another of its keys.
WAIT = "wait"
#: Milliseconds that such a row is believed: its job comes back within that time.
_KEPT = 2 * COMES_BACK


@dataclass(frozen=True)
class Place:
    """A place in the line of a key.

    Jobs that have begun before come first; of the others, those that wait longest.
    """

    #: Whether the job has begun before: its worker vanished, or its retry came late.
    begun: bool = False
    #: Since when it waits, in milliseconds by the database's clock; None for a newcomer.
    since: int | None = None


NEWCOMER = Place()


class Line(NamedTuple):
    """The jobs that wait for one key."""

    key: str
    jobs: int
    #: Since when the one waits that waits longest.
    since: datetime


class Waiters:
    """The questions on who waits for a key.

    Parameters:
      job: The bound job model.
      lock: The bound lock model.
    """

    def __init__(self, job: Any, lock: Any) -> None:
        self.job = job
        self._lock = lock
        self._database: Database = job._meta.database
        self._dialect = dialect_of(self._database)
        self._disputed = Compiled(self._database, self._selecting_disputed)
        self._is_disputed = Compiled(self._database, self._selecting_is_disputed)
        self._kept = Compiled(self._database, self._selecting_kept)
        self._line = tuple(
            Compiled(self._database, functools.partial(self._selecting_line, begun=begun))
            for begun in (True, False)
        )
        self._attend = Compiled(self._database, self._attending)
        self._waited = Compiled(self._database, self._selecting_waited)

    def all_of(self, key: str) -> Any:
        """Return a select of the jobs that wait for a key, the one that is next first."""
        # Asked first: seldom is there one, and then the line costs more to find.
        return self._all_of(key, self._kept_for(key))

    def of_each(self, keys: Sequence[str], most: int) -> dict[str, list[Any]]:
        """Return the jobs that wait for each of some keys, the one that is next first.

        It costs as much as one question for all keys, unless some are kept for jobs that wait for
        another of their keys.  Keys that nobody waits for are left out.

        Parameters:
          keys: The keys.
          most: Return at most this many jobs of each.
        """
        job, lock = self.job, self._lock
        lines: dict[str, list[Any]] = {}
        place = fn.ROW_NUMBER().over(partition_by=[job.section], order_by=list(self._order()))
        waiting = self._is_waiting(), job.section.in_(keys)
        ranked = job.select(job.id.alias("number"), place.alias("place")).where(*waiting)
        first = Select([ranked.alias("ranked")], [SQL("number")]).where(SQL("place") <= most)
        for row in job.select().where(job.id.in_(first)).order_by(*self._order()):
            lines.setdefault(row.section, []).append(row)
        kept: dict[str, list[str]] = {}
        places = lock.select(lock.key, lock.owner).where(lock.kind == WAIT, lock.key.in_(keys))
        for key, jid in places.tuples():
            kept.setdefault(key, []).append(jid)
        for key, jids in kept.items():
            if line := list(self._all_of(key, jids).limit(most)):
                lines[key] = line
        return lines

    def _all_of(self, key: str, kept: Sequence[str]) -> Any:
        job = self.job
        of_key = job.section == key
        if kept:
            of_key |= job.jid.in_(kept)
        return job.select().where(self._is_waiting(), of_key).order_by(*self._order())

    def _parts(self, key: str) -> tuple[Any, Any]:
        """Return two selects of those that wait for a key: that have begun before, and others.

        Each is in order.  One select of both would have to be sorted, for each job that comes in.
        """
        return self._part(key, begun=True), self._part(key, begun=False)

    def _part(self, key: str, *, begun: bool) -> Any:
        job = self.job
        rows = job.select().where(
            self._is_waiting(), job.section == key, job.started_at.is_null(not begun)
        )
        order: tuple[Any, ...] = (job.waiting_since, job.id)
        if not begun and not self._dialect.skips_nulls:
            # As the index has them.
            order = job.started_at, *order
        return rows.where(self._is_alive()).order_by(*order)

    def lines(self) -> list[Line]:
        """Return the lines of all keys that jobs wait for, by their keys."""
        job = self.job
        counts = job.select(job.section, fn.count(job.id), fn.min(job.waiting_since))
        waiting = counts.where(self._is_waiting(), job.section.is_null(False))
        rows = waiting.group_by(job.section).order_by(job.section).tuples()
        return [Line(name, int(count), since) for name, count, since in rows]

    def next_of(self, key: str, count: int) -> list[tuple[str, bool]]:
        """Return the *count* living waiters of a key that come in next.

        Returns:
          The jid of each, and whether it is this key that it waits for.
        """
        kept = self._kept_for(key)
        if not kept:
            found: list[tuple[str, bool]] = []
            for part in self._line:
                if len(found) < count:
                    rows = part.execute([key, count - len(found)]).fetchall()
                    found += [(jid, True) for (jid,) in rows]
            return found
        job = self.job
        rows = self._all_of(key, kept).where(self._is_alive()).select(job.jid, job.section)
        return [(jid, section == key) for jid, section in rows.limit(count).tuples()]

    def line(self, key: str, most: int) -> list[str]:
        """Return the jids of the living waiters of a key, the one that is next first."""
        return [jid for jid, _ in self.next_of(key, most)]

    def _selecting_line(self, values: Sequence[Any], *, begun: bool) -> Any:
        key, most = values
        return self._part(key, begun=begun).select(self.job.jid).limit(most)

    def _kept_for(self, key: str) -> list[str]:
        """Return the jobs for which a key is kept while they wait for another."""
        return [jid for (jid,) in self._kept.execute([key]).fetchall()]

    def _selecting_kept(self, values: Sequence[str]) -> Any:
        lock = self._lock
        return lock.select(lock.owner).where(SQL(f"kind = '{WAIT}'"), lock.key == values[0])

    def first_ahead(self, key: str, jid: str, place: Place) -> Any:
        """Return the first living waiter that comes before the one at *place*, or None."""
        job = self.job
        for rows in self._ahead(key, jid, place):
            first = rows.select(job.jid, job.waiting_since).first()
            if first is not None:
                return first
        return None

    def count_ahead(self, key: str, jid: str, place: Place, most: int) -> int:
        """Return how many living waiters come before the one at *place*: *most*, if it is more."""
        count = 0
        for rows in self._ahead(key, jid, place):
            if count < most:
                some = rows.order_by().select(self.job.id).limit(most - count)
                count += len(some.tuples())
        return count

    def disputed(self, keys: Sequence[str]) -> set[str]:
        """Return those of *keys* that a living waiter wants, or that someone set a limit for."""
        if len(keys) == 1:
            # A long line is not read.
            ((waited, kept),) = self._is_disputed.execute([*keys, *keys]).fetchall()
            return {*keys} if waited or kept else set()
        rows = self._disputed.execute([*keys, *keys]).fetchall()
        return {key for (key,) in rows}

    def undisputed(self, key: str) -> str:
        """Return the text of the condition that nothing of :meth:`disputed` is true of a key.

        Parameters:
          key: Its column, as a statement calls it.
        """
        job, lock = self.job, self._lock
        column = SQL(key)
        waits = job.select(SQL("1")).where(
            self._is_waiting(), job.section == column, self._is_alive()
        )
        live = lock.expires_at > database_now(self._database)
        kinds = SQL(f"kind IN ('{LIMIT}', '{WAIT}')")
        kept = lock.select(SQL("1")).where(kinds, lock.key == column, live)
        texts = []
        for select in (waits, kept):
            text, values = select.sql()
            if values:
                raise ValueError(f"the condition has parameters: {values!r}")
            # PostgreSQL looks this up for each row then, and never reads all that wait instead.
            texts.append(f"NOT EXISTS ({text} OFFSET 0)")
        return " AND ".join(texts)

    def keep(self, keys: Sequence[str], jid: str) -> None:
        """Keep the place of a waiting job at the head of the lines of *keys*."""
        job, lock = self.job, self._lock
        number = job.select(job.id).where(job.jid == jid).scalar()
        now = database_now(self._database)
        values = {"ttl": _KEPT, "acquired_at": now, "expires_at": now + _KEPT, "fence": 0}
        for key in keys:
            slot = _slot_of(number)
            row = {"kind": WAIT, "key": key, "slot": slot, "owner": jid, **values}
            lock.insert(row).on_conflict_ignore().execute()
            mine = lock.kind == WAIT, lock.key == key, lock.slot == slot
            lock.update(owner=jid, **values).where(*mine).execute()

    def leave(self, keys: Sequence[str], jid: str) -> None:
        """Give up the places of a job at the heads of the lines of *keys*."""
        lock = self._lock
        lock.delete().where(
            lock.kind == WAIT, lock.key.in_(list(keys)), lock.owner == jid
        ).execute()

    def attend(self, jids: Sequence[str]) -> None:
        """Say that this process has the messages of these waiters, and looks after them."""
        self._attend.execute(jids)

    def unsettled(self, jids: Sequence[str]) -> dict[str, int]:
        """Return how long those of *jids* wait, in milliseconds, by their jids.

        Those that do not wait, or no longer, are left out: cancelled, ended by a copy, at work.
        """
        return {jid: int(waited) for jid, waited in self._waited.execute(jids).fetchall()}

    def _attending(self, jids: Sequence[str]) -> Any:
        job, until = self.job, SQL(f"{database_now(self._database).sql} + {ATTENDED}")
        mine = job.jid.in_(jids) & self._is_waiting()
        # As their starts lock them, which come meanwhile.
        return job.update(eta=until).where(self._dialect.in_order(job, mine, job.jid))

    def _selecting_waited(self, jids: Sequence[str]) -> Any:
        job = self.job
        waited = SQL(f"coalesce({database_now(self._database).sql} - waiting_since, 0)")
        return job.select(job.jid, waited).where(job.jid.in_(jids), self._is_waiting())

    def _ahead(self, key: str, jid: str, place: Place) -> list[Any]:
        """Return selects of those that come before one at *place*, the first of them first."""
        job = self.job
        kept = self._kept_for(key)
        if kept:
            all_of = self._all_of(key, kept).where(self._is_alive())
            begun, others = (all_of.where(job.started_at.is_null(no)) for no in (False, True))
        else:
            begun, others = self._parts(key)
        longer = job.waiting_since < place.since
        if place.since is not None:
            parts = [begun.where(longer)] if place.begun else [begun, others.where(longer)]
        else:
            parts = [begun] if place.begun else [begun, others]
        return [rows.where(job.jid != jid) for rows in parts]

    def _selecting_is_disputed(self, keys: Sequence[str]) -> Any:
        job, lock, (key, again) = self.job, self._lock, keys
        waiting = job.select(SQL("1")).where(self._is_waiting(), job.section == key)
        kinds = SQL(f"kind IN ('{LIMIT}', '{WAIT}')")
        live = lock.expires_at > database_now(self._database)
        held = lock.select(SQL("1")).where(kinds, lock.key == again, live)
        asked = fn.EXISTS(waiting.where(self._is_alive())), fn.EXISTS(held)
        return Select(columns=asked).bind(self._database)

    def _selecting_disputed(self, keys: Sequence[str]) -> Any:
        job, lock, half = self.job, self._lock, len(keys) // 2
        waiting = self._is_waiting() & job.section.in_(keys[:half])
        wanted = job.select(job.section).where(waiting, self._is_alive())
        kinds = SQL(f"kind IN ('{LIMIT}', '{WAIT}')")
        live = lock.expires_at > database_now(self._database)
        return wanted | lock.select(lock.key).where(kinds, lock.key.in_(keys[half:]), live)

    def _order(self) -> tuple[Any, ...]:
        # A waiter that has begun before keeps the start of its last run.
        job = self.job
        return job.started_at.is_null(), job.waiting_since, job.id

    def _is_waiting(self) -> Any:
        return self.job.state.in_(literal_states([State.WAITING]))

    def _is_alive(self) -> Any:
        # An eta that is too far away is of before the database's clock went back.
        now = database_now(self._database).sql
        # Without parameters, for statements that are compiled.
        first, last = SQL(f"{now} - {PATIENCE}"), SQL(f"{now} + {COMES_BACK + PATIENCE}")
        return (self.job.eta > first) & (self.job.eta < last)


def _slot_of(number: int) -> int:
    """Return the slot of a job's row in the line of a key: jobs of one line have different ones."""
    return number % 2**31
