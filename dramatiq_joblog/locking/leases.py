"""The leases of this process, renewed while it is alive."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.dialects import dialect_of

from .needs import SECTION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peewee import Database


@dataclass
class Claim:
    """A request for a key: the key, its owner and the terms."""

    kind: str
    key: str
    owner: str
    token: str | None
    ttl: int
    process: str | None = None
    limit: int = 1
    #: Whether an earlier run of the same owner that holds it is known to be over.
    reenter: bool = False
    #: Whether it is a manual lock, whose owner may hold other slots of the key as well.
    by_hand: bool = False
    #: The number of the key's slots held by the job around a manual lock.
    of_job: int = 0
    #: Whether the caller no longer waits for an answer; then the key is not acquired.
    given_up: bool = False

    def give_up(self) -> None:
        """Record that the caller no longer waits; any thread may call this."""
        self.given_up = True


class Lease:
    """A key held by this process for as long as it is renewed."""

    def __init__(
        self,
        key: str,
        token: str,
        fence: int,
        lasts: int,
        began: float,
        *,
        by_hand: bool = False,
    ) -> None:
        #: The key.
        self.key = key
        #: The unique id of this lease.
        self.token = token
        #: A number that grows with each holder of the key, for stores that check it.
        self.fence = fence
        #: Milliseconds from a renewal until the lease expires.
        self.lasts = lasts
        #: When it expires, in monotonic seconds; counted from before the acquiring statement.
        self.deadline = began + lasts / 1000
        #: Whether it is a manual lock, which may outlast the process's workers.
        self.by_hand = by_hand
        #: Whether another has acquired the key.
        self.gone = False

    def extend(self, began: float) -> None:
        """Record a renewal by a statement that began at *began*, in monotonic seconds."""
        self.deadline = began + self.lasts / 1000

    def lose(self) -> None:
        """Mark it as lost to another holder."""
        self.gone = True

    @property
    def lost(self) -> bool:
        """Whether another may hold the key by now, because the lease was not renewed in time."""
        return self.gone or time.monotonic() > self.deadline


class Held:
    """The leases of a run, one for each of its sections; empty if it has none."""

    def __init__(self, leases: Sequence[Lease]) -> None:
        #: One for each section, in the order of declaration.
        self.leases = tuple(leases)

    @property
    def fence(self) -> int | None:
        """The fence of its section; of the first declared, if it has several."""
        return self.leases[0].fence if self.leases else None

    @property
    def fences(self) -> dict[str, int]:
        """The fences of all its sections, by key."""
        return {lease.key: lease.fence for lease in self.leases}

    @property
    def lost(self) -> bool:
        """Whether another job may hold one of its sections by now."""
        return any(lease.lost for lease in self.leases)


class Leases:
    """The leases of this process, by the token of the run or the block that holds them.

    Parameters:
      lock: The bound lock model.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._database: Database = lock._meta.database
        self._dialect = dialect_of(self._database)
        self.forget_all()

    def forget_all(self) -> None:
        """Stop renewing all leases, after a fork: the parent process holds them."""
        self._guard = threading.Lock()
        #: A run may have several keys.
        self._of: dict[str, list[Lease]] = {}
        #: The interval of renewals in milliseconds; None before the first lease.
        self.renewed_every: int | None = None
        self._process: str | None = None
        self._gone_after: int | None = None

    def __len__(self) -> int:
        return len(self._of)

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

    def detach(self, process: str) -> None:
        """Unbind manual locks from the process, because its workers have ended."""
        tokens = [t for t, leases in self.all().items() if leases[0].by_hand]
        if self._process == process:
            self._process = self._gone_after = None
        if tokens:
            lock = self._lock
            mine = lock.process == process, lock.token.in_(tokens)
            lock.update(process=None).where(*mine).execute()

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
            self._add(lease)
        return lease

    def renew(self) -> None:
        """Renew all leases of this process, in one statement."""
        leases = self.all()
        if not leases:
            return
        began = time.monotonic()
        lock = self._lock
        expires = database_now(self._database) + lock.ttl
        mine = (
            (lock.kind == SECTION)
            & lock.key.in_(sorted({lease.key for some in leases.values() for lease in some}))
            & lock.token.in_(list(leases))
        )
        # The order in which starts with several keys lock them.
        in_order = self._dialect.in_order(lock, mine, lock.key)
        renewal = lock.update(expires_at=expires).where(in_order)
        if self._dialect.guards_upserts:
            rows = renewal.returning(lock.token, lock.key).execute()
        else:
            renewal.execute()
            rows = lock.select(lock.token, lock.key).where(mine)
        renewed = {(row.token, row.key) for row in rows}
        for each in itertools.chain.from_iterable(leases.values()):
            if (each.token, each.key) in renewed:
                each.extend(began)
            else:
                self._lose(each)

    def forget(self, token: str | None) -> None:
        """Stop renewing the leases of a token."""
        if token is not None:
            with self._guard:
                self._of.pop(token, None)

    def all(self) -> dict[str, list[Lease]]:
        """Return the renewed leases, by token."""
        with self._guard:
            return {token: list(some) for token, some in self._of.items()}

    def _add(self, lease: Lease) -> None:
        with self._guard:
            others = [each for each in self._of.get(lease.token, ()) if each.key != lease.key]
            self._of[lease.token] = [*others, lease]
            # Two renewals may fail before one is lost.
            every = lease.lasts // 3
            self.renewed_every = min(every, self.renewed_every or every)

    def _lose(self, lease: Lease) -> None:
        """Remove a lease that another has acquired."""
        lease.lose()
        with self._guard:
            if all(each.gone for each in self._of.get(lease.token, ())):
                self._of.pop(lease.token, None)
