"""Add the table of saved searches."""

from __future__ import annotations

from typing import Any

from peewee import BigAutoField, BigIntegerField, CharField, Model, TextField

from dramatiq_joblog.database.dialects import dialect_of

#: The position of its model among those of the log.
_PLACE = 10


def up(migrator: Any, database: Any) -> None:
    class SavedSearch(Model):
        id = BigAutoField()
        name = CharField(max_length=80, unique=True)
        words = TextField()
        who = CharField(max_length=255)
        at = BigIntegerField()

        class Meta:
            legacy_table_names = False
            table_name = migrator.models[_PLACE]._meta.table_name

    SavedSearch.bind(database)
    dialect_of(database).fit(SavedSearch)
    SavedSearch.create_table(safe=True)
