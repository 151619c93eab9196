"""Prepare the tables of each log for unique indexes that are named after the table.

peewee named them after the class, and skipped one whose name another table had.  Rows that were
duplicated meanwhile are deleted, because they would prevent the index.  The indexes themselves are
created after all migrations.
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
        # Through a nested select: MySQL does not delete from a table that it reads.
        database.execute_sql(
            f"DELETE FROM {quote}{table}{quote} WHERE id NOT IN (SELECT newest FROM "
            f"(SELECT max(id) AS newest FROM {quote}{table}{quote} GROUP BY {columns}) AS kept)"
        )
