"""Acquires slots of keys; a unique index decides who has one.

A key has a row for each slot.  A slot is free if it has no owner, or if its lease has expired by
the database's clock.  The statements here run in the caller's transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from peewee import SQL

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.database.dialects import dialect_of

from .needs import SECTION

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from peewee import Database

    from .leases import Claim

#: The kind of the row with the highest fence of all deleted rows.
FLOOR = "floor"


def slots_of(lock: Any) -> Slots:
    """Return the :class:`Slots` for the database that the lock model is bound to."""
    guards = dialect_of(lock._meta.database).guards_upserts
    return Slots(lock) if guards else SteppedSlots(lock)


class Slots:
    """Acquires slots with one guarded upsert.

    Parameters:
      lock: The bound lock model.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.database: Database = lock._meta.database
        self._now: str = database_now(self.database).sql
        self._table = f'"{lock._meta.table_name}"'

    def take(self, claim: Claim) -> int | None:
        """Acquire a free slot of a key, or the one that its owner has; return the fence."""
        return self._take_first(claim) if claim.limit == 1 else self._take_any(claim)

    def take_all(self, claims: Iterable[Claim]) -> dict[str, int]:
        """Acquire those keys that are free, all different and exclusive; return fences."""
        return self._upsert(sorted(claims, key=lambda claim: claim.key), 0)

    def alone_with(self, claim: Claim) -> int:
        """Keep others from the key until the transaction ends; return its last fence."""
        text = f"""
            INSERT INTO {self._table} AS held
                (kind, "key", slot, ttl, fence, last_fence, acquired_at)
            SELECT ?, ?, 0, ?, lowest.fence - 1, lowest.fence - 1, {self._now}
            FROM ({self._lowest()}) AS lowest WHERE true
            ON CONFLICT (kind, "key", slot) DO UPDATE SET last_fence = held.last_fence
            RETURNING last_fence
        """
        [(last,)] = self._execute(text, (claim.kind, claim.key, claim.ttl))
        return int(last)

    def is_live(self) -> Any:
        """Return the condition that a slot is held."""
        lock = self._lock
        return lock.owner.is_null(False) & (lock.expires_at > database_now(self.database))

    def _take_first(self, claim: Claim) -> int | None:
        """Acquire the only slot of a key; return its fence."""
        return self._upsert([claim], 0).get(claim.key)

    def _take_any(self, claim: Claim) -> int | None:
        """Acquire one of several slots of a key; return its fence."""
        fence = self.alone_with(claim) + 1
        lock = self._lock
        mine = lock.kind == claim.kind, lock.key == claim.key
        rows = list(lock.select(lock, self.is_live().alias("live")).where(*mine))
        own = [row.slot for row in rows if row.owner == claim.owner and not claim.by_hand]
        taken = {row.slot for row in rows if row.live}
        # Slots held under a higher limit count too.
        limit = claim.limit if len(taken) < claim.limit else 0
        # A generator: the limit may be a million, and the first free slot usually succeeds.
        free = (slot for slot in range(limit) if slot not in taken)
        for slot in own or free:
            if self._upsert([claim], slot, fence):
                lock.update(last_fence=fence).where(*mine, lock.slot == 0).execute()
                return fence
        return None

    def _lowest(self) -> str:
        """Return the query for the lowest fence that a new key may have."""
        return (
            f"SELECT coalesce(max(fence), 0) + 1 AS fence FROM {self._table} AS floor "
            f"WHERE floor.kind = '{FLOOR}'"
        )

    def _upsert(
        self, claims: Sequence[Claim], slot: int, fence: int | None = None
    ) -> dict[str, int]:
        """Acquire a slot of each key, where it is free.

        Parameters:
          claims: Of different keys.
          slot: The slot.
          fence: The fence to set; None for the one after the last of each key.

        Returns:
          The fences of the keys acquired, by key.
        """
        first = f"({self._lowest()})" if fence is None else str(fence)
        row = f"(?, ?, ?, ?, ?, ?, ?, {first}, {first}, {self._now}, {self._now} + ?)"
        rows_text = f"VALUES {', '.join([row] * len(claims))}"
        alone = all(claim.limit == 1 for claim in claims)
        text = self._writing(rows_text, fence, reenter="?", alone=alone)
        text += ' RETURNING "key", fence'
        values: list[Any] = []
        for c in claims:
            values += [c.kind, c.key, slot, c.owner, c.token, c.process, c.ttl, c.ttl]
        rows = self._execute(text, (*values, any(claim.reenter for claim in claims)))
        return {key: int(number) for key, number in rows}

    def step(self, given: str, where: str) -> str:
        """Return the SQL that acquires the only slot of each key of *given*, where it is free.

        It is a step of a statement, and returns ``owner`` and ``fence``.

        Parameters:
          given: The name of rows with ``key``, ``owner``, ``token``, ``process`` and ``ttl``.
          where: The condition for keys that may be acquired.
        """
        rows_text = f"""
            SELECT '{SECTION}', given."key", 0, given.owner, given.token, given.process, given.ttl,
                lowest.fence, lowest.fence, {self._now}, {self._now} + given.ttl
            FROM {given} AS given, ({self._lowest()}) AS lowest
            WHERE {where} ORDER BY given."key"
        """
        text = self._writing(rows_text, None, reenter="false", alone=True)
        return f"{text} RETURNING owner, fence"

    def _writing(self, rows: str, fence: int | None, *, reenter: str, alone: bool) -> str:
        """Return the statement that writes *rows* over free slots."""
        again = "held.last_fence + 1" if fence is None else str(fence)
        return f"""
            INSERT INTO {self._table} AS held (kind, "key", slot, owner, token, process, ttl,
                fence, last_fence, acquired_at, expires_at)
            {rows}
            ON CONFLICT (kind, "key", slot) DO UPDATE SET
                owner = excluded.owner, token = excluded.token, process = excluded.process,
                ttl = excluded.ttl, fence = {again}, last_fence = {again},
                acquired_at = excluded.acquired_at, expires_at = excluded.expires_at
            WHERE (held.owner IS NULL OR held.expires_at <= {self._now}
                OR (held.owner = excluded.owner AND (held.token IS NULL OR {reenter})))
                {self._alone if alone else ""}
        """

    @property
    def _alone(self) -> str:
        """Return the condition that no slot of a key is held under a limit above one."""
        return f"""AND NOT EXISTS (
            SELECT 1 FROM {self._table} AS other WHERE other.kind = held.kind
                AND other."key" = held."key" AND other.slot > 0
                AND (other.owner <> excluded.owner OR other.token IS NOT NULL)
                AND other.expires_at > {self._now})"""

    def _execute(self, text: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        cursor = self.database.execute_sql(text.replace("?", self.database.param), values)
        return list(cursor.fetchall())


class _Slot(NamedTuple):
    """A slot whose row is locked."""

    key: str
    owner: str | None
    token: str | None
    live: bool
    last_fence: int

    def is_free_for(self, claim: Claim) -> bool:
        """Return whether a claim may acquire it."""
        if not self.live:
            return True
        return self.owner == claim.owner and (self.token is None or claim.reenter)


class SteppedSlots(Slots):
    """Acquires slots in steps, because MySQL's upsert has neither a guard nor RETURNING.

    The rows are locked, and free ones are overwritten.
    """

    def __init__(self, lock: Any) -> None:
        super().__init__(lock)
        self._rows = Compiled(self.database, self._locking)
        self._beyond = Compiled(self.database, self._selecting_beyond)

    def alone_with(self, claim: Claim) -> int:
        """Keep others from the key until the transaction ends; return its last fence."""
        return self._locked([claim], 0)[claim.key].last_fence

    def _upsert(
        self, claims: Sequence[Claim], slot: int, fence: int | None = None
    ) -> dict[str, int]:
        slots = self._locked(claims, slot)
        alone = [claim for claim in claims if claim.limit == 1]
        shut = self._held_beyond(alone) if alone else set()
        free = [c for c in claims if slots[c.key].is_free_for(c) and c.key not in shut]
        fences = {c.key: slots[c.key].last_fence + 1 if fence is None else fence for c in free}
        if free:
            self._write_over(free, slot, fences)
        return fences

    def _locked(self, claims: Sequence[Claim], slot: int) -> dict[str, _Slot]:
        """Lock the rows of one slot of keys of one kind, inserting missing ones."""
        kind = claims[0].kind
        slots = self._lock_rows(kind, slot, [claim.key for claim in claims])
        missing = [claim for claim in claims if claim.key not in slots]
        if missing:
            [(lowest,)] = self._execute(self._lowest(), ())
            row = f"(?, ?, ?, ?, ?, ?, {self._now})"
            text = f"""
                INSERT INTO {self._table}
                    (kind, "key", slot, ttl, fence, last_fence, acquired_at)
                VALUES {", ".join([row] * len(missing))} ON DUPLICATE KEY UPDATE slot = slot
            """
            values: list[Any] = []
            for claim in missing:
                values += [kind, claim.key, slot, claim.ttl, lowest - 1, lowest - 1]
            self._execute(text, values)
            slots |= self._lock_rows(kind, slot, [claim.key for claim in missing])
        return slots

    def _lock_rows(self, kind: str, slot: int, keys: Sequence[str]) -> dict[str, _Slot]:
        rows = self._rows.execute([kind, slot, *keys]).fetchall()
        return {row[0]: _Slot(*row) for row in rows}

    def _locking(self, values: Sequence[Any]) -> Any:
        lock, (kind, slot, *keys) = self._lock, values
        state = lock.key, lock.owner, lock.token, self.is_live(), lock.last_fence
        rows = lock.select(*state).where(lock.kind == kind, lock.slot == slot, lock.key.in_(keys))
        return rows.order_by(lock.key).for_update()

    def _held_beyond(self, claims: Sequence[Claim]) -> set[str]:
        """Return those keys that others hold under a limit above one."""
        owners = {claim.key: claim.owner for claim in claims}
        rows = self._beyond.execute([claims[0].kind, *owners]).fetchall()
        # A slot reserved for its own owner's next run does not count.
        return {key for key, owner, token in rows if owner != owners[key] or token is not None}

    def _selecting_beyond(self, values: Sequence[Any]) -> Any:
        lock, (kind, *keys) = self._lock, values
        rows = lock.select(lock.key, lock.owner, lock.token)
        return rows.where(lock.kind == kind, lock.key.in_(keys), SQL("slot > 0"), self.is_live())

    def _write_over(self, claims: Sequence[Claim], slot: int, fences: dict[str, int]) -> None:
        names = ("owner", "token", "process", "ttl", "fence", "last_fence")
        sets = ", ".join(f"{n} = VALUES({n})" for n in (*names, "acquired_at", "expires_at"))
        row = f"(?, ?, ?, ?, ?, ?, ?, ?, ?, {self._now}, {self._now} + ?)"
        text = f"""
            INSERT INTO {self._table} (kind, "key", slot, {", ".join(names)},
                acquired_at, expires_at)
            VALUES {", ".join([row] * len(claims))} ON DUPLICATE KEY UPDATE {sets}
        """
        values: list[Any] = []
        for c in claims:
            fence = fences[c.key]
            values += [c.kind, c.key, slot, c.owner, c.token, c.process, c.ttl, fence, fence, c.ttl]
        self._execute(text, values)

    def _execute(self, text: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        return super()._execute(text.replace('"', "`"), values)
