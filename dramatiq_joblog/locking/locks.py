"""Critical sections and unique keys: who may hold a key, and who does.

The statements here run in the caller's transaction; :mod:`.slots` has those that acquire a key.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.database.clock import database_now, read_now
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.payload.secret_texts import scrub_key

from .cleaning import KEEP_IDLE, SETTLED, delete_idle
from .freed import Freed
from .hands import Hands
from .holders import Holder, Holders
from .leases import Leases
from .limits import Limits
from .needs import SECTION, UNIQUE
from .presence import Presence
from .rates import Rates
from .reservations import Reservations
from .slots import slots_of
from .waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peewee import Database

    from dramatiq_joblog.schema.tables import Tables

    from .leases import Claim, Lease
    from .waiters import Place


class Locks:
    """The statements on the table of keys.

    Parameters:
      tables: The log's tables.
    """

    def __init__(self, tables: Tables[Any]) -> None:
        # Any: peewee's queries are untyped.
        lock: Any = tables.lock
        self.lock = lock
        #: Which waiters are present.
        self.presence = Presence(tables.job)
        #: The waiters of keys.
        self.waiters = Waiters(tables, self.presence)
        #: The keys that are reserved for waiters of other keys.
        self.reservations = Reservations(tables)
        #: The manual locks that wait.
        self.hands = Hands(lock)
        #: The limits set at run time.
        self.limits = Limits(lock)
        #: The recent starts of rates.
        self.rates = Rates(lock)
        self.database: Database = tables.database
        #: The statements that acquire keys.
        self.slots = slots_of(lock)
        #: Whether an update can return rows, and locks only the rows that it changes.
        self._updates_well = dialect_of(self.database).guards_upserts
        #: The holders of keys.
        self.holders = Holders(lock, self.slots)
        #: The leases of this process.
        self.leases = Leases(lock)
        #: Notifies of keys that may have become free.
        self.freed = Freed()

    def take(self, claim: Claim) -> Lease | None:
        """Acquire a free slot of a key, or the one that its owner has; None if there is none.

        The lease is renewed from now on, until it is released.
        """
        if claim.given_up:
            return None
        began = time.monotonic()
        fence = self.slots.take(claim)
        return None if fence is None else self.leases.hold(claim, fence, began)

    def take_in_turn(self, claim: Claim, place: Place) -> Lease | None:
        """Acquire a slot of a section, unless waiters before *place* need all free ones.

        A slot reserved for the owner between two runs is always available to it, unless the key is
        paused.
        """
        if claim.limit < 1:
            return None
        owners = self.holders.owners(claim.key)
        if claim.by_hand or claim.owner not in owners:
            free = claim.limit - len(owners)
            if free < 1:
                return None
            ahead = self.waiters.count_ahead(claim.key, claim.owner, place, most=free)
            if ahead >= free:
                return None
        return self.take(claim)

    def limited(self, claim: Claim) -> Claim:
        """Return a claim with the limit set at run time for its key, if any."""
        limit = self.limits.of([claim.key]).get(claim.key)
        return claim if limit is None else replace(claim, limit=limit)

    def take_all(self, claims: Sequence[Claim]) -> dict[str, Lease]:
        """Acquire the free keys of *claims*, which are all different and exclusive.

        Returns:
          The leases acquired, by key.
        """
        if not claims:
            return {}
        began = time.monotonic()
        fences = self.slots.take_all(claims)
        return {c.key: self.leases.hold(c, fences[c.key], began) for c in claims if c.key in fences}

    def alone_with(self, claim: Claim) -> None:
        """Lock the key until the transaction ends."""
        self.slots.alone_with(claim)

    def taken(self, claim: Claim) -> Lease | None:
        """Return the lease of a claim granted before; None if another holds the key by now."""
        began = time.monotonic()
        lock = self.lock
        mine = lock.kind == claim.kind, lock.key == claim.key, lock.token == claim.token
        row = lock.select().where(*mine).first()
        return None if row is None else self.leases.hold(claim, row.fence, began)

    def blocker(self, claim: Claim, place: Place) -> Holder | None:
        """Return what blocks a claim on a section: a holder, or the next waiter.

        None if nothing does any more.
        """
        self.bound(claim.kind, claim.key)
        if len(self.holders.owners(claim.key)) < claim.limit:
            waiter = self.waiters.first_ahead(claim.key, claim.owner, place)
            if waiter is not None:
                return Holder(waiter.owner, waiter.since, None, waiter.by_hand)
        return self.holders.first(claim.kind, claim.key)

    def bound(self, kind: str | None = None, key: str | None = None) -> None:
        """Shorten leases, of all keys or of one, that expire later than their ttl from now.

        They do if the database's clock was set back since their renewal.
        """
        lock = self.lock
        most = database_now(self.database) + lock.ttl
        too_long = [lock.expires_at > most]
        if key is not None:
            too_long += [lock.kind == kind, lock.key == key]
        if not self._updates_well and not lock.select(lock.id).where(*too_long).exists():
            # An update locks every row that it reads, even unchanged ones.
            return
        lock.update(expires_at=most).where(*too_long).execute()

    def release(self, kind: str, key: str, owner: str, token: str | None) -> None:
        """Release a key of *owner*, unless a later run of it holds the key by now."""
        lock = self.lock
        mine = (
            *(lock.kind == kind, lock.key == key, lock.owner == owner),
            lock.token.is_null() | (lock.token == token),
        )
        if kind == UNIQUE:
            # Its fence is not used, so the row can be deleted.
            lock.delete().where(*mine).execute()
        else:
            free = {"owner": None, "token": None, "process": None, "expires_at": None}
            lock.update(free).where(*mine).execute()
        self.leases.forget(token)

    def give_up(self, owners: Mapping[str, str | None]) -> None:
        """Release all keys that jobs hold, including unique keys.

        Parameters:
          owners: The token of each job's last run, by jid.
        """
        lock = self.lock
        held = lock.select(lock.kind, lock.key, lock.owner).where(
            lock.kind.in_((SECTION, UNIQUE)), lock.owner.in_(list(owners))
        )
        for kind, key, owner in sorted(set(held.tuples())):
            self.release(kind, key, owner, owners[owner])

    def keep(self, key: str, owner: str, token: str, milliseconds: int) -> None:
        """Reserve a section for its owner's next run, which begins within *milliseconds*."""
        lock = self.lock
        expires = database_now(self.database) + milliseconds
        (
            lock.update(token=None, process=None, ttl=milliseconds, expires_at=expires)
            .where(
                lock.kind == SECTION,
                lock.key == key,
                lock.owner == owner,
                lock.token == token,
            )
            .execute()
        )
        self.leases.forget(token)

    def confirm(self, key: str, owner: str, ttl: int) -> None:
        """Extend a unique key to its full ttl: its message is in the broker."""
        lock = self.lock
        (
            lock.update(ttl=ttl, expires_at=database_now(self.database) + ttl)
            .where(lock.kind == UNIQUE, lock.key == key, lock.owner == owner)
            .execute()
        )

    def end_of(self, process: str) -> None:
        """Expire the leases of a process that is known to have ended."""
        lock = self.lock
        now = database_now(self.database)
        held = lock.expires_at > now
        lock.update(expires_at=now).where(lock.process == process, held).execute()

    def forget_all(self) -> None:
        """Forget leases and listeners, after a fork: they belong to the parent process."""
        self.leases.forget_all()
        self.freed.forget()

    def now(self) -> int:
        """Return the database's time."""
        return read_now(self.database)

    def clean(self, idle: int = KEEP_IDLE, settled: int = SETTLED) -> bool:
        """Delete some rows of keys that have been free for long; see :func:`delete_idle`."""
        self.bound()
        return delete_idle(self.lock, idle, settled)


def fold_key(key: str) -> str:
    """Return the stored form of a key: short enough for its column, without URL passwords."""
    return fold_jid(scrub_key(key))
