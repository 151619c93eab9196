"""Create the first tables.

This is a frozen copy of the models of that time: it does not change when they do.
"""

from __future__ import annotations

from typing import Any

from peewee import BigAutoField, BigIntegerField, CharField, IntegerField, Model, TextField

from dramatiq_joblog.database.dialects import dialect_of


def up(migrator: Any, database: Any) -> None:
    names = [model._meta.table_name for model in migrator.models]
    job, failure, worker, lock, line, total, action, mark = names[:8]

    class Job(Model):
        id = BigAutoField()
        jid = CharField(max_length=255, unique=True)
        actor = CharField(max_length=255)
        queue = CharField(max_length=255)
        job_type = CharField(max_length=255, null=True)
        state = CharField(max_length=16)
        attempt = IntegerField()
        max_retries = IntegerField(null=True)
        interruptions = IntegerField(null=True)
        eta = BigIntegerField(null=True)
        enqueued_at = BigIntegerField(null=True)
        started_at = BigIntegerField(null=True)
        finished_at = BigIntegerField(null=True)
        created_at = BigIntegerField()
        updated_at = BigIntegerField()
        duration = BigIntegerField(null=True)
        queue_time = BigIntegerField(null=True)
        error_type = CharField(max_length=255, null=True)
        error_message = TextField(null=True)
        dead_reason = CharField(max_length=32, null=True)
        skip_reason = TextField(null=True)
        worker = CharField(max_length=255, null=True)
        process = CharField(max_length=16, null=True)
        token = CharField(max_length=32, null=True)
        args = TextField(null=True)
        kwargs = TextField(null=True)
        section = CharField(max_length=255, null=True)
        waiting_since = BigIntegerField(null=True)
        meta = TextField(null=True)
        progress = TextField(null=True)
        parent_jid = CharField(max_length=255, null=True)
        root_jid = CharField(max_length=255, null=True)
        replay_of = CharField(max_length=255, null=True)
        replayed_by = CharField(max_length=255, null=True)
        options = TextField(null=True)
        withheld = CharField(max_length=255, null=True)
        sealed = TextField(null=True)
        trace_id = CharField(max_length=64, null=True)
        dismissed_at = BigIntegerField(null=True)
        note = TextField(null=True)

        class Meta:
            table_name = job

    class Failure(Model):
        id = BigAutoField()
        jid = CharField(max_length=255)
        token = CharField(max_length=32)
        attempt = IntegerField()
        outcome = CharField(max_length=16)
        started_at = BigIntegerField(null=True)
        finished_at = BigIntegerField(null=True)
        duration = BigIntegerField(null=True)
        error_type = CharField(max_length=255, null=True)
        error_message = TextField(null=True)
        traceback = TextField(null=True)
        worker = CharField(max_length=255, null=True)

        class Meta:
            table_name = failure
            indexes = ((("jid", "token"), True), (("finished_at",), False))

    class Worker(Model):
        id = BigAutoField()
        process = CharField(max_length=16, unique=True)
        host = CharField(max_length=255)
        pid = IntegerField()
        boot_id = CharField(max_length=64, null=True)
        threads = IntegerField()
        queues = TextField(null=True)
        timeout = IntegerField()
        started_at = BigIntegerField()
        heartbeat_at = BigIntegerField()
        skew = BigIntegerField(null=True)
        ended_at = BigIntegerField(null=True)
        swept_at = BigIntegerField(null=True)

        class Meta:
            table_name = worker

    class Lock(Model):
        id = BigAutoField()
        kind = CharField(max_length=8)
        key = CharField(max_length=255)
        slot = IntegerField()
        owner = CharField(max_length=255, null=True)
        token = CharField(max_length=32, null=True)
        process = CharField(max_length=16, null=True)
        fence = BigIntegerField()
        last_fence = BigIntegerField()
        ttl = BigIntegerField()
        acquired_at = BigIntegerField(null=True)
        expires_at = BigIntegerField(null=True)

        class Meta:
            table_name = lock
            indexes = ((("kind", "key", "slot"), True),)

    class Line(Model):
        id = BigAutoField()
        jid = CharField(max_length=255)
        token = CharField(max_length=32)
        attempt = IntegerField()
        number = IntegerField()
        time = BigIntegerField()
        level = CharField(max_length=16)
        logger = CharField(max_length=255)
        text = TextField()

        class Meta:
            table_name = line
            indexes = ((("jid", "token", "number"), True),)

    class Total(Model):
        id = BigAutoField()
        at = BigIntegerField()
        span = BigIntegerField()
        actor = CharField(max_length=255)
        job_type = CharField(max_length=255)
        outcome = CharField(max_length=16)
        error_type = CharField(max_length=200)
        gone = IntegerField(default=0)
        count = BigIntegerField()
        durations = TextField(null=True)
        queue_times = TextField(null=True)

        class Meta:
            table_name = total
            indexes = (
                (("span", "at", "gone", "actor", "job_type", "outcome", "error_type"), True),
            )

    class Action(Model):
        id = BigAutoField()
        at = BigIntegerField()
        who = CharField(max_length=255)
        what = CharField(max_length=32)
        jid = CharField(max_length=255, null=True)
        key = CharField(max_length=255, null=True)
        detail = TextField(null=True)

        class Meta:
            table_name = action
            indexes = ((("jid", "id"), False),)

    class Mark(Model):
        id = BigAutoField()
        name = CharField(max_length=64, unique=True)
        value = BigIntegerField()

        class Meta:
            table_name = mark

    # The user column is added with the model's own columns, because it may be a foreign key.
    tables = [Job, Failure, Worker, Lock, Line, Total, Action, Mark]
    with database.bind_ctx(tables):
        for table in tables:
            dialect_of(database).fit(table)
        database.create_tables(tables)
