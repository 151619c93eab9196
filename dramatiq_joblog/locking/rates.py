"""Limits on starts: how many of a key began within the last so many milliseconds.

A key has a ring of rows, one for each of its last starts, and a head that counts them all.  A
start may be if the one that lies *limit* before it is *per* milliseconds old, which is one look
at one row: no more than *limit* are then within any such time, wherever that begins.

The head is slot 0, with the number of the last start as its ``last_fence``, the ring's size as
its ``fence`` and the shortest window of any start as its ``ttl``.  Of a start ``fence`` is its
number; when it was is ``expires_at`` less ``ttl``, so that a clock which went back is bounded as
leases are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peewee import fn

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.schema.models import to_millis

from .needs import RATE

if TYPE_CHECKING:
    from peewee import Database

    from .needs import Need

#: As many rows are written by one statement.
_AT_ONCE = 500


@dataclass(frozen=True)
class Room:
    """How many may start now."""

    free: int
    #: Milliseconds until one more may, if none may now; None if nobody knows when.
    due: int | None = None


@dataclass
class _Head:
    """The state of a key's ring."""

    #: The number of the last start.
    last: int
    #: As many starts are known at most.
    size: int
    #: The shortest window of any start, in milliseconds.
    shortest: int
    now: int


class Rates:
    """The statements on starts, as part of their caller's transaction.

    Parameters:
      lock: The bound lock model.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._database: Database = lock._meta.database
        self._dialect = dialect_of(self._database)

    def room(self, need: Need) -> Room:
        """Return how many may start now by a rate."""
        head = self._head(need.key)
        if need.limit < 1:
            return Room(0)
        if head is None or head.last < 1:
            return Room(need.limit)
        due = self._due(need, head, head.last + 1 - need.limit)
        if due > 0:
            return Room(0, due)
        lock = self._lock
        within = lock.expires_at - lock.ttl > head.now - need.lasts
        recent = lock.fence.between(head.last + 1 - need.limit, head.last)
        ring = self._rows(need.key).where(lock.slot > 0, recent, within)
        return Room(need.limit - int(ring.select(fn.count(lock.id)).scalar()))

    def keep_others_out(self, key: str) -> None:
        """Let nobody else start by a key until the transaction ends."""
        self._head_locked(key)

    def take(self, need: Need, count: int = 1) -> int:
        """Begin up to *count* starts, and return how many may be."""
        head = self._head_locked(need.key)
        if need.limit < 1:
            return 0
        if need.limit > head.size:
            self._grow(need.key, head, need.limit)
        known = self._known(need, head, count)
        taken = 0
        while taken < count:
            number = head.last + taken + 1 - need.limit
            if number > head.last or self._due(need, head, number, known) > 0:
                break
            taken += 1
        if taken:
            self._write(need, head, taken)
        return taken

    def _known(self, need: Need, head: _Head, count: int) -> dict[int, int]:
        """Return when the starts were that decide on the next *count*, by their numbers."""
        first = head.last + 1 - need.limit
        numbers = range(max(1, first), min(head.last, first + count - 1) + 1)
        if not numbers:
            return {}
        slots = [_slot_of(number, head.size) for number in numbers]
        rows = self._rows(need.key).where(self._lock.slot.in_(slots))
        return {int(row.fence): _when(row) for row in rows}

    def _due(
        self, need: Need, head: _Head, number: int, known: dict[int, int] | None = None
    ) -> int:
        """Return the milliseconds until a start is out of the window."""
        if number < 1:
            return 0
        if known is None:
            slot = _slot_of(number, head.size)
            rows = self._rows(need.key).where(self._lock.slot == slot)
            known = {int(row.fence): _when(row) for row in rows}
        when = known.get(number)
        if when is None:
            # Of before the ring grew: each start since was as far from it as the rate then said.
            if head.shortest >= need.lasts:
                return 0
            when = self._oldest(need.key, head)
        return min(when, head.now) + need.lasts - head.now

    def _oldest(self, key: str, head: _Head) -> int:
        """Return when the first start was that is known."""
        rows = self._rows(key).where(
            self._lock.slot > 0, self._lock.fence.between(head.last + 1 - head.size, head.last)
        )
        first = rows.order_by(self._lock.fence).first()
        return 0 if first is None else _when(first)

    def _write(self, need: Need, head: _Head, count: int) -> None:
        rows = [
            self._row(need.key, head.last + n, head.size, need.lasts, head.now)
            for n in range(1, count + 1)
        ]
        # With more starts at once than the ring has rows the last of them stay.
        self._put(rows[-head.size :])
        head.last += count
        lock = self._lock
        shortest = min(head.shortest, need.lasts)
        head_row = lock.kind == RATE, lock.key == need.key, lock.slot == 0
        expires = fn.coalesce(lock.expires_at, 0)
        greatest = self._dialect.greatest
        latest = head.now + need.lasts
        (
            lock.update(
                last_fence=head.last,
                fence=head.size,
                ttl=shortest,
                acquired_at=head.now,
                expires_at=greatest(expires, latest),
            )
            .where(*head_row)
            .execute()
        )

    def _grow(self, key: str, head: _Head, size: int) -> None:
        """Let the ring know of more starts."""
        lock = self._lock
        ring = lock.kind == RATE, lock.key == key, lock.slot > 0
        rows = list(lock.select().where(*ring, lock.fence > head.last - head.size))
        lock.delete().where(*ring).execute()
        head.size = size
        self._put([self._row(key, r.fence, size, r.ttl, _when(r)) for r in rows])

    def _row(self, key: str, number: int, size: int, lasts: int, when: int) -> dict[str, Any]:
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

    def _put(self, rows: list[dict[str, Any]]) -> None:
        lock = self._lock
        preserved = [lock.fence, lock.ttl, lock.acquired_at, lock.expires_at]
        target = [lock.kind, lock.key, lock.slot] if self._dialect.guards_upserts else []
        for start in range(0, len(rows), _AT_ONCE):
            some = lock.insert_many(rows[start : start + _AT_ONCE])
            some.on_conflict(conflict_target=target or None, preserve=preserved).execute()

    def _head(self, key: str, *, locked: bool = False) -> _Head | None:
        lock, now = self._lock, database_now(self._database)
        rows = self._rows(key).where(lock.slot == 0)
        waits = locked and not self._dialect.writes_alone
        if waits:
            rows = rows.for_update()
        found = rows.select(lock.last_fence, lock.fence, lock.ttl, now.alias("now")).tuples()
        head = next((_Head(*map(int, row)) for row in found), None)
        if waits and head is not None:
            # The time of before it waited for the row is not that of the start.
            ((instant,),) = self._database.execute_sql(f"SELECT {now.sql}").fetchall()
            head.now = int(instant)
        return head

    def _head_locked(self, key: str) -> _Head:
        """Return the head of a key, which nobody else changes until the transaction ends."""
        head = self._head(key, locked=True)
        if head is None:
            row = {"kind": RATE, "key": key, "slot": 0, "fence": 0, "ttl": _LONGEST}
            self._lock.insert(row).on_conflict_ignore().execute()
            head = self._head(key, locked=True)
        # None: it was deleted meanwhile, as nobody had started for long.
        return head or self._head_locked(key)

    def _rows(self, key: str) -> Any:
        lock = self._lock
        return lock.select().where(lock.kind == RATE, lock.key == key)


#: The window of a key without a start.
_LONGEST = 10**15


def _slot_of(number: int, size: int) -> int:
    return 1 + number % size


def _when(row: Any) -> int:
    """Return when a start was, in milliseconds."""
    return to_millis(row.expires_at) - int(row.ttl)
