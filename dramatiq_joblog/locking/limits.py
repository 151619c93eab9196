"""Limits set at run time: rows in the table of keys that override the code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peewee import SQL

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.payload.values import MAX_INT, iso_text
from dramatiq_joblog.schema.models import to_millis

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

#: The kind of such rows.
LIMIT = "limit"
#: The end of a limit without one, in milliseconds since 1970: the year 9999.
FOREVER = 253_402_300_799_000


@dataclass(frozen=True)
class LimitSet:
    """A limit that someone has set for a key, overriding the limit in the code."""

    key: str
    #: How many may hold the key at once, or start within the period of a rate; 0 pauses it.
    limit: int
    #: Who set it.
    who: str
    #: When it was set, by the database's clock, like *until*.
    since: datetime
    #: When it ends; None for no end.
    until: datetime | None

    def __str__(self) -> str:
        return f"{self.who} has set its limit to {said_of(self)}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as a dictionary for JSON."""
        until = None if self.until is None else iso_text(self.until)
        said = {"key": self.key, "limit": self.limit, "who": self.who}
        return said | {"since": iso_text(self.since), "until": until}


def said_of(limit: LimitSet | None) -> str:
    """Return a limit as text: the one set, or that the code's applies."""
    if limit is None:
        return "as set in the code"
    until = "" if limit.until is None else f" until {limit.until:%Y-%m-%d %H:%M:%S} UTC"
    return f"{limit.limit}{until}"


def check_limit_set(key: Any, limit: Any) -> None:
    """Refuse a key or limit that cannot be set.

    Raises:
      ConfigurationError: If it cannot be.
    """
    if not isinstance(key, str) or not key:
        raise ConfigurationError(f"the key {key!r} is not valid: give a text that is not empty")
    if limit is None:
        return
    if not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit <= MAX_INT:
        raise ConfigurationError(
            f"the limit {limit!r} of {key!r} must be a whole number from 0 to {MAX_INT}, or None "
            "to take back what was set"
        )


class Limits:
    """The statements on limits that people set.

    Parameters:
      lock: The bound lock model.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._of = Compiled(lock._meta.database, self._selecting)

    def of(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the limits set for *keys*; keys without one are left out."""
        return {key: int(limit) for key, limit in self._of.execute(keys).fetchall()}

    def _selecting(self, keys: Sequence[str]) -> Any:
        lock = self._lock
        live = lock.expires_at > database_now(lock._meta.database)
        rows = lock.select(lock.key, lock.fence)
        return rows.where(SQL(f"kind = '{LIMIT}'"), lock.key.in_(keys), live)

    def get(self, key: str) -> LimitSet | None:
        """Return the limit set for a key, or None."""
        row = self._standing().where(self._lock.key == key).first()
        return None if row is None else _limit_set(row)

    def all(self) -> list[LimitSet]:
        """Return all limits set, ordered by key."""
        return [_limit_set(row) for row in self._standing().order_by(self._lock.key)]

    def set(self, key: str, limit: int, *, until: int | None, who: str) -> None:
        """Set the limit of a key, until an instant in milliseconds since 1970."""
        lock = self._lock
        values = {
            "owner": who,
            "fence": limit,
            # The maximum: it is not a lease, which is shortened when the clock is set back.
            "ttl": FOREVER,
            "acquired_at": database_now(lock._meta.database),
            "expires_at": FOREVER if until is None else until,
        }
        mine = lock.update(**values).where(lock.kind == LIMIT, lock.key == key)
        if not mine.execute():
            row = {"kind": LIMIT, "key": key, "slot": 0, **values}
            lock.insert(row).on_conflict_ignore().execute()
            # Another process may have set one at the same time.
            mine.execute()

    def remove(self, key: str) -> bool:
        """Restore the code's limit of a key; return whether another was set."""
        lock = self._lock
        found = self._standing().where(lock.key == key).exists()
        lock.delete().where(lock.kind == LIMIT, lock.key == key).execute()
        return bool(found)

    def _standing(self) -> Any:
        lock = self._lock
        live = lock.expires_at > database_now(lock._meta.database)
        return lock.select().where(lock.kind == LIMIT, live)


def _limit_set(row: Any) -> LimitSet:
    # FOREVER itself may exceed what a datetime can hold.
    ends = to_millis(row.expires_at) < FOREVER - 172_800_000
    until = row.expires_at if ends else None
    return LimitSet(row.key, int(row.fence), row.owner, row.acquired_at, until)
