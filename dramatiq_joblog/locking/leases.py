"""The leases of this process, renewed while it is alive."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    """The leases of one process, by the token of the run or the block that holds them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        #: A run may have several keys.
        self._of: dict[str, list[Lease]] = {}
        #: The interval of renewals in milliseconds; None before the first lease.
        self.renewed_every: int | None = None

    def __len__(self) -> int:
        return len(self._of)

    def add(self, lease: Lease) -> None:
        """Add a lease to renew."""
        with self._guard:
            others = [each for each in self._of.get(lease.token, ()) if each.key != lease.key]
            self._of[lease.token] = [*others, lease]
            # Two renewals may fail before one is lost.
            every = lease.lasts // 3
            self.renewed_every = min(every, self.renewed_every or every)

    def forget(self, token: str | None) -> None:
        """Stop renewing the leases of a token."""
        if token is not None:
            with self._guard:
                self._of.pop(token, None)

    def all(self) -> dict[str, list[Lease]]:
        """Return the renewed leases, by token."""
        with self._guard:
            return {token: list(some) for token, some in self._of.items()}

    def lose(self, lease: Lease) -> None:
        """Remove a lease that another has acquired."""
        lease.lose()
        with self._guard:
            if all(each.gone for each in self._of.get(lease.token, ())):
                self._of.pop(lease.token, None)
