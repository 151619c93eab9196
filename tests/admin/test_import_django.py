"""The import from django_dramatiq: users, job types, secrets, and missing tables."""

from __future__ import annotations

import json
import sqlite3

import dramatiq
import peewee
import pytest
from commands import ask
from dramatiq.brokers.stub import StubBroker

from dramatiq_joblog import ConfigurationError, Job, JobLog, JobLogMiddleware
from dramatiq_joblog.importing import import_django_dramatiq

SECRET = "hunter2-Zx9"


@pytest.fixture
def database_url(sqlite_url):
    """Return the URL of an empty SQLite database: the import only uses peewee."""
    return sqlite_url


@pytest.fixture
def tasks(sqlite_url):
    """Return a function that creates a task of django_dramatiq."""
    connection = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    connection.execute(
        "CREATE TABLE django_dramatiq_task (id TEXT, status TEXT, created_at TEXT,"
        " updated_at TEXT, message_data BLOB)"
    )

    def make(jid, actor, *args, status="done", options=None, **kwargs):
        message = {"queue_name": "default", "actor_name": actor, "args": args, "kwargs": kwargs}
        message |= {"options": options or {}, "message_id": jid, "message_timestamp": 7}
        when = "2026-01-01 10:00:00"
        row = (jid, status, when, when, json.dumps(message).encode())
        connection.execute("INSERT INTO django_dramatiq_task VALUES (?, ?, ?, ?, ?)", row)
        connection.commit()

    yield make
    connection.close()


def declare(log):
    """Declare actors with options of the log."""
    broker = StubBroker(middleware=[JobLogMiddleware(log)])

    @dramatiq.actor(broker=broker, job_type="import", job_user="user")
    def load(user, password="none"):
        pass

    @dramatiq.actor(broker=broker)
    def plain(owner):
        pass


def test_the_actors_options_are_used(joblog, tasks):
    """Job type and user come from declared actors, and secrets are recognised by their names."""
    declare(joblog)
    tasks("a", "load", 7, SECRET)
    tasks("b", "load", user="7")
    tasks("c", "load", "eve", options={"job_type": "other"})
    tasks("d", "plain", 7)
    tasks("e", "gone", 7)

    import_django_dramatiq(joblog)

    rows = {job.jid: job for job in joblog.jobs}
    assert [("import", 7), ("import", "7"), ("other", "eve"), (None, None), (None, None)] == [
        (rows[jid].job_type, rows[jid].user_id) for jid in "abcde"
    ]
    assert [7, "[redacted]"] == rows["a"].args
    assert "imported from django_dramatiq" == rows["b"].note
    assert "without their secrets" in rows["a"].withheld


def test_the_user_of_a_parameter(joblog, tasks):
    """A named parameter is the user of each task that has it, with or without a declared actor."""
    declare(joblog)
    tasks("a", "plain", 7)
    tasks("b", "plain", owner="eve")
    tasks("c", "gone", owner="ada", password=SECRET)
    tasks("d", "load", "other")

    import_django_dramatiq(joblog, user_from="owner")

    rows = {job.jid: job for job in joblog.jobs}
    assert [7, "eve", "ada", "other"] == [rows[jid].user_id for jid in "abcd"]
    assert SECRET not in repr(rows["c"].__data__)
    assert "without their secrets" in rows["c"].withheld


def test_a_failed_task_without_its_secrets(joblog, tasks):
    """A traceback is imported without the secrets in it."""
    text = f'Traceback\n  File "a.py", line 1, in a\n    x()\nValueError: password={SECRET!r}\n'
    tasks("a", "gone", status="failed", options={"traceback": text})

    import_django_dramatiq(joblog)

    job = joblog.get("a")
    assert ("ValueError", "password='[redacted]'") == (job.error_type, job.error_message)
    assert SECRET not in job.failures[0].traceback


def test_users_that_are_gone(sqlite_url, tasks):
    """In a model with a foreign key, a user that no longer exists is left out, with a note."""

    class User(peewee.Model):
        name = peewee.CharField()

    class OwnJob(Job):
        user = peewee.ForeignKeyField(User, null=True, backref="jobs")

    log = JobLog(sqlite_url, model=OwnJob)
    User.bind(log.database)
    log.database.create_tables([User])
    log.create_tables()
    ada = User.create(name="ada")
    declare(log)
    tasks("a", "load", ada.id)
    tasks("b", "load", 4711)

    import_django_dramatiq(log)

    assert ["a"] == [job.jid for job in ada.jobs]
    assert log.get("b").user is None
    assert "its user 4711 no longer exists" in log.get("b").note
    log.close()


def test_missing_tables_are_named(sqlite_url, tasks, tmp_path):
    """The error names the missing tables, and how to create them."""
    tasks("a", "load", 7)
    told = ask(sqlite_url, "import-django-dramatiq", code=3).stderr
    assert "the log's tables are not there; make them with" in told
    assert "migrate" in told

    log = JobLog(sqlite_url)
    log.create_tables()
    log.close()
    told = ask(sqlite_url, "import-django-dramatiq", "--table", "tasks", code=2).stderr
    assert "the table 'tasks' of Sqlite" in told
    assert "name the database with --from" in told
    with pytest.raises(ConfigurationError, match="cannot be read: no such table: tasks"):
        import_django_dramatiq(log, table="tasks")
    log.close()
    done = ask(sqlite_url, "import-django-dramatiq", "--user-from", "user").stdout
    assert "1 job written: 1 finished." in done
