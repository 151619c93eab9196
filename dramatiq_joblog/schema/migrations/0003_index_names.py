"""Unique indexes that were made under the name of a class are there on each log's own tables.

peewee passed over one whose name another table of the database had.  What came twice meanwhile
would keep it from being made now.  The indexes themselves are made after all migrations.
"""

from __future__ import annotations

from typing import Any

_KEYS = (
    ("jid",),
    ("jid", "token"),
    ("process",),
    ("kind", "key", "slot"),
    ("jid", "token", "number"),
    ("span", "at", "gone", "actor", "job_type", "outcome", "error_type"),
    None,
    ("name",),
)


def up(migrator: Any, database: Any) -> None:
    for model, key in zip(migrator.models[: len(_KEYS)], _KEYS, strict=True):
        table = model._meta.table_name
        if key is None or any(
            index.unique and {*index.columns} == {*key} for index in database.get_indexes(table)
        ):
            continue
        quote = database.quote[0]
        columns = ", ".join(f"{quote}{column}{quote}" for column in key)
        # Through another select: MySQL does not delete from a table that it reads.
        database.execute_sql(
            f"DELETE FROM {quote}{table}{quote} WHERE id NOT IN (SELECT newest FROM "
            f"(SELECT max(id) AS newest FROM {quote}{table}{quote} GROUP BY {columns}) AS kept)"
        )
