"""Add the table with the state of alerts."""

from __future__ import annotations

from typing import Any

from peewee import (
    BigAutoField,
    BigIntegerField,
    BooleanField,
    CharField,
    IntegerField,
    Model,
    TextField,
)

from dramatiq_joblog.database.dialects import dialect_of

#: The position of its model among those of the log.
_PLACE = 8


def up(migrator: Any, database: Any) -> None:
    class AlertState(Model):
        id = BigAutoField()
        key = CharField(max_length=255, unique=True)
        name = CharField(max_length=255)
        is_open = BooleanField()
        since = BigIntegerField(null=True)
        count = BigIntegerField()
        summary = TextField(null=True)
        jids = TextField(null=True)
        search = TextField(null=True)
        expects = CharField(max_length=255, null=True)
        subjects = TextField(null=True)
        pending = CharField(max_length=16, null=True)
        tries = IntegerField()
        next_try_at = BigIntegerField(null=True)
        error = TextField(null=True)
        sent = CharField(max_length=16, null=True)
        sent_at = BigIntegerField(null=True)
        counted_since = BigIntegerField(null=True)
        notices = IntegerField()
        first_seen_at = BigIntegerField()
        seen_at = BigIntegerField()

        class Meta:
            legacy_table_names = False
            table_name = migrator.models[_PLACE]._meta.table_name

    AlertState.bind(database)
    dialect_of(database).fit(AlertState)
    AlertState.create_table(safe=True)
