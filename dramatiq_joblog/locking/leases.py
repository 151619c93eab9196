"""What this process holds: leases, renewed for as long as it lives."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Claim:
    """Who wants to hold what."""

    kind: str
    key: str
    owner: str
    token: str | None
    ttl: int
    process: str | None = None
    limit: int = 1
    #: Whether the run of the same owner that holds it is known to be over.
    reenter: bool = False
    #: Whether it is taken by hand: then its owner may hold other slots of the key as well.
    by_hand: bool = False
    #: As many slots of the key are held by the job around a lock by hand.
    of_job: int = 0
    #: Whether who wanted it does not wait for an answer any more: then it is not taken.
    given_up: bool = False


class Lease:
    """A key that is held by this process, for as long as it is renewed."""

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
        #: Milliseconds after a renewal at which the lease expires.
        self.lasts = lasts
        #: Monotonic, in seconds; counted from before the statement that took it.
        self.deadline = began + lasts / 1000
        #: Whether it was taken by hand: then it may outlast the workers of the process.
        self.by_hand = by_hand
        #: Whether another has it.
        self.gone = False

    def extend(self, began: float) -> None:
        """Note that it was renewed by a statement that began then; monotonic, in seconds."""
        self.deadline = began + self.lasts / 1000

    def lose(self) -> None:
        """Note that another has it."""
        self.gone = True

    @property
    def lost(self) -> bool:
        """Whether another may hold the key by now, because this process was paused for too long."""
        return self.gone or time.monotonic() > self.deadline


class Held:
    """What a run holds: a lease of each of its sections; none, if it needs none."""

    def __init__(self, leases: Sequence[Lease]) -> None:
        #: One for each section, in the order of declaration.
        self.leases = tuple(leases)

    @property
    def fence(self) -> int | None:
        """The fence of its section: of the first that was declared, if it has several."""
        return self.leases[0].fence if self.leases else None

    @property
    def fences(self) -> dict[str, int]:
        """The fences of all its sections, by their keys."""
        return {lease.key: lease.fence for lease in self.leases}

    @property
    def lost(self) -> bool:
        """Whether another may be in one of its sections by now."""
        return any(lease.lost for lease in self.leases)


class Leases:
    """The leases of one process, by the token of the run or the block that holds them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        #: A run may have several keys.
        self._of: dict[str, list[Lease]] = {}
        #: Milliseconds within which each must be renewed; None before there was one.
        self.renewed_every: int | None = None

    def __len__(self) -> int:
        return len(self._of)

    def add(self, lease: Lease) -> None:
        """Renew a lease from now on."""
        with self._guard:
            others = [each for each in self._of.get(lease.token, ()) if each.key != lease.key]
            self._of[lease.token] = [*others, lease]
            # Two renewals may fail before one is lost.
            every = lease.lasts // 3
            self.renewed_every = min(every, self.renewed_every or every)

    def forget(self, token: str | None) -> None:
        """Renew those of a token no longer."""
        if token is not None:
            with self._guard:
                self._of.pop(token, None)

    def all(self) -> dict[str, list[Lease]]:
        """Return all that are renewed, by their tokens."""
        with self._guard:
            return {token: list(some) for token, some in self._of.items()}

    def lose(self, lease: Lease) -> None:
        """Note that another has what was held."""
        lease.lose()
        with self._guard:
            if all(each.gone for each in self._of.get(lease.token, ())):
                self._of.pop(lease.token, None)
