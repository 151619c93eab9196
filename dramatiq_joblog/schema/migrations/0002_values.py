"""Add the column `user_is_text`; on MySQL, compare short texts with their trailing spaces."""

from __future__ import annotations

from typing import Any

from peewee import BooleanField

from dramatiq_joblog.database.dialects import dialect_of


def up(migrator: Any, database: Any) -> None:
    models = migrator.models
    table = models[0]._meta.table_name
    if "user_is_text" not in {column.name for column in database.get_columns(table)}:
        migrator.migrate(migrator.add_column(table, "user_is_text", BooleanField(null=True)))
    # Later tables are created that way.
    for model in models[:8]:
        dialect_of(database).tell_apart(model)
