"""Releases the sections of ended jobs, as a step of the statement that writes their ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import SQL

from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.database.dialects.postgresql import as_json

from .needs import SECTION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peewee import Database

#: The columns that are NULL on the row of a free key.
_NOTHING = ("owner", "token", "process", "expires_at")


def freeing(lock: Any) -> Freeing:
    """Return the :class:`Freeing` for the database that the lock model is bound to."""
    joins = dialect_of(lock._meta.database).joins_writes
    return SteppingFreeing(lock) if joins else Freeing(lock)


class Freeing:
    """Releases sections, given as rows of a key, its owner and the token of its run.

    Sections that a later run of the same owner holds by now stay held.

    Parameters:
      lock: The bound lock model.
    """

    #: The column of a row with the jid.
    named_by = "owner"
    max_rows = 1000

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.database: Database = lock._meta.database
        self._update = Compiled(self.database, self._updating)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Release the sections of *rows*."""
        values = [row[name] for name in ("key", "owner", "token") for row in rows]
        self._update.execute(values)

    def _updating(self, values: Sequence[Any]) -> Any:
        """Return the statement that releases sections: keys, owners and tokens, equally many."""
        lock = self._lock
        return lock.update(dict.fromkeys(_NOTHING, SQL("NULL"))).where(self._mine(values))

    def _mine(self, values: Sequence[Any]) -> Any:
        lock, count = self._lock, len(values) // 3
        mine = (
            (lock.kind == SQL(f"'{SECTION}'"))
            & lock.key.in_(values[:count])
            & lock.owner.in_(values[count : 2 * count])
            & (lock.token.is_null() | lock.token.in_(values[2 * count :]))
        )
        return dialect_of(self.database).in_order(lock, mine, lock.key)


class SteppingFreeing(Freeing):
    """Releases sections as a step of a statement, locking keys in the common order."""

    def step(self, rows: Sequence[Mapping[str, Any]], where: str) -> tuple[str, str]:
        """Return the SQL of the step that releases *rows*, and its parameter.

        It inserts rows that exist, so that each is looked up by its key.  The server may keep a
        plan of an update that scans all keys.
        """
        table = self._lock._meta.table_name
        names = [f'"{field.column_name}"' for field in self._lock._meta.sorted_fields]
        columns, held = ", ".join(names), ", ".join(f"held.{name}" for name in names)
        text = f"""
            INSERT INTO "{table}" AS freed ({columns}) SELECT {held} FROM (
                SELECT given.* FROM json_to_recordset({self.database.param}::json)
                    AS given ("key" text, owner text, token text) {where} ORDER BY "key"
            ) AS mine, LATERAL (
                SELECT {columns} FROM "{table}" AS held
                WHERE held.kind = '{SECTION}' AND held."key" = mine."key"
                    AND held.owner = mine.owner
                    AND (held.token IS NULL OR held.token = mine.token)
                FOR UPDATE
            ) AS held
            ON CONFLICT (kind, "key", slot)
            DO UPDATE SET {", ".join(f"{name} = NULL" for name in _NOTHING)}
            RETURNING freed."key"
        """
        return text, as_json(rows)
