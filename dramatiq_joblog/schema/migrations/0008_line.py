"""Drop the index of jobs that wait for a section: another index replaces it."""

from __future__ import annotations

import re
from typing import Any

from dramatiq_joblog.database.dialects import dialect_of


def up(migrator: Any, database: Any) -> None:
    meta = migrator.models[0]._meta
    quote = database.quote[0]
    table = f"{quote}{meta.table_name}{quote}"
    of_table = "" if dialect_of(database).shares_index_names else f" ON {table}"
    # It has a number at its end if another table's index had the name.
    former = re.compile(rf"{re.escape(meta.table_name)}_waiting(_\d+)?")
    for index in database.get_indexes(meta.table_name, meta.schema):
        if former.fullmatch(index.name):
            database.execute_sql(f"DROP INDEX {quote}{index.name}{quote}{of_table}")
