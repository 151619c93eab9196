"""Unique messages of which the newest is kept: one that has not begun gives way to it.

The key is taken over before the newer message is sent, and the older one gives way once the
broker has that: until then the older one is put back should it come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.locking.locks import UNIQUE
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import STARTABLE, State

from .events import GAVE_WAY

if TYPE_CHECKING:
    from dramatiq_joblog.locking.leases import Claim

    from .events import Started
    from .transitions import Transitions

#: In place of the process of a key whose message may not be in the broker yet.
SENDING = "sending"


class Newest:
    """The statements on keys of which the newest message is kept, as part of a transaction.

    Parameters:
      transitions: The statements on jobs and on keys.
    """

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._job = transitions.job
        self._lock = transitions.locks.lock
        self._database = transitions.database
        self._dialect = dialect_of(self._database)

    def take_place(self, claim: Claim, former: str) -> bool:
        """Take a key from *former*, whose job has not begun; return False if it has."""
        row = self._transitions.locked(former)
        if row is not None and _has_begun(row):
            return False
        before = self._mine(claim.key, former).first()
        if before is None or not self._pass_on(claim.key, former, claim.owner, claim.ttl, SENDING):
            return False
        if row is None:
            # Its start may have been committed while this one waited for the key.
            row = self._job.get_or_none(self._job.jid == former)
            if row is not None and _has_begun(row):
                self._pass_on(claim.key, claim.owner, former, before.ttl, before.process)
                return False
        return True

    def give_back(self, key: str, owner: str, former: str, ttl: int) -> None:
        """Give a key back to *former*: the newer message could not be sent."""
        self._pass_on(key, owner, former, ttl, None)

    def give_way(self, key: str, owner: str, former: str) -> None:
        """Let the job of *former* be skipped, as that of *owner* is newer, and in the broker."""
        row = self._transitions.locked(former)
        if row is None or _has_begun(row):
            return
        now = self._transitions.locks.now()
        job = self._job
        skipped = {
            "state": State.SKIPPED,
            "skip_reason": _reason(key, owner),
            "token": GAVE_WAY,
            "eta": None,
            "finished_at": now,
            "updated_at": now,
        }
        job.update(skipped).where(job.jid == former).execute()
        if row.waiting_since is not None:
            waiter = {name: getattr(row, name) for name in ("jid", "attempt", "worker")}
            self._transitions.end_waiting(waiter, to_millis(row.waiting_since), now)

    def successor(self, event: Started) -> tuple[str, bool] | None:
        """Return whose the key of a start is, and whether that is in the broker; None if its own.

        Nobody else takes the key until the transaction ends.
        """
        key = (event.unique or {})["key"]
        lock = self._lock
        rows = self._dialect.lock(lock.select().where(lock.kind == UNIQUE, lock.key == key))
        row = rows.where(lock.expires_at > database_now(self._database)).first()
        if row is None or row.owner in (None, event.jid):
            return None
        return row.owner, row.process != SENDING

    def skipped(self, event: Started, owner: str) -> dict[str, Any]:
        """Return the columns of a job that gave way to that of *owner*."""
        now = self._transitions.locks.now()
        return event.row | {
            "state": State.SKIPPED.value,
            "skip_reason": _reason((event.unique or {})["key"], owner),
            "token": GAVE_WAY,
            "started_at": None,
            "queue_time": None,
            "eta": None,
            "finished_at": now,
            "updated_at": now,
        }

    def _mine(self, key: str, owner: str) -> Any:
        lock = self._lock
        return lock.select().where(lock.kind == UNIQUE, lock.key == key, lock.owner == owner)

    def _pass_on(self, key: str, owner: str, to: str, ttl: int, process: str | None) -> bool:
        lock, expires = self._lock, database_now(self._database) + ttl
        values = {"owner": to, "ttl": ttl, "expires_at": expires, "process": process}
        mine = lock.kind == UNIQUE, lock.key == key, lock.owner == owner
        return bool(lock.update(**values).where(*mine).execute())


def _has_begun(row: Any) -> bool:
    return row.state not in STARTABLE or row.started_at is not None


def _reason(key: str, owner: str) -> str:
    return f"it gave way to job {owner}, the newest with the key {key!r}"
