"""Critical sections and unique keys: who may hold a key, and who does.

The statements here run in the caller's transaction; :mod:`.slots` has those that acquire a key.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from peewee import SQL, fn

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.payload.secret_texts import scrub_key
from dramatiq_joblog.schema.models import to_millis

from .freed import Freed
from .hands import HAND, Hands
from .leases import Claim, Lease, Leases
from .limits import LIMIT, Limits
from .needs import RATE, SECTION
from .rates import Rates
from .slots import FLOOR, slots_of
from .waiters import WAIT, Waiters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from peewee import Database

    from .waiters import Place

#: Milliseconds that the row of a free key is kept.
KEEP_IDLE = 24 * 3600 * 1000
#: Milliseconds; far longer than any statement on keys takes.
SETTLED = 600_000

UNIQUE = "unique"
#: The kind of rows that record which job superseded another, whose jid is the key.
FORMER = "former"
#: Kinds of rows that can be deleted once they expire.
EXPIRING = (FORMER, HAND, LIMIT, RATE, WAIT)


@dataclass(frozen=True)
class Holder:
    """The holder or next waiter of a key; times are by the database's clock."""

    owner: str
    since: datetime
    #: When its lease expires; None for the next waiter.
    until: datetime | None
    #: Whether it is a manual lock that waits, and not a job.
    by_hand: bool = False


class Usage(NamedTuple):
    """How a section is used."""

    held: int = 0
    #: How many of the held slots are reserved for the next run of a job.
    kept: int = 0
    #: The limit set at run time; None if the code's applies.
    limit_set: int | None = None
    #: The highest fence of its holders; it changes when the holder does.
    fence: int = 0


class Locks:
    """The statements on the table of keys.

    Parameters:
      lock: The bound lock model.
      job: The bound job model, for waiters.
    """

    def __init__(self, lock: Any, job: Any) -> None:
        self.lock = lock
        #: The waiters of keys.
        self.waiters = Waiters(job, lock)
        #: The manual locks that wait.
        self.hands = Hands(lock)
        #: The limits set at run time.
        self.limits = Limits(lock)
        #: The recent starts of rates.
        self.rates = Rates(lock)
        self.database: Database = lock._meta.database
        self._now: str = database_now(self.database).sql
        #: The statements that acquire keys.
        self.slots = slots_of(lock)
        self._is_live = self.slots.is_live
        #: Whether an update can return rows, and locks only the rows that it changes.
        self._updates_well = dialect_of(self.database).guards_upserts
        self._usage = Compiled(self.database, self._asking_usage)
        self._owners = Compiled(self.database, self._asking_owners)
        #: The leases of this process.
        self.leases = Leases()
        #: Notifies of keys that may have become free.
        self.freed = Freed()
        self._process: str | None = None
        self._gone_after: int | None = None

    @property
    def process(self) -> str | None:
        """The name of this process in rows; None without workers."""
        return self._process

    def attach(self, process: str, gone_after: int) -> None:
        """Bind later leases to this worker process, so that they end with it.

        Parameters:
          process: The name of this process in rows.
          gone_after: Milliseconds without a heartbeat after which it is considered gone.
        """
        self._process, self._gone_after = process, gone_after

    def take(self, claim: Claim) -> Lease | None:
        """Acquire a free slot of a key, or the one that its owner has; None if there is none.

        The lease is renewed from now on, until it is released.
        """
        if claim.given_up:
            return None
        began = time.monotonic()
        fence = self.slots.take(claim)
        return None if fence is None else self.hold(claim, fence, began)

    def take_in_turn(self, claim: Claim, place: Place) -> Lease | None:
        """Acquire a slot of a section, unless waiters before *place* need all free ones.

        A slot reserved for the owner between two runs is always available to it, unless the key is
        paused.
        """
        if claim.limit < 1:
            return None
        owners = self.owners(claim.key)
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
        return {c.key: self.hold(c, fences[c.key], began) for c in claims if c.key in fences}

    def alone_with(self, claim: Claim) -> None:
        """Lock the key until the transaction ends."""
        self.slots.alone_with(claim)

    def taken(self, claim: Claim) -> Lease | None:
        """Return the lease of a claim granted before; None if another holds the key by now."""
        began = time.monotonic()
        lock = self.lock
        row = self._rows(claim.kind, claim.key).where(lock.token == claim.token).first()
        return None if row is None else self.hold(claim, row.fence, began)

    def holder(self, kind: str, key: str) -> Holder | None:
        """Return the holder of a key, the first if there are several; None if it is free."""
        lock = self.lock
        row = self._rows(kind, key).where(lock.owner.is_null(False)).order_by(lock.slot).first()
        return None if row is None else Holder(row.owner, row.acquired_at, row.expires_at)

    def blocker(self, claim: Claim, place: Place) -> Holder | None:
        """Return what blocks a claim on a section: a holder, or the next waiter.

        None if nothing does any more.
        """
        self.bound(claim.kind, claim.key)
        if len(self.owners(claim.key)) < claim.limit:
            waiter = self.waiters.first_ahead(claim.key, claim.owner, place)
            if waiter is not None:
                return Holder(waiter.owner, waiter.since, None, waiter.by_hand)
        return self.holder(claim.kind, claim.key)

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
        self.forget(token)

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
        self.forget(token)

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

    def forget(self, token: str | None) -> None:
        """Stop renewing a lease."""
        self.leases.forget(token)

    def forget_all(self) -> None:
        """Stop renewing all leases, after a fork: the parent process holds them."""
        self.leases = Leases()
        self._process = self._gone_after = None
        self.freed.forget()

    def detach(self, process: str) -> None:
        """Unbind manual locks from the process, because its workers have ended."""
        tokens = [t for t, leases in self.leases.all().items() if leases[0].by_hand]
        if self._process == process:
            self._process = self._gone_after = None
        if tokens:
            lock = self.lock
            mine = lock.process == process, lock.token.in_(tokens)
            lock.update(process=None).where(*mine).execute()

    def renew(self) -> None:
        """Renew all leases of this process, in one statement."""
        leases = self.leases.all()
        if not leases:
            return
        began = time.monotonic()
        lock = self.lock
        expires = database_now(self.database) + lock.ttl
        mine = (
            (lock.kind == SECTION)
            & lock.key.in_(sorted({lease.key for some in leases.values() for lease in some}))
            & lock.token.in_(list(leases))
        )
        # The order in which starts with several keys lock them.
        in_order = dialect_of(self.database).in_order(lock, mine, lock.key)
        renewal = lock.update(expires_at=expires).where(in_order)
        if self._updates_well:
            rows = renewal.returning(lock.token, lock.key).execute()
        else:
            renewal.execute()
            rows = lock.select(lock.token, lock.key).where(mine)
        renewed = {(row.token, row.key) for row in rows}
        for each in itertools.chain.from_iterable(leases.values()):
            if (each.token, each.key) in renewed:
                each.extend(began)
            else:
                self.leases.lose(each)

    def owners(self, key: str) -> list[str]:
        """Return the owners of the slots of a section that are held, with valid leases."""
        return [owner for (owner,) in self._owners.execute([key]).fetchall()]

    def _asking_owners(self, keys: Sequence[str]) -> Any:
        lock = self.lock
        held = lock.select(lock.owner).where(SQL(f"kind = '{SECTION}'"), lock.key == keys[0])
        return held.where(lock.owner.is_null(False), self._is_live())

    def kept_for(self, key: str) -> list[str]:
        """Return the jobs for whose next run a slot of a section is kept."""
        lock = self.lock
        kept = lock.token.is_null(), lock.owner.is_null(False), self._is_live()
        rows = self._rows(SECTION, key).where(*kept).order_by(lock.slot)
        return [row.owner for row in rows]

    def usage(self, keys: Sequence[str]) -> dict[str, Usage]:
        """Return the usage of the sections of *keys*, by key; free ones are left out."""
        found: dict[str, Usage] = {}
        for key, kind, held, running, highest in self._usage.execute(keys).fetchall():
            known = found.get(key, Usage())
            if kind == SECTION:
                kept = held - running
                found[key] = known._replace(held=held, kept=kept, fence=int(highest))
            else:
                found[key] = known._replace(limit_set=int(highest))
        return found

    def _asking_usage(self, keys: Sequence[str]) -> Any:
        lock = self.lock
        counts = fn.count(lock.id), fn.count(lock.token), fn.max(lock.fence)
        kinds = SQL(f"kind IN ('{SECTION}', '{LIMIT}')")
        used = lock.select(lock.key, lock.kind, *counts).where(
            kinds, lock.key.in_(keys), self._is_live()
        )
        return used.group_by(lock.key, lock.kind)

    def now(self) -> int:
        """Return the database's time."""
        ((now,),) = self.database.execute_sql(f"SELECT {self._now}").fetchall()
        return int(now)

    def clean(self, idle: int = KEEP_IDLE, settled: int = SETTLED) -> None:
        """Delete the rows of keys that have been free for *idle* milliseconds.

        The fence of a key never decreases: new rows begin above the floor.  The floor is raised
        first, and only rows that have been below it for *settled* milliseconds are deleted, so
        that no running statement has read a lower floor.
        """
        self.bound()
        lock, now = self.lock, database_now(self.database)
        # Only free sections must keep something: their fences.
        over = lock.kind.in_((UNIQUE, *EXPIRING)), lock.expires_at < now - idle
        lock.delete().where(*over).execute()
        old = (
            lock.kind == SECTION,
            lock.acquired_at < now - idle,
            lock.owner.is_null() | (lock.expires_at < now - idle),
        )
        floor = self._rows(FLOOR, "").first()
        if floor is None:
            row = {"kind": FLOOR, "key": "", "slot": 0, "fence": 0, "ttl": 0, "acquired_at": now}
            lock.insert(row).on_conflict_ignore().execute()
        elif to_millis(floor.acquired_at) + settled > self.now():
            return
        else:
            self._delete(*old, lock.fence <= floor.fence, lock.last_fence <= floor.fence)
        highest = lock.select(fn.max(lock.last_fence), fn.max(lock.fence)).where(*old).tuples()
        fence = max(number or 0 for number in highest.first())
        (
            lock.update(fence=fence, acquired_at=now)
            .where(lock.kind == FLOOR, lock.key == "", lock.fence < fence)
            .execute()
        )

    def _delete(self, *conditions: Any, batch: int = 1000) -> None:
        lock = self.lock
        while True:
            some = [row.id for row in lock.select(lock.id).where(*conditions).limit(batch)]
            if some:
                # Check again, because it may have been acquired since.
                lock.delete().where(lock.id.in_(some), *conditions).execute()
            if len(some) < batch:
                return

    def hold(self, claim: Claim, fence: int, began: float) -> Lease:
        """Return the lease of a granted claim, which is renewed from now on.

        Parameters:
          claim: The claim.
          fence: Its fence.
          began: When the statement that acquired it began, in monotonic seconds.
        """
        lasts = min(claim.ttl, self._gone_after or claim.ttl)
        lease = Lease(claim.key, claim.token or "", fence, lasts, began, by_hand=claim.by_hand)
        if claim.token is not None and claim.kind == SECTION:
            self.leases.add(lease)
        return lease

    def _rows(self, kind: str, key: str) -> Any:
        lock = self.lock
        return lock.select().where(lock.kind == kind, lock.key == key)


def describe_holder(holder: Holder | None) -> str:
    """Return a text that names who holds a key or waits for it, since when and until when."""
    if holder is None:
        return "was taken, and is free by now"
    since = f"{holder.since:%Y-%m-%d %H:%M:%S} UTC"
    if holder.until is None:
        if holder.by_hand:
            return f"is reserved for {holder.owner}, a manual lock that has waited since {since}"
        return f"is reserved for job {holder.owner}, which has waited for it since {since}"
    until = f"{holder.until:%Y-%m-%d %H:%M:%S} UTC"
    return f"is held by {holder.owner} since {since}, until {until} unless it is renewed"


def fold_key(key: str) -> str:
    """Return the stored form of a key: short enough for its column, without URL passwords."""
    return fold_jid(scrub_key(key))
