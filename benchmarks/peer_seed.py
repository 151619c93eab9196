"""The obvious way on peewee: find the row or create it, then find it again and update it."""

from __future__ import annotations

import sys
import time

from dramatiq.middleware import Middleware
from peewee import BigAutoField, CharField, DatabaseProxy, DateTimeField, Model
from playhouse.db_url import connect

database = DatabaseProxy()


class Work(Model):
    """A job."""

    id = BigAutoField()
    jid = CharField(unique=True)
    actor = CharField()
    state = CharField(index=True)
    started_at = DateTimeField(null=True)
    finished_at = DateTimeField(null=True)

    class Meta:
        database = database


def set_up(url: str) -> None:
    """Connect to *url*; each thread keeps its connection."""
    if url.startswith("sqlite"):
        options = {"pragmas": {"journal_mode": "wal", "synchronous": "normal"}, "timeout": 30}
    else:
        options = {"prefer_psycopg3": True}
    database.initialize(connect(url, **options))


class FindAndUpdate(Middleware):
    """Logs the way that one writes first."""

    def __init__(self, url):
        set_up(url)

    def before_process_message(self, broker, message):
        database.connect(reuse_if_open=True)
        work, _ = Work.get_or_create(
            jid=message.message_id, defaults={"actor": message.actor_name, "state": "enqueued"}
        )
        work.state, work.started_at = "started", time.strftime("%Y-%m-%d %H:%M:%S")
        work.save()

    def after_process_message(self, broker, message, *, result=None, exception=None):
        work = Work.get(Work.jid == message.message_id)
        work.state = "finished" if exception is None else "failed"
        work.finished_at = time.strftime("%Y-%m-%d %H:%M:%S")
        work.save()


if __name__ == "__main__":
    set_up(sys.argv[2])
    if sys.argv[1] == "create":
        database.create_tables([Work])
    else:
        print(Work.select().where(Work.state == "finished").count(), Work.select().count())
