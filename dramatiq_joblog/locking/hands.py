"""Manual locks that wait for their key, in the same queue as the jobs that wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dramatiq_joblog.database.clock import database_now

if TYPE_CHECKING:
    from .leases import Claim

#: The kind of their rows.
HAND = "hand"
#: Milliseconds until such a row expires, unless it is updated; that is due every second.
EXPECTED = 5_000


class Hand(NamedTuple):
    """A manual lock that waits for its key."""

    owner: str
    #: Since when, in milliseconds by the database's clock.
    since: int


class Hands:
    """The statements on manual locks that wait, as part of their caller's transaction.

    Parameters:
      lock: The bound lock model.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._database = lock._meta.database

    def enter(self, claim: Claim, since: int) -> None:
        """Add a lock to the queue of its key, or keep it there for another :data:`EXPECTED`."""
        lock = self._lock
        times = {"ttl": EXPECTED, "expires_at": database_now(self._database) + EXPECTED}
        if not lock.update(times).where(*self._mine(claim)).execute():
            token = claim.token or ""
            row = {"kind": HAND, "key": claim.key, "owner": claim.owner, "token": token, "fence": 0}
            # Unique among the locks of a key; the tokens are random.
            slot = int(token[:7], 16)
            row |= {"slot": slot, "process": claim.process, "acquired_at": since, **times}
            lock.insert(row).on_conflict_ignore().execute()

    def leave(self, claim: Claim) -> None:
        """Remove a lock from the queue of its key."""
        self._lock.delete().where(*self._mine(claim)).execute()

    def _mine(self, claim: Claim) -> tuple[Any, ...]:
        lock = self._lock
        return lock.kind == HAND, lock.key == claim.key, lock.token == claim.token
