"""Users' ids come back as they were sent, and MySQL tells apart what differs by trailing spaces."""

from __future__ import annotations

from typing import Any

from peewee import BooleanField, MySQLDatabase

from dramatiq_joblog.database.mysql import tell_apart


def up(migrator: Any, database: Any) -> None:
    models = migrator.models
    table = models[0]._meta.table_name
    if "user_is_text" not in {column.name for column in database.get_columns(table)}:
        migrator.migrate(migrator.add_column(table, "user_is_text", BooleanField(null=True)))
    if isinstance(database, MySQLDatabase):
        for model in models:
            tell_apart(model)
