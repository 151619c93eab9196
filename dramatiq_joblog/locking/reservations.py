"""Keys that are reserved for a job while it waits for another of its keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dramatiq_joblog.database.clock import database_now

from .presence import COMES_BACK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog.schema.tables import Tables

#: The kind of their rows.
WAIT = "wait"
#: Milliseconds until one expires; its job comes back within that time.
_EXPIRES_AFTER = 2 * COMES_BACK


class Reservations:
    """The statements on reserved keys.

    Parameters:
      tables: The log's tables.
    """

    def __init__(self, tables: Tables[Any]) -> None:
        # Any: peewee's queries are untyped.
        self._job: Any = tables.job
        self._lock: Any = tables.lock
        self._database = tables.database

    def keep(self, keys: Sequence[str], jid: str) -> None:
        """Reserve *keys* for a waiting job that has reached the head of their queues."""
        job, lock = self._job, self._lock
        number = job.select(job.id).where(job.jid == jid).scalar()
        now = database_now(self._database)
        times = {"ttl": _EXPIRES_AFTER, "acquired_at": now, "expires_at": now + _EXPIRES_AFTER}
        for key in keys:
            # A slot that is different for each job of a key.
            slot = number % 2**31
            row = {"kind": WAIT, "key": key, "slot": slot, "owner": jid, "fence": 0, **times}
            lock.insert(row).on_conflict_ignore().execute()
            mine = lock.kind == WAIT, lock.key == key, lock.slot == slot
            lock.update(owner=jid, fence=0, **times).where(*mine).execute()

    def leave(self, keys: Sequence[str], jid: str) -> None:
        """Release the reservations of *keys* for a job."""
        lock = self._lock
        lock.delete().where(
            lock.kind == WAIT, lock.key.in_(list(keys)), lock.owner == jid
        ).execute()

    def leave_all(self, jids: Sequence[str]) -> None:
        """Release all reservations of some jobs, whose waits have ended without a run."""
        lock = self._lock
        lock.delete().where(lock.kind == WAIT, lock.owner.in_(list(jids))).execute()
