"""Add the table of muted problems."""

from __future__ import annotations

from typing import Any

from peewee import BigAutoField, BigIntegerField, CharField, Model, TextField

from dramatiq_joblog.database.dialects import dialect_of

#: The position of its model among those of the log.
_PLACE = 11


def up(migrator: Any, database: Any) -> None:
    class Mute(Model):
        id = BigAutoField()
        kind = CharField(max_length=32)
        subject = CharField(max_length=255)
        title = TextField()
        count = BigIntegerField()
        at = BigIntegerField()
        until = BigIntegerField()
        who = CharField(max_length=255)
        reason = TextField()

        class Meta:
            legacy_table_names = False
            table_name = migrator.models[_PLACE]._meta.table_name
            indexes = ((("kind", "subject"), True),)

    Mute.bind(database)
    dialect_of(database).fit(Mute)
    Mute.create_table(safe=True)
