"""Guarded upserts of many rows in one statement: a row changes only if a condition holds.

The SQL is generated once for each set of columns, and a column that no row has costs nothing.
Each kind of database receives rows in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard, cast

from .libpq import run_prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from peewee import Database


@dataclass(frozen=True)
class Rule:
    """What happens to a row whose key already exists in the table.

    Its SQL names the existing row by *alias*, and the new row ``excluded``.
    """

    #: The bound model.
    model: Any
    alias: str
    #: The columns of the unique index that decides; the first one identifies the row for callers.
    key: tuple[str, ...]
    #: The existing row changes only if this condition holds.
    guard: str
    #: Columns, and their new values whether or not the new row has them.
    replaces: Mapping[str, str]
    #: Columns, and their new values if any row of the statement has them.
    fills: Mapping[str, str]


class Part(Protocol):
    """Writes rows to one table; a :class:`Step` can do so within a larger statement."""

    database: Database
    #: The column that identifies a row.
    named_by: str
    #: The most rows in one statement.
    max_rows: int

    def write(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Write *rows*, which have different keys."""


class Step(Part, Protocol):
    """Writes rows to one table, or is a step of a statement that writes to several."""

    def step(self, rows: Sequence[Mapping[str, Any]], where: str) -> tuple[str, str]:
        """Return the SQL that writes those of *rows* for which *where* holds, and its parameter.

        The SQL names the rows ``given``.
        """


class Upsert:
    """Writes rows by a rule, as lists of values.

    Parameters:
      rule: The rule.
    """

    #: So a statement has far fewer parameters than every database allows.
    max_rows = 100

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.named_by = rule.key[0]
        self.database: Database = rule.model._meta.database
        self.table: str = rule.model._meta.table_name
        self._texts: dict[tuple[str, ...], tuple[str, str]] = {}

    def write(self, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        """Insert or update *rows*, which have different keys, in a statement for each *max_rows*.

        Returns:
          The first part of the key of each row that the guard did not hold back.
        """
        written: set[str] = set()
        for start in range(0, len(rows), self.max_rows):
            chunk = rows[start : start + self.max_rows]
            written |= self._write_chunk(columns_of(chunk), chunk)
        return written

    def _write_chunk(self, columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> set[str]:
        cursor = self.database.execute_sql(*self._statement(columns, rows))
        return {name for (name,) in cursor.fetchall()}

    def _statement(
        self, columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]
    ) -> tuple[str, Sequence[Any]]:
        head, tail = self._around(columns)
        row_text = f"({', '.join([self.database.param] * len(columns))})"
        values = values_of(columns, rows)
        return f"{head} VALUES {', '.join([row_text] * len(rows))} {tail}", values

    def _around(self, columns: tuple[str, ...]) -> tuple[str, str]:
        """Return the SQL before the rows, and after them."""
        around = self._texts.get(columns)
        if around is None:
            rule = self.rule
            carried = {name: text for name, text in rule.fills.items() if name in columns}
            sets = (f'"{name}" = {text}' for name, text in {**rule.replaces, **carried}.items())
            head = f'INSERT INTO "{self.table}" AS {rule.alias} ({names(columns)})'
            tail = (
                f"ON CONFLICT ({names(rule.key)}) DO UPDATE SET {', '.join(sets)} "
                f"WHERE {rule.guard}{self._returning()}"
            )
            around = self._texts[columns] = head, tail
        return around

    def _returning(self) -> str:
        return f' RETURNING "{self.named_by}"'


class Portion(NamedTuple):
    """The rows of a batch for one table, and how they are written."""

    part: Part
    rows: Sequence[Mapping[str, Any]]
    #: Whether only rows are written whose key the first portion also wrote.
    follows: bool = False


def is_one_statement(portions: Sequence[Portion]) -> bool:
    """Return whether :func:`write_all` writes *portions* in one statement."""
    wanted = [portion for portion in portions if portion.rows]
    if any(len(portion.rows) > portion.part.max_rows for portion in wanted):
        return False
    joins = bool(portions[0].rows) and all(is_step(portion.part) for portion in wanted)
    return len(wanted) < 2 or joins


def is_step(part: Part) -> TypeGuard[Step]:
    """Return whether *part* can be a step of a statement that does more."""
    return hasattr(part, "step")


def write_all(portions: Sequence[Portion]) -> set[str]:
    """Write the rows of a batch; on PostgreSQL in one statement, which is one round trip.

    Returns:
      The keys of the rows that the first portion wrote.
    """
    first, *others = portions
    wanted = [portion for portion in others if portion.rows]
    if first.rows and wanted and is_one_statement(portions):
        return _write_joined([first, *wanted])
    written: set[str] = first.part.write(first.rows)
    for part, rows, follows in wanted:
        some = [row for row in rows if not follows or row[part.named_by] in written]
        if some:
            part.write(some)
    return written


def _write_joined(portions: Sequence[Portion]) -> set[str]:
    """Write portions as the steps of one statement."""
    steps, values = [], []
    for number, portion in enumerate(portions):
        part = cast("Step", portion.part)
        follows = f"WHERE given.{part.named_by} IN (SELECT name FROM step_0)"
        text, value = part.step(portion.rows, follows if portion.follows else "")
        steps.append(f"step_{number} (name) AS ({text})")
        values.append(value)
    text = f"WITH {', '.join(steps)} SELECT name FROM step_0"
    return set(run_prepared(portions[0].part.database, text, values))


@lru_cache(maxsize=256)
def _sorted(columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(columns))


def columns_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the columns that any of *rows* has, in a fixed order."""
    first, *others = map(tuple, rows)
    if all(columns == first for columns in others):
        return _sorted(first)
    return tuple(sorted({*first}.union(*others)))


@lru_cache(maxsize=256)
def _getter(columns: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    return itemgetter(*columns)


def values_of(columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the values of *rows* in a flat list; None for a column that a row lacks."""
    count = len(columns)
    if count == 1:
        return [row.get(columns[0]) for row in rows]
    get = _getter(columns)
    values: list[Any] = []
    for row in rows:
        # A row with as many values as there are columns has exactly these columns.
        values += get(row) if len(row) == count else map(row.get, columns)
    return values


def names(columns: Iterable[str]) -> str:
    """Return *columns* as SQL."""
    return ", ".join(f'"{column}"' for column in columns)
