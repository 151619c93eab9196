"""The jobs that wait for a key, and in which order they are served.

Waiters that are absent keep their position, but others go first: see :mod:`.presence`.

A job that needs several keys waits for the first that is refused.  Other keys for which it has
reached the head of the queue are reserved for it meanwhile: see :mod:`.reservations`.

Manual locks that wait are in the same queue: see :mod:`.hands`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from peewee import SQL, Select, fn

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.payload.values import to_millis
from dramatiq_joblog.schema.fields import instant_of

from .hands import EXPECTED, HAND, Hand
from .limits import LIMIT
from .reservations import WAIT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from peewee import Database

    from dramatiq_joblog.schema.tables import Tables

    from .presence import Presence

#: The condition for rows with which a free key may not simply be taken.
_DISPUTES = f"kind IN ('{LIMIT}', '{WAIT}', '{HAND}')"


@dataclass(frozen=True)
class Place:
    """A position in the wait queue of a key.

    Jobs that have already begun come first, then those that have waited longest; of those that
    began to wait in the same millisecond, the one whose row is older.
    """

    #: Whether the job has already begun: its worker was lost, or its retry came late.
    begun: bool = False
    #: Since when it waits, in milliseconds by the database's clock; None for a new job.
    since: int | None = None
    #: The id of the job's row; None for a new job, and for a manual lock.
    number: int | None = None
    #: Whether it is the place of a manual lock that waits: those go in any order among themselves,
    #: as each makes an attempt now and then.
    by_hand: bool = False


NEWCOMER = Place()


class Ahead(NamedTuple):
    """A waiter that goes first."""

    #: The jid, or the owner of a manual lock.
    owner: str
    since: datetime
    by_hand: bool = False


class Line(NamedTuple):
    """A summary of the jobs that wait for one key."""

    key: str
    jobs: int
    #: Since when the first of them has waited.
    since: datetime


class Waiters:
    """The queries on who waits for a key.

    Parameters:
      tables: The log's tables.
      presence: The statements on which waiters are present.
    """

    def __init__(self, tables: Tables[Any], presence: Presence) -> None:
        # Any: peewee's queries are untyped.
        self.job: Any = tables.job
        self._lock: Any = tables.lock
        self._presence = presence
        self._database: Database = tables.database
        self._dialect = dialect_of(self._database)
        self._disputed = Compiled(self._database, self._selecting_disputed)
        self._is_disputed = Compiled(self._database, self._selecting_is_disputed)
        self._beside_jobs = Compiled(self._database, self._selecting_beside)
        self._line = tuple(
            Compiled(self._database, functools.partial(self._selecting_line, begun=begun))
            for begun in (True, False)
        )

    def all_of(self, key: str) -> Any:
        """Return a select of the jobs that wait for a key, in order."""
        # Queried first: there is seldom one, and with one the select costs more.
        return self._all_of(key, self._beside(key)[0])

    def of_each(self, keys: Sequence[str], most: int) -> dict[str, list[Any]]:
        """Return the jobs that wait for each of some keys, in order, by key.

        It takes one query for all keys, unless some are reserved for jobs that wait for another
        key.  Keys without waiters are left out.

        Parameters:
          keys: The keys.
          most: Return at most this many jobs of each.
        """
        job, lock = self.job, self._lock
        lines: dict[str, list[Any]] = {}
        place = fn.ROW_NUMBER().over(partition_by=[job.section], order_by=list(self._order()))
        waiting = self._presence.is_waiting(), job.section.in_(keys)
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
        return job.select().where(self._presence.is_waiting(), of_key).order_by(*self._order())

    def _parts(self, key: str) -> tuple[Any, Any]:
        """Return two selects of a key's waiters: those that have already begun, and others.

        Each is in index order; a single select would need a sort for each job that is admitted.
        """
        return self._part(key, begun=True), self._part(key, begun=False)

    def _part(self, key: str, *, begun: bool) -> Any:
        job = self.job
        rows = job.select().where(
            self._presence.is_waiting(), job.section == key, job.started_at.is_null(not begun)
        )
        order: tuple[Any, ...] = (job.waiting_since, job.id)
        if not begun and not self._dialect.skips_nulls:
            # The order of the index.
            order = job.started_at, *order
        return rows.where(self._presence.is_recent()).order_by(*order)

    def lines(self) -> list[Line]:
        """Return a summary for each key that jobs wait for, ordered by key."""
        job = self.job
        counts = job.select(job.section, fn.count(job.id), fn.min(job.waiting_since))
        waiting = counts.where(self._presence.is_waiting(), job.section.is_null(False))
        rows = waiting.group_by(job.section).order_by(job.section).tuples()
        return [Line(name, int(count), since) for name, count, since in rows]

    def next_of(self, key: str, count: int) -> list[tuple[str, bool]]:
        """Return the next *count* present waiters of a key.

        Returns:
          The jid of each, and whether this key is the one that it waits for; or the owner of a
          manual lock.
        """
        kept, hands = self._beside(key)
        if kept or hands:
            return self._next_beside(key, count, kept, hands)
        found: list[tuple[str, bool]] = []
        for part in self._line:
            if len(found) < count:
                rows = part.execute([key, count - len(found)]).fetchall()
                found += [(jid, True) for (jid,) in rows]
        return found

    def _next_beside(
        self, key: str, count: int, kept: Sequence[str], hands: Sequence[Hand]
    ) -> list[tuple[str, bool]]:
        """Return the next waiters if there are reservations or manual locks among them."""
        job = self.job
        columns = job.jid, job.section, job.waiting_since, job.started_at.is_null()
        # A job that began to wait in the same millisecond comes before a manual lock.
        line = [(True, hand.since, True, hand.owner, False) for hand in hands]
        for rows in self._line_beside(key, kept):
            for jid, section, since, is_new in rows.select(*columns).limit(count).tuples():
                line.append((bool(is_new), to_millis(since), False, jid, section == key))
        line.sort(key=lambda each: each[:3])
        return [(owner, is_own) for *_, owner, is_own in line[:count]]

    def line(self, key: str, most: int) -> list[str]:
        """Return the jids of a key's present waiters, in order."""
        return [jid for jid, _ in self.next_of(key, most)]

    def _selecting_line(self, values: Sequence[Any], *, begun: bool) -> Any:
        key, most = values
        return self._part(key, begun=begun).select(self.job.jid).limit(most)

    def _beside(self, key: str) -> tuple[list[str], list[Hand]]:
        """Return who is in the queue of a key besides the jobs that wait for it.

        Returns:
          The jids of the jobs for which it is reserved while they wait for another key, and the
          present manual locks that wait for it, in order.
        """
        rows = self._beside_jobs.execute([key]).fetchall()
        kept = [owner for kind, owner, _ in rows if kind == WAIT]
        return kept, [Hand(owner, int(since)) for kind, owner, since in rows if kind == HAND]

    def _selecting_beside(self, values: Sequence[str]) -> Any:
        lock, now = self._lock, database_now(self._database).sql
        # A row that expires too late was written before the database's clock went back.
        alive = f"expires_at > {now} AND expires_at < {now} + {2 * EXPECTED}"
        kinds = SQL(f"(kind = '{WAIT}' OR (kind = '{HAND}' AND {alive}))")
        rows = lock.select(lock.kind, lock.owner, lock.acquired_at)
        return rows.where(lock.key == values[0], kinds).order_by(lock.acquired_at)

    def first_ahead(self, key: str, jid: str, place: Place) -> Ahead | None:
        """Return the first present waiter before *place*, or None."""
        job = self.job
        kept, hands = self._beside(key)
        hand = next(iter(_before(place, hands)), None)
        for rows in self._ahead(key, jid, place, kept):
            first = rows.select(job.jid, job.waiting_since, job.started_at).first()
            if first is None:
                continue
            since = first.waiting_since
            if hand is None or first.started_at is not None or to_millis(since) <= hand.since:
                return Ahead(first.jid, since)
        if hand is None:
            return None
        return Ahead(hand.owner, instant_of(hand.since), by_hand=True)

    def by_hand(self, key: str) -> int:
        """Return the number of present manual locks that wait for a key."""
        return len(self._beside(key)[1])

    def count_ahead(self, key: str, jid: str, place: Place, most: int) -> int:
        """Return the number of present waiters before *place*, but at most *most*."""
        kept, hands = self._beside(key)
        count = min(most, len(_before(place, hands)))
        for rows in self._ahead(key, jid, place, kept):
            if count < most:
                some = rows.order_by().select(self.job.id).limit(most - count)
                count += len(some.tuples())
        return count

    def disputed(self, keys: Sequence[str]) -> set[str]:
        """Return those of *keys* with a present waiter, or with a limit set at run time."""
        if len(keys) == 1:
            # EXISTS: a long queue is not read.
            ((waited, kept),) = self._is_disputed.execute([*keys, *keys]).fetchall()
            return {*keys} if waited or kept else set()
        rows = self._disputed.execute([*keys, *keys]).fetchall()
        return {key for (key,) in rows}

    def undisputed(self, key: str) -> str:
        """Return the SQL condition that a key is not :meth:`disputed`.

        Parameters:
          key: The name of its column in the statement.
        """
        job, lock = self.job, self._lock
        column = SQL(key)
        waits = job.select(SQL("1")).where(
            self._presence.is_waiting(), job.section == column, self._presence.is_recent()
        )
        live = lock.expires_at > database_now(self._database)
        kept = lock.select(SQL("1")).where(SQL(_DISPUTES), lock.key == column, live)
        texts = []
        for select in (waits, kept):
            text, values = select.sql()
            if values:
                raise ValueError(f"the condition has parameters: {values!r}")
            # OFFSET 0 makes PostgreSQL look this up for each row, instead of reading all waiters.
            texts.append(f"NOT EXISTS ({text} OFFSET 0)")
        return " AND ".join(texts)

    def _ahead(self, key: str, jid: str, place: Place, kept: Sequence[str]) -> list[Any]:
        """Return selects of the jobs before *place*, in order."""
        job = self.job
        begun, others = self._line_beside(key, kept)
        if place.since is not None:
            longer = self._longer(place)
            parts = [begun.where(*longer)] if place.begun else [begun, others.where(*longer)]
        else:
            parts = [begun] if place.begun else [begun, others]
        return [rows.where(job.jid != jid) for rows in parts]

    def _longer(self, place: Place) -> list[Any]:
        """Return the conditions for jobs that come before one that waits: see :class:`Place`."""
        since, number = self.job.waiting_since, self.job.id
        # Of the same millisecond, a job comes before a manual lock.
        longer = [since <= place.since]
        if not place.by_hand:
            longer.append((since < place.since) | (number < place.number))
        return longer

    def _line_beside(self, key: str, kept: Sequence[str]) -> tuple[Any, Any]:
        """Return what :meth:`_parts` does, with the jobs for which the key is reserved."""
        if not kept:
            return self._parts(key)
        started = self.job.started_at
        all_of = self._all_of(key, kept).where(self._presence.is_recent())
        return all_of.where(started.is_null(False)), all_of.where(started.is_null())

    def _selecting_is_disputed(self, keys: Sequence[str]) -> Any:
        job, lock, (key, again) = self.job, self._lock, keys
        waiting = job.select(SQL("1")).where(self._presence.is_waiting(), job.section == key)
        live = lock.expires_at > database_now(self._database)
        held = lock.select(SQL("1")).where(SQL(_DISPUTES), lock.key == again, live)
        asked = fn.EXISTS(waiting.where(self._presence.is_recent())), fn.EXISTS(held)
        return Select(columns=asked).bind(self._database)

    def _selecting_disputed(self, keys: Sequence[str]) -> Any:
        job, lock, half = self.job, self._lock, len(keys) // 2
        waiting = self._presence.is_waiting() & job.section.in_(keys[:half])
        wanted = job.select(job.section).where(waiting, self._presence.is_recent())
        live = lock.expires_at > database_now(self._database)
        return wanted | lock.select(lock.key).where(SQL(_DISPUTES), lock.key.in_(keys[half:]), live)

    def _order(self) -> tuple[Any, ...]:
        # A waiter that has already begun keeps the start of its last run.
        job = self.job
        return job.started_at.is_null(), job.waiting_since, job.id


def _before(place: Place, hands: Sequence[Hand]) -> list[Hand]:
    """Return the manual locks before *place*."""
    if place.begun or place.by_hand:
        return []
    return [hand for hand in hands if place.since is None or hand.since < place.since]
