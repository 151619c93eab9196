"""Rate limits: how many runs of a key started within a sliding window.

A key has a ring buffer of rows, one for each of its last starts, and a head that counts all.  A
run may start if the start *limit* places before it is at least *per* milliseconds old, which takes
one read of one row: any window of that length then has at most *limit* starts.

The head is slot 0: its ``last_fence`` is the number of the last start, its ``fence`` the size of
the ring, and its ``ttl`` the shortest window of any start.  The ``fence`` of a start is its number;
its time is ``expires_at`` less ``ttl``, so that it is bounded like a lease if the clock goes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peewee import SQL, fn

from dramatiq_joblog.database.clock import database_now, read_now
from dramatiq_joblog.database.compiled import Compiled, padded
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.database.upsert import Rule
from dramatiq_joblog.schema.models import to_millis

from .needs import RATE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from peewee import Database

    from .needs import Need

#: Without parameters, for precompiled statements.
_OF_RATES, _IS_HEAD = SQL(f"kind = '{RATE}'"), SQL("slot = 0")


@dataclass(frozen=True)
class Allowance:
    """How many runs may start now."""

    free: int
    #: Milliseconds until one more may start, if none may now; None if unknown.
    due: int | None = None


@dataclass(frozen=True)
class Used:
    """The usage of a key's rate."""

    key: str
    #: How many runs have started within the last *per* milliseconds.
    started: int
    per: int
    #: When the last one started.
    last: datetime


@dataclass
class _Head:
    """The state of a key's ring."""

    #: The number of the last start, from 1.
    last: int
    #: The maximum number of starts in the ring.
    size: int
    #: The shortest window of any start, in milliseconds.
    shortest: int
    #: When the last start leaves the longest window; 0 without a start.
    until: int
    now: int


class Rates:
    """The statements on starts, in the caller's transaction.

    Parameters:
      lock: The bound lock model.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        database: Database = lock._meta.database
        self._database = database
        self._dialect = dialect_of(database)
        self._now = database_now(database)
        self._heads = Compiled(database, self._selecting_head)
        self._heads_locked = Compiled(
            database, lambda values: self._dialect.lock(self._selecting_head(values))
        )
        self._starts = Compiled(database, self._selecting_starts)
        self._recent = Compiled(database, self._counting_recent)
        columns = "fence", "last_fence", "ttl", "acquired_at", "expires_at"
        sets = {name: f"excluded.{name}" for name in columns}
        self._ring = self._dialect.upsert(
            Rule(lock, "start", ("kind", "key", "slot"), "1 = 1", sets, {})
        )

    def allowance(self, need: Need) -> Allowance:
        """Return how many runs a rate allows to start now."""
        head = self._head(need.key)
        if need.limit < 1:
            return Allowance(0)
        if head is None or head.last < 1:
            return Allowance(need.limit)
        due = self._due(need, head, head.last + 1 - need.limit)
        if due > 0:
            return Allowance(0, due)
        since = head.now - need.lasts
        values = [need.key, head.last + 1 - need.limit, head.last, since]
        return Allowance(need.limit - int(self._recent.execute(values).fetchone()[0]))

    def _counting_recent(self, values: Sequence[Any]) -> Any:
        lock, (key, first, last, since) = self._lock, values
        of_ring = _OF_RATES, lock.key == key, lock.slot > SQL("0")
        numbers = lock.fence >= first, lock.fence <= last
        within = lock.expires_at - lock.ttl > since
        return lock.select(fn.count(lock.id)).where(*of_ring, *numbers, within)

    def used(self, key: str | None = None) -> list[Used]:
        """Return the recent usage of all rates, or of one key, ordered by key."""
        lock = self._lock
        heads = lock.select().where(_OF_RATES, _IS_HEAD, lock.last_fence > 0)
        if key is not None:
            heads = heads.where(lock.key == key)
        found = []
        for head in heads.order_by(lock.key):
            recent = lock.expires_at - lock.ttl > self._now - head.ttl
            ring = self._rows(head.key).where(lock.slot > 0, recent)
            found.append(Used(head.key, ring.count(), int(head.ttl), head.acquired_at))
        return found

    def keep_others_out(self, key: str) -> None:
        """Lock the rate of a key until the transaction ends."""
        self._head_locked(key)

    def window(self, need: Need) -> Window:
        """Lock a rate, like :meth:`keep_others_out`, and return its window."""
        return Window(self, need, self._head_locked(need.key))

    def take(self, need: Need, count: int = 1) -> int:
        """Record up to *count* starts, and return how many are allowed."""
        window = self.window(need)
        free = window.free(count)
        window.take(free)
        return free

    def _free(self, need: Need, head: _Head, most: int) -> int:
        """Return how many runs may start now, but at most *most*."""
        if need.limit < 1:
            return 0
        free, some = 0, _LOOKED_AT
        while free < most:
            # The first one that is not due is usually among the first few.
            some = min(some, most - free)
            known = self._known(need, head, free, some)
            first = head.last + free + 1 - need.limit
            for number in range(first, first + some):
                if number > head.last or self._due(need, head, number, known) > 0:
                    return free
                free += 1
            some *= 4
        return free

    def _known(self, need: Need, head: _Head, after: int, count: int) -> dict[int, int]:
        """Return the starts that decide about *count* runs, *after* the next ones."""
        first = head.last + after + 1 - need.limit
        return self._starts_of(
            need.key, head, range(max(1, first), min(head.last, first + count - 1) + 1)
        )

    def _starts_of(self, key: str, head: _Head, numbers: Sequence[int]) -> dict[int, int]:
        """Return the times of those starts of *numbers* that are in the ring, by number."""
        if not numbers or not head.size:
            return {}
        slots = sorted({_slot_of(number, head.size) for number in numbers})
        return dict(self._starts.execute([key, *padded(slots)]).fetchall())

    def _selecting_starts(self, values: Sequence[Any]) -> Any:
        lock = self._lock
        rows = lock.select(lock.fence, lock.expires_at - lock.ttl)
        return rows.where(_OF_RATES, lock.key == values[0], lock.slot.in_(values[1:]))

    def _due(
        self, need: Need, head: _Head, number: int, known: dict[int, int] | None = None
    ) -> int:
        """Return the milliseconds until a start leaves the window."""
        if number < 1:
            return 0
        if known is None:
            known = self._starts_of(need.key, head, [number])
        when = known.get(number)
        if when is None:
            # It dates from before the ring grew: later starts obeyed the rate of that time.
            if head.shortest >= need.lasts:
                return 0
            when = self._oldest(need.key, head)
        return min(when, head.now) + need.lasts - head.now

    def _oldest(self, key: str, head: _Head) -> int:
        """Return the time of the oldest start in the ring."""
        rows = self._rows(key).where(
            self._lock.slot > 0, self._lock.fence.between(head.last + 1 - head.size, head.last)
        )
        first = rows.order_by(self._lock.fence).first()
        return 0 if first is None else _when(first)

    def _write(self, need: Need, head: _Head, count: int) -> None:
        if need.limit > head.size:
            self._grow(need.key, head, need.limit)
        head.last += count
        # If there are more starts than rows in the ring, keep the last.
        first = head.last + 1 - min(count, head.size)
        lasts, now = need.lasts, head.now
        head.shortest, head.until = min(head.shortest, lasts), max(head.until, now + lasts)
        starts = [_row(need.key, n, head.size, lasts, now) for n in range(first, head.last + 1)]
        self._ring.write([_head_row(need.key, head), *starts])

    def _grow(self, key: str, head: _Head, size: int) -> None:
        """Enlarge the ring."""
        if not head.size:
            head.size = size
            return
        lock = self._lock
        ring = lock.kind == RATE, lock.key == key, lock.slot > 0
        rows = list(lock.select().where(*ring, lock.fence > head.last - head.size))
        lock.delete().where(*ring).execute()
        head.size = size
        self._ring.write([_row(key, int(r.fence), size, r.ttl, _when(r)) for r in rows])

    def _head(self, key: str, *, locked: bool = False) -> _Head | None:
        waits = locked and not self._dialect.writes_alone
        heads = self._heads_locked if waits else self._heads
        found = heads.execute([key]).fetchone()
        if found is None:
            return None
        head = _Head(*map(int, found))
        if waits:
            # Read the time now: the transaction may have waited for the row since it began.
            head.now = read_now(self._database)
        return head

    def _selecting_head(self, values: Sequence[str]) -> Any:
        lock, (key,) = self._lock, values
        until = fn.coalesce(lock.expires_at, SQL("0"))
        rows = lock.select(lock.last_fence, lock.fence, lock.ttl, until, self._now)
        return rows.where(_OF_RATES, lock.key == key, _IS_HEAD)

    def _head_locked(self, key: str) -> _Head:
        """Return the head of a key, locked until the transaction ends."""
        head = self._head(key, locked=True)
        if head is None:
            row = {"kind": RATE, "key": key, "slot": 0, "fence": 0, "ttl": _LONGEST}
            self._lock.insert(row).on_conflict_ignore().execute()
            head = self._head(key, locked=True)
        # None if a cleanup has deleted it meanwhile.
        return head or self._head_locked(key)

    def _rows(self, key: str) -> Any:
        lock = self._lock
        return lock.select().where(lock.kind == RATE, lock.key == key)


class Window:
    """How many runs a rate allows to start; locked until the transaction ends.

    Parameters:
      rates: The statements on starts.
      need: The rate.
      head: The state of its key.
    """

    def __init__(self, rates: Rates, need: Need, head: _Head) -> None:
        self._rates = rates
        self._need = need
        self._head = head

    def free(self, most: int) -> int:
        """Return how many runs may start now, but at most *most*."""
        return self._rates._free(self._need, self._head, most)

    def take(self, count: int) -> None:
        """Record *count* starts, for which there must be room."""
        if count:
            self._rates._write(self._need, self._head, count)


#: The window of a key without a start.
_LONGEST = 10**15
#: The number of starts that are read first.
_LOOKED_AT = 16


def _slot_of(number: int, size: int) -> int:
    return 1 + number % size


def _head_row(key: str, head: _Head) -> dict[str, Any]:
    """Return the row of a ring's head."""
    return {
        "kind": RATE,
        "key": key,
        "slot": 0,
        "fence": head.size,
        "last_fence": head.last,
        "ttl": head.shortest,
        "acquired_at": head.now,
        "expires_at": head.until,
    }


def _row(key: str, number: int, size: int, lasts: int, when: int) -> dict[str, Any]:
    """Return the row of a start, in a ring of *size* rows."""
    return {
        "kind": RATE,
        "key": key,
        "slot": _slot_of(number, size),
        "fence": number,
        "last_fence": 0,
        "ttl": lasts,
        "acquired_at": when,
        "expires_at": when + lasts,
    }


def _when(row: Any) -> int:
    """Return the time of a start, in milliseconds."""
    return to_millis(row.expires_at) - int(row.ttl)
