"""Who holds a key, and how a section is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from peewee import SQL, fn

from dramatiq_joblog.database.compiled import Compiled

from .limits import LIMIT
from .needs import SECTION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from .slots import Slots


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


class Holders:
    """The queries on who holds a key.

    Parameters:
      lock: The bound lock model.
      slots: Knows which slots are held.
    """

    def __init__(self, lock: Any, slots: Slots) -> None:
        self._lock = lock
        self._is_live = slots.is_live
        self._usage = Compiled(slots.database, self._asking_usage)
        self._owners = Compiled(slots.database, self._asking_owners)

    def first(self, kind: str, key: str) -> Holder | None:
        """Return the holder of a key, the first if there are several; None if it is free."""
        lock = self._lock
        held = lock.kind == kind, lock.key == key, lock.owner.is_null(False)
        row = lock.select().where(*held).order_by(lock.slot).first()
        return None if row is None else Holder(row.owner, row.acquired_at, row.expires_at)

    def owners(self, key: str) -> list[str]:
        """Return the owners of the slots of a section that are held, with valid leases."""
        return [owner for (owner,) in self._owners.execute([key]).fetchall()]

    def _asking_owners(self, keys: Sequence[str]) -> Any:
        lock = self._lock
        held = lock.select(lock.owner).where(SQL(f"kind = '{SECTION}'"), lock.key == keys[0])
        return held.where(lock.owner.is_null(False), self._is_live())

    def kept_for(self, key: str) -> list[str]:
        """Return the jobs for whose next run a slot of a section is kept."""
        lock = self._lock
        kept = lock.token.is_null(), lock.owner.is_null(False), self._is_live()
        mine = lock.kind == SECTION, lock.key == key
        rows = lock.select(lock.owner).where(*mine, *kept).order_by(lock.slot)
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
        lock = self._lock
        counts = fn.count(lock.id), fn.count(lock.token), fn.max(lock.fence)
        kinds = SQL(f"kind IN ('{SECTION}', '{LIMIT}')")
        used = lock.select(lock.key, lock.kind, *counts).where(
            kinds, lock.key.in_(keys), self._is_live()
        )
        return used.group_by(lock.key, lock.kind)


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
