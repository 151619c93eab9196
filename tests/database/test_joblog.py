"""Creating a log: accepted and refused databases, and queries."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import peewee
import pytest
from peewee import Database, DatabaseProxy, SqliteDatabase

from dramatiq_joblog import ConfigurationError, DatabaseAwayError, Job, JobLog, JobLogError


@pytest.mark.parametrize(
    ("database", "text"),
    [
        ("jobs.db", "'jobs.db' does not begin with a known database; use sqlite:///file.db"),
        ("", "does not begin with a known database"),
        ("oracle://ada@host/x", "'oracle://ada@host/x' does not begin with a known database"),
        ("oracle://ada:secret@host/x", "ada:[redacted]@host"),
        ("sqlite:///:memory:", "is in memory"),
        ("sqlite://", "is in memory"),
        ("postgresql://ada:secret@host:port/x", "cannot be used"),
        (7, "7 is not a database: give a URL, or a peewee Database"),
        (None, "None is not a database"),
        (DatabaseProxy(), "is not a database"),
        (Database("jobs"), "Database is not a database that the log knows: use peewee's"),
        (SqliteDatabase(None), "has no name yet: call its init() first"),
        (SqliteDatabase(":memory:"), "use a file, such as sqlite:///jobs.db"),
    ],
)
def test_a_database_that_cannot_be_used(database, text):
    """An unusable database is refused with one sentence, without its password."""
    with pytest.raises(ConfigurationError) as refused:
        JobLog(database)
    assert text in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_missing_driver(tmp_path):
    """Without a driver, the error names it and how to install it."""
    code = """
        import sys
        for name in ("psycopg", "psycopg2", "pymysql", "MySQLdb"):
            sys.modules[name] = None
        from dramatiq_joblog import JobLog, ConfigurationError
        for url in ("postgresql://ada:secret@host/x", "mysql://ada:secret@host/x"):
            try:
                JobLog(url)
            except ConfigurationError as e:
                print(e)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    postgres, mysql = done.stdout.splitlines()
    assert "driver psycopg: pip install 'dramatiq-joblog[postgres]'" in postgres
    assert "driver pymysql: pip install 'dramatiq-joblog[mysql]'" in mysql
    assert "secret" not in done.stdout


@pytest.mark.full
def test_psycopg2_alone(postgres_url):
    """Where only psycopg2 is installed, it is used."""
    code = """
        import sys
        sys.modules["psycopg"] = None
        from dramatiq_joblog import JobLog
        from dramatiq_joblog.recording.events import Ended, Started
        joblog = JobLog(sys.argv[1])
        joblog.create_tables()
        row = dict(jid="j", actor="work", queue="default", attempt=1, token="t",
                   enqueued_at=0, created_at=0, updated_at=0)
        started = Started(row | {"state": "started", "started_at": 1})
        assert joblog.core.writer.write(started).granted
        joblog.core.writer.write(Ended(row | {"state": "finished", "finished_at": 2}))
        print(joblog.get("j").state, type(joblog.database.connection()).__module__)
        joblog.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), postgres_url],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "finished psycopg2" in done.stdout


@pytest.mark.parametrize(
    "url",
    ["sqlite:////no/such/folder/jobs.db", "postgresql://ada:secret@127.0.0.1:1/x"],
)
def test_a_database_that_is_not_there(url):
    """Creating tables on an unavailable server is an error with the address and the cure."""
    joblog = JobLog(url)
    with pytest.raises(JobLogError, match="is the database up") as failed:
        joblog.create_tables()
    assert "secret" not in str(failed.value)
    assert ("/no/such/folder/jobs.db" if "sqlite" in url else "127.0.0.1") in str(failed.value)


def test_asking_what_is_not_there():
    """A query of an unavailable database raises that it is unavailable."""
    with pytest.raises(DatabaseAwayError) as failed:
        JobLog("sqlite:////no/such/folder/jobs.db").get("j")
    assert isinstance(failed.value.__cause__, peewee.OperationalError)


def test_making_a_log_binds_nothing(tmp_path):
    """The package's model is unchanged by the logs that use it."""
    logs = [JobLog(f"sqlite:///{tmp_path}/{n}.db") for n in range(2)]
    assert Job._meta.database is None
    assert [log.database for log in logs] == [log.Job._meta.database for log in logs]
    assert all(issubclass(log.Job, Job) for log in logs)
