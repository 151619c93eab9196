"""Add the table of marks, such as deployments."""

from __future__ import annotations

from typing import Any

from peewee import BigAutoField, BigIntegerField, CharField, Model

from dramatiq_joblog.database.dialects import dialect_of

#: The position of its model among those of the log.
_PLACE = 9


def up(migrator: Any, database: Any) -> None:
    class Deploy(Model):
        id = BigAutoField()
        at = BigIntegerField()
        name = CharField(max_length=255)
        who = CharField(max_length=255)

        class Meta:
            legacy_table_names = False
            table_name = migrator.models[_PLACE]._meta.table_name

    Deploy.bind(database)
    dialect_of(database).fit(Deploy)
    Deploy.create_table(safe=True)
