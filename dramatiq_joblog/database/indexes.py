"""The indexes of a table: created if they are missing, and named after their table.

On PostgreSQL and SQLite index names are unique across all tables, and ``IF NOT EXISTS`` skips an
index whose name another table has taken.
"""

from __future__ import annotations

import copy
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peewee import Field

from .dialects import dialect_of

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes of a name: PostgreSQL cuts names longer than 63.
_LONGEST = 60


@dataclass(frozen=True)
class _Wanted:
    """An index that a model declares."""

    #: peewee's, which is untyped.
    index: Any
    name: str
    #: Its former name, after the model's class, as peewee names indexes by default.
    former_name: str
    #: None for an index of expressions.
    columns: tuple[str, ...] | None
    unique: bool
    partial: bool

    def is_served_by(self, other: Any) -> bool:
        """Return whether an index of the same table does the same."""
        if self.columns is None or self.partial:
            # Perhaps with a number, because the name was taken.
            return re.fullmatch(rf"{re.escape(self.name)}(_\d+)?", other.name) is not None
        if other.sql is not None and " where " in other.sql.lower():
            return False
        same = set(other.columns) == {*self.columns} and len(other.columns) == len(self.columns)
        if self.unique:
            return bool(same and other.unique)
        return bool(tuple(other.columns) == self.columns)


def ensure_indexes(model: Any) -> None:
    """Create the indexes that the table of a bound model lacks, named after the table."""
    database, table = model._meta.database, model._meta.table_name
    for wanted in _wanted(model):
        there = database.get_indexes(table, model._meta.schema)
        serving = [index.name for index in there if wanted.is_served_by(index)]
        if not serving:
            _create(model, wanted)
        elif wanted.former_name in serving and dialect_of(database).shares_index_names:
            _rename(model, wanted, serving)


def missing_keys(model: Any) -> list[tuple[str, ...]]:
    """Return the columns of the unique indexes that the table of a bound model lacks."""
    meta = model._meta
    there = meta.database.get_indexes(meta.table_name, meta.schema)
    return [
        wanted.columns
        for wanted in _wanted(model)
        if wanted.unique
        and wanted.columns is not None
        and not any(wanted.is_served_by(index) for index in there)
    ]


def _wanted(model: Any) -> Iterator[_Wanted]:
    meta = model._meta
    for index in meta.fields_to_index():
        parts = index._expressions
        columns = (
            tuple(part.column_name for part in parts)
            if all(isinstance(part, Field) for part in parts)
            else None
        )
        yield _Wanted(
            index=index,
            name=_short(index._name),
            former_name="_".join((meta.name, *(columns or ()))),
            columns=columns,
            unique=bool(index._unique),
            partial=index._where is not None,
        )


def _create(model: Any, wanted: _Wanted) -> None:
    name, number = wanted.name, 1
    while dialect_of(model._meta.database).is_index(model, name):
        number += 1
        name = f"{wanted.name}_{number}"
    index = copy.copy(wanted.index)
    index._name = name
    model._meta.database.execute(model._schema._create_index(index, safe=False))


def _rename(model: Any, wanted: _Wanted, serving: list[str]) -> None:
    """Rename an index that has the name of a class, which an application's own index may need."""
    database, former = model._meta.database, wanted.former_name
    schema = f'"{model._meta.schema}".' if model._meta.schema else ""
    is_alone, dialect = serving == [former], dialect_of(database)
    may = is_alone and not dialect.is_index(model, wanted.name)
    if may and dialect.rename_index(model, former, wanted.name):
        return
    # It exists twice, or cannot be renamed.
    database.execute_sql(f'DROP INDEX {schema}"{former}"')
    if is_alone:
        _create(model, wanted)


def _short(name: str) -> str:
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:7]
    return f"{name[: _LONGEST - 8]}_{digest}"
