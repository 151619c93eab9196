"""Deletes the rows of keys that have been free for long, without reusing their fences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import fn

from dramatiq_joblog.database.clock import database_now, read_now
from dramatiq_joblog.schema.models import to_millis

from .hands import HAND
from .limits import LIMIT
from .needs import FORMER, RATE, SECTION, UNIQUE
from .reservations import WAIT
from .slots import FLOOR

if TYPE_CHECKING:
    from peewee import Database

#: Milliseconds that the row of a free key is kept.
KEEP_IDLE = 24 * 3600 * 1000
#: Milliseconds; far longer than any statement on keys takes.
SETTLED = 600_000
#: The number of rows that are deleted at once.
BATCH = 1_000
#: Kinds of rows that can be deleted once they expire.
EXPIRING = (FORMER, HAND, LIMIT, RATE, WAIT)


def delete_idle(lock: Any, idle: int, settled: int) -> bool:
    """Delete some rows of keys that have been free for *idle* milliseconds.

    The fence of a key never decreases: new rows begin above the floor.  The floor is raised first,
    and only rows that have been below it for *settled* milliseconds are deleted, so that no running
    statement has read a lower floor.

    Parameters:
      lock: The bound lock model.
      idle: Milliseconds since a key was held, or expired.
      settled: Milliseconds since the floor was raised.

    Returns:
      Whether there may be more: an hour of a busy log leaves more than one statement may take.
    """
    database: Database = lock._meta.database
    now = database_now(database)
    # Only free sections must keep something: their fences.
    over = lock.kind.in_((UNIQUE, *EXPIRING)), lock.expires_at < now - idle
    if _delete_some(lock, *over):
        return True
    old = (
        lock.kind == SECTION,
        lock.acquired_at < now - idle,
        lock.owner.is_null() | (lock.expires_at < now - idle),
    )
    floor = lock.select().where(lock.kind == FLOOR, lock.key == "").first()
    if floor is None:
        row = {"kind": FLOOR, "key": "", "slot": 0, "fence": 0, "ttl": 0, "acquired_at": now}
        lock.insert(row).on_conflict_ignore().execute()
    elif to_millis(floor.acquired_at) + settled > read_now(database):
        return False
    elif _delete_some(lock, *old, lock.fence <= floor.fence, lock.last_fence <= floor.fence):
        return True
    highest = lock.select(fn.max(lock.last_fence), fn.max(lock.fence)).where(*old).tuples()
    fence = max(number or 0 for number in highest.first())
    (
        lock.update(fence=fence, acquired_at=now)
        .where(lock.kind == FLOOR, lock.key == "", lock.fence < fence)
        .execute()
    )
    return False


def _delete_some(lock: Any, *conditions: Any) -> bool:
    """Delete a batch of rows; return whether there may be more."""
    some = [row.id for row in lock.select(lock.id).where(*conditions).limit(BATCH)]
    if some:
        # Check again, because it may have been acquired since.
        lock.delete().where(lock.id.in_(some), *conditions).execute()
    return len(some) == BATCH
