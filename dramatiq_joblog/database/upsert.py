"""Many rows in one statement: inserted, or written over those that are there if a guard lets.

The text of a statement is made once for each set of columns that rows carry, and a column
that none of them carries costs nothing.  Each kind of database takes rows in its own way.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast
from uuid import UUID

from peewee import (
    IntegrityError,
    MySQLDatabase,
    OperationalError,
    PostgresqlDatabase,
    SqliteDatabase,
)

from .libpq import run_prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from peewee import Database


#: Kinds of fields whose values PostgreSQL reads from JSON as the driver would send them.
_PLAIN = {
    *("AUTO", "BIGAUTO", "BIGINT", "BOOL", "CHAR", "DATE", "DATETIME", "DECIMAL", "DOUBLE"),
    *("FLOAT", "INT", "SMALLINT", "TEXT", "TIME", "UUID", "VARCHAR"),
}


@dataclass(frozen=True)
class Rule:
    """What becomes of a row whose key is in its table already.

    Its texts call the row that is there by *alias*, and the one that comes ``excluded``.
    """

    #: The bound model.
    model: Any
    alias: str
    #: The columns of the unique index that decides; the first names the row for whoever asks.
    key: tuple[str, ...]
    #: The row that is there changes only if this holds.
    guard: str
    #: Columns, and what they are set to whether or not the row that comes carries them.
    replaces: Mapping[str, str]
    #: Columns, and what they are set to if any row of the statement carries them.
    fills: Mapping[str, str]


def upsert(rule: Rule) -> Upsert:
    """Return what writes rows by *rule* on the kind of database that its model is bound to."""
    meta = rule.model._meta
    plain = all(field.field_type in _PLAIN for field in meta.sorted_fields)
    if plain and isinstance(meta.database, PostgresqlDatabase):
        return JsonUpsert(rule)
    if isinstance(meta.database, MySQLDatabase):
        return SteppedUpsert(rule)
    if isinstance(meta.database, SqliteDatabase):
        return CountedUpsert(rule)
    return Upsert(rule)


class Part(Protocol):
    """Writes rows to one table; one that is a :class:`Step` too may do it beside others."""

    database: Database
    #: The value of a row that names what it is about.
    named_by: str
    #: As many rows go into one statement at most.
    max_rows: int

    def write(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Write *rows*, which have different keys."""


class Step(Part, Protocol):
    """Writes rows to one table, or is a step of a statement that writes to several."""

    def step(self, rows: Sequence[Mapping[str, Any]], where: str) -> tuple[str, str]:
        """Return the text that writes those of *rows* that are *where*, and its parameter.

        It calls them ``told``.
        """


class Upsert:
    """Writes rows by a rule, as lists of values.

    Parameters:
      rule: The rule.
    """

    #: Values of one statement stay far below every database's limit on parameters.
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
        """Return what stands before the rows, and what behind them."""
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


class CountedUpsert(Upsert):
    """Writes rows and looks only at their number, where that tells enough.

    To fetch rows from SQLite's statement its file would stay locked, with a turn of the
    interpreter for each of them: as long as all else in the process takes.
    """

    def _write_chunk(self, columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> set[str]:
        cursor = self.database.execute_sql(*self._statement(columns, rows))
        first = self.named_by
        if self.database.rows_affected(cursor) == len(rows):
            return {row[first] for row in rows}
        return {row[first] for row in rows if self._stands(row)}

    def _stands(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row is as it was to be: by this statement, or the same one before."""
        replaces = self.rule.replaces.items()
        columns = [*self.rule.key, *(name for name, text in replaces if text == f"excluded.{name}")]
        same = " AND ".join(f'"{name}" IS {self.database.param}' for name in columns)
        text = f'SELECT 1 FROM "{self.table}" WHERE {same}'
        cursor = self.database.execute_sql(text, [row.get(name) for name in columns])
        return cursor.fetchone() is not None

    def _returning(self) -> str:
        return ""


class JsonUpsert(Upsert):
    """Writes rows as one JSON document, whose types PostgreSQL knows by the table.

    The text is the same for any number of rows, so that the driver prepares it; lists of
    values cost it several times as much.
    """

    max_rows = 1000

    def _write_chunk(self, columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> set[str]:
        return set(run_prepared(self.database, *self._statement(columns, rows)))

    def _statement(
        self, columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]
    ) -> tuple[str, Sequence[Any]]:
        return self._select(columns, ""), (as_json(rows),)

    def step(self, rows: Sequence[Mapping[str, Any]], where: str) -> tuple[str, str]:
        """Return the text that writes *rows* as a step of a statement, and its parameter."""
        return self._select(columns_of(rows), where), as_json(rows)

    def _select(self, columns: tuple[str, ...], where: str) -> str:
        head, tail = self._around(columns)
        source = (
            f'json_populate_recordset(NULL::"{self.table}", {self.database.param}::json) AS told'
        )
        return f"{head} SELECT {names(columns)} FROM {source} {where} {tail}"


class SteppedUpsert(Upsert):
    """Writes rows in steps, as MySQL cannot guard what it writes over.

    The rows that are there are locked, and the guard is asked of them; those that it lets are
    updated, and what is not there is inserted.
    """

    #: Characters of one statement: of up to four bytes each, they pass every server.
    max_length = 500_000

    def write(self, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        """Insert or update *rows*, as they do elsewhere in one statement."""
        written: set[str] = set()
        if rows:
            with self._transaction():
                for portion in self._portions(rows):
                    written |= self._write(portion)
        return written

    def _transaction(self) -> Any:
        # A statement that fails undoes itself alone: no savepoint is needed.
        is_open = self.database.in_transaction()
        return contextlib.nullcontext() if is_open else self.database.atomic()

    def _portions(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
        portion: list[Mapping[str, Any]] = []
        length = 0
        for row in rows:
            own = sum(len(value) for value in row.values() if isinstance(value, str))
            if portion and (length + own > self.max_length or len(portion) == self.max_rows):
                yield portion
                portion, length = [], 0
            portion.append(row)
            length += own
        yield portion

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        for _ in range(_TRIES):
            may_change = self._ask(rows)
            changed = [row for row in rows if may_change.get(self._key(row))]
            new = [row for row in rows if self._key(row) not in may_change]
            try:
                if new:
                    self._insert(new)
            except IntegrityError as e:
                if e.args[0] != _DUPLICATE:
                    raise
                # Another process has inserted one of them in between.
                continue
            if changed:
                self._update(changed)
            return {self._key(row)[0] for row in (*new, *changed)}
        raise OperationalError(f"rows of {self.table} were inserted by others at every try")

    def _key(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(row[column] for column in self.rule.key)

    def _ask(self, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], bool]:
        """Lock the rows that are there, and return whether the guard lets them change."""
        rule = self.rule
        columns = (*rule.key, *sorted({*_EXCLUDED.findall(rule.guard)} - {*rule.key}))
        source, values = self._source(columns, rows)
        keys = ", ".join(f"excluded.{column}" for column in rule.key)
        text = f"SELECT {keys}, ({rule.guard}) FROM {source} FOR UPDATE"
        found = self.database.execute_sql(_in_backticks(text), values).fetchall()
        return {tuple(key): bool(let) for *key, let in found}

    def _update(self, rows: Sequence[Mapping[str, Any]]) -> None:
        rule = self.rule
        carried = set().union(*rows)
        sets = {**rule.replaces, **{c: text for c, text in rule.fills.items() if c in carried}}
        mentioned = {column for text in sets.values() for column in _EXCLUDED.findall(text)}
        source, values = self._source((*rule.key, *sorted(mentioned - {*rule.key})), rows)
        # No value depends on another column that is set here to anything else.
        changes = ", ".join(f'{rule.alias}."{name}" = {text}' for name, text in sets.items())
        self.database.execute_sql(_in_backticks(f"UPDATE {source} SET {changes}"), values)

    def _insert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = columns_of(rows)
        row_text = f"({', '.join([self.database.param] * len(columns))})"
        text = f'INSERT INTO "{self.table}" ({names(columns)}) VALUES '
        values = values_of(columns, rows)
        self.database.execute_sql(
            _in_backticks(text + ", ".join([row_text] * len(rows))),
            values,
        )

    def _source(
        self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> tuple[str, list[Any]]:
        """Return the table joined to *rows*, which stand first: each is looked up by its key."""
        rule, param = self.rule, self.database.param
        first = ", ".join(f'{param} AS "{column}"' for column in columns)
        other = f" UNION ALL SELECT {', '.join([param] * len(columns))}"
        on = " AND ".join(f"{rule.alias}.{column} = excluded.{column}" for column in rule.key)
        text = (
            f"(SELECT {first}{other * (len(rows) - 1)}) AS excluded "
            f'STRAIGHT_JOIN "{self.table}" AS {rule.alias} ON {on}'
        )
        return text, [row.get(column) for row in rows for column in columns]


class Portion(NamedTuple):
    """The rows of a batch that go to one table by one rule."""

    part: Part
    rows: Sequence[Mapping[str, Any]]
    #: Whether only those are written whose name is one that the first portion wrote.
    follows: bool = False


def is_one_statement(portions: Sequence[Portion]) -> bool:
    """Tell whether :func:`write_all` writes *portions* in one statement."""
    wanted = [portion for portion in portions if portion.rows]
    if any(len(portion.rows) > portion.part.max_rows for portion in wanted):
        return False
    joins = bool(portions[0].rows) and all(_is_step(portion.part) for portion in wanted)
    return len(wanted) < 2 or joins


def _is_step(part: Part) -> bool:
    return hasattr(part, "step")


def write_all(portions: Sequence[Portion]) -> set[str]:
    """Write the rows of a batch; on PostgreSQL all in one statement, which is one round trip.

    Returns:
      The names of those that the first portion wrote.
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
        follows = f"WHERE told.{part.named_by} IN (SELECT name FROM step_0)"
        text, value = part.step(portion.rows, follows if portion.follows else "")
        steps.append(f"step_{number} (name) AS ({text})")
        values.append(value)
    text = f"WITH {', '.join(steps)} SELECT name FROM step_0"
    return set(run_prepared(portions[0].part.database, text, values))


#: The number of MySQL's error for a key that is there already, and how often rows are tried.
_DUPLICATE, _TRIES = 1062, 5
_EXCLUDED = re.compile(r'excluded\."?(\w+)')


def _in_backticks(text: str) -> str:
    return text.replace('"', "`")


@lru_cache(maxsize=256)
def _sorted(columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(columns))


def columns_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the columns that any of *rows* carries, in one order."""
    first, *others = map(tuple, rows)
    if all(columns == first for columns in others):
        return _sorted(first)
    return tuple(sorted({*first}.union(*others)))


@lru_cache(maxsize=256)
def _getter(columns: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    return itemgetter(*columns)


def values_of(columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the values of *rows* one after the other; None for a column that one lacks."""
    count = len(columns)
    if count == 1:
        return [row.get(columns[0]) for row in rows]
    get = _getter(columns)
    values: list[Any] = []
    for row in rows:
        # As many as there are columns are just these.
        values += get(row) if len(row) == count else map(row.get, columns)
    return values


def names(columns: Iterable[str]) -> str:
    """Return *columns* as they stand in a statement."""
    return ", ".join(f'"{column}"' for column in columns)


def _as_text(value: Any) -> str:
    """Write a value of a column of the user's own that JSON has no word for, and SQL has."""
    if isinstance(value, (date, time, Decimal, UUID)):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} cannot be stored in a column of text")


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as one parameter of PostgreSQL."""
    return _ENCODER.encode(rows)


_ENCODER = json.JSONEncoder(
    allow_nan=False,
    check_circular=False,
    default=_as_text,
    ensure_ascii=False,
    separators=(",", ":"),
)
