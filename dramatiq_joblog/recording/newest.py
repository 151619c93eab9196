"""Unique keys that keep the newest message: it supersedes one that has not begun.

The key is taken over before the newer message is sent, and the older job is skipped once the
broker has the newer message; until then the older message is put back if it is delivered.

The sender records when the broker has the message.  It may be killed before that, so a separate
row, which outlives the key, records which job supersedes which; the row or the start of the newer
job also proves that it was sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from peewee import SQL

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.locking.needs import FORMER, UNIQUE
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import STARTABLE, State

from .events import GAVE_WAY
from .waits import abandon_waits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog.locking.leases import Claim

    from .events import Started
    from .transitions import Transitions

#: Replaces the process of a key while its message may not be in the broker yet.
SENDING = "sending"
#: Milliseconds that sending a message to the broker may take.
ON_ITS_WAY = 60_000
#: Milliseconds that the successor of a job is remembered, at least.
_KEPT = 24 * 3600 * 1000


class Successor(NamedTuple):
    """The job that superseded another."""

    jid: str
    #: Whether its message is in the broker, or was.
    is_sent: bool


class Newest:
    """The statements on unique keys that keep the newest message, in the caller's transaction.

    A start locks its job, and then the key.  These lock the key first, and so do not wait for the
    row of another job: if it is locked, the whole transaction is done again.

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
        """Take over the key of the job *former*; return False if that job has begun."""
        # Its start is committed with the key locked.
        if self._dialect.lock(self._mine(claim.key, former)).first() is None:
            return False
        row = self._transitions.locked(former, wait=False)
        if row is not None and _has_begun(row):
            return False
        self._pass_on(claim.key, former, claim.owner, claim.ttl, SENDING)
        self._note(former, claim.owner)
        return True

    def give_back(self, key: str, owner: str, former: str, ttl: int) -> None:
        """Give a key back to *former*, because the newer message could not be sent."""
        process = None if self._is_known(former) else SENDING
        if self._pass_on(key, owner, former, ttl, process):
            self._forget([former])

    def sent(self, key: str, owner: str) -> None:
        """Record that the broker has the message of *owner*; skip the jobs that it supersedes."""
        lock = self._lock
        sent = lock.update(process=None).where(lock.process == SENDING, lock.owner == owner)
        sent.where(lock.kind == UNIQUE, lock.key == key).execute()
        formers = lock.select(lock.key).where(_ARE_FORMERS, lock.owner == owner)
        for (former,) in list(formers.order_by(lock.key).tuples()):
            if self._give_way(key, owner, former):
                self._forget([former])
            else:
                sent.where(_ARE_FORMERS, lock.key == former).execute()

    def _give_way(self, key: str, owner: str, former: str) -> bool:
        """Skip the job *former*; return False if the log does not know it yet."""
        row = self._transitions.locked(former, wait=False)
        if row is None or _has_begun(row):
            return row is not None
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
        abandon_waits(self._transitions, [row], now)
        return True

    def successor(self, event: Started) -> Successor | None:
        """Return the job that superseded that of a start; None if it is the newest itself.

        The key stays locked until the transaction ends.
        """
        key = (event.unique or {})["key"]
        lock = self._lock
        rows = self._dialect.lock(lock.select().where(lock.kind == UNIQUE, lock.key == key))
        row = rows.where(lock.expires_at > database_now(self._database)).first()
        if row is not None and row.owner is not None:
            # The key is released once the newest job has begun or ended; then only the separate row
            # shows which job superseded which.
            if row.owner == event.jid:
                return None
            return Successor(row.owner, row.process != SENDING or self._is_known(row.owner))
        return self._later_one(event.jid)

    def _later_one(self, jid: str) -> Successor | None:
        """Return the job that superseded one whose key has been released, or None."""
        lock = self._lock
        seen, on_its_way = {jid}, None
        while (row := lock.get_or_none(lock.kind == FORMER, lock.key == jid)) is not None:
            if row.process != SENDING or self._is_known(row.owner):
                return Successor(row.owner, is_sent=True)
            if to_millis(row.acquired_at) + ON_ITS_WAY > self._transitions.locks.now():
                on_its_way = Successor(row.owner, is_sent=False)
            # It may never have been sent, and have been superseded in turn.
            jid = row.owner
            if jid in seen:
                break
            seen.add(jid)
        return on_its_way

    def skipped(self, event: Started, owner: str) -> dict[str, Any]:
        """Return the columns of a job that *owner* superseded."""
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

    def _note(self, former: str, owner: str) -> None:
        """Record that the job *owner* superseded *former*, and may not be sent yet."""
        lock, now = self._lock, database_now(self._database)
        values = {
            "owner": owner,
            "process": SENDING,
            "fence": 0,
            "ttl": _KEPT,
            "acquired_at": now,
            "expires_at": now + _KEPT,
        }
        row = {"kind": FORMER, "key": former, "slot": 0, **values}
        lock.insert(row).on_conflict_ignore().execute()
        lock.update(values).where(lock.kind == FORMER, lock.key == former).execute()

    def _forget(self, formers: Sequence[str]) -> None:
        lock = self._lock
        lock.delete().where(_ARE_FORMERS, lock.key.in_(formers)).execute()

    def _is_known(self, jid: str) -> bool:
        """Return whether the log knows a job; it does once the message was sent."""
        return bool(self._job.select(self._job.id).where(self._job.jid == jid).exists())

    def _mine(self, key: str, owner: str) -> Any:
        lock = self._lock
        return lock.select().where(lock.kind == UNIQUE, lock.key == key, lock.owner == owner)

    def _pass_on(self, key: str, owner: str, to: str, ttl: int, process: str | None) -> bool:
        lock, expires = self._lock, database_now(self._database) + ttl
        values = {"owner": to, "ttl": ttl, "expires_at": expires, "process": process}
        mine = lock.kind == UNIQUE, lock.key == key, lock.owner == owner
        return bool(lock.update(**values).where(*mine).execute())


#: Without parameters, so that a partial index can be used.
_ARE_FORMERS = SQL(f"kind = '{FORMER}'")


def _has_begun(row: Any) -> bool:
    return row.state not in STARTABLE or row.started_at is not None


def _reason(key: str, owner: str) -> str:
    return f"it was replaced by job {owner}, the newest with the key {key!r}"
