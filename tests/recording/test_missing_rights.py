"""Without tables or privileges, the log reports it once, and then once a minute, with the cure."""

from __future__ import annotations

import logging
import threading
from urllib.parse import urlsplit

import dramatiq
import psycopg
import pytest

from dramatiq_joblog import JobLog
from dramatiq_joblog.database import limited_log
from dramatiq_joblog.database.limited_log import LimitedLog
from dramatiq_joblog.recording.outage import Outage


@pytest.fixture
def entries(caplog):
    """Return a function that returns the package's log records of a level or above."""

    def found(level=logging.WARNING):
        return [
            record.getMessage()
            for record in caplog.records
            if record.name.startswith("dramatiq_joblog") and record.levelno >= level
        ]

    return found


@pytest.fixture
def looked(monkeypatch):
    """Return an event factory: an event is set after a number of further probes."""
    say = Outage._say_still

    def after(times):
        done, count = threading.Event(), iter(range(1, times + 1))

        def counting(self, error):
            say(self, error)
            if next(count, times) == times:
                done.set()

        monkeypatch.setattr(Outage, "_say_still", counting)
        return done

    return after


def test_no_tables_yet(sqlite_url, make_broker, worker, entries, looked, eventually):
    """Jobs run before the tables exist; that is reported once, and the rows are written later."""
    joblog = JobLog(sqlite_url)
    broker = make_broker(joblog=joblog)
    dramatiq.actor(lambda: None, actor_name="work", broker=broker)
    often = looked(2)
    with worker(broker, worker_threads=1):
        jids = [broker.actors["work"].send().message_id for _ in range(3)]
        broker.join("default")
        assert often.wait(20)
        said = entries()
        joblog.create_tables()
        eventually(lambda: joblog.jobs.finished().count() == 3)

    assert 1 == len(said), said
    assert "Call create_tables() on the log." in said[0]
    assert set(jids) == {job.jid for job in joblog.jobs}
    joblog.close()


RIGHTS = {
    "insert failures": "INSERT ON joblog_failure",
    "insert jobs": "INSERT ON joblog_job",
    "update jobs": "UPDATE ON joblog_job",
    "use a sequence": "ALL ON SEQUENCE joblog_failure_id_seq",
}


@pytest.mark.parametrize(
    "right",
    [
        "insert failures",
        pytest.param("insert jobs", marks=pytest.mark.full),
        pytest.param("update jobs", marks=pytest.mark.full),
        pytest.param("use a sequence", marks=pytest.mark.full),
    ],
)
def test_a_right_is_missing(postgres_url, make_broker, worker, entries, looked, eventually, right):
    """Events that may not be written are kept, and privileges are checked before a retry."""
    owner = JobLog(postgres_url)
    owner.create_tables()
    missing = RIGHTS[right]
    parts = urlsplit(postgres_url)
    user = f"joblog_{parts.path.strip('/')}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'secret'")
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {user}")
        connection.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {user}")
        connection.execute(f"REVOKE {missing} FROM {user}")
    address = parts.netloc.rpartition("@")[2]
    joblog = JobLog(parts._replace(netloc=f"{user}:secret@{address}").geturl())
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(max_retries=0, throws=ValueError)
    def fails():
        raise ValueError("of its own")

    often = looked(2)
    with worker(broker, worker_threads=1):
        jid = fails.send().message_id
        broker.join("default", fail_fast=False)
        assert often.wait(20)
        said = [text for text in entries() if "job log" in text]
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"GRANT {missing} TO {user}")
        eventually(lambda: owner.jobs.dead().count() == 1)

    assert 1 == len(said), said
    assert "permission denied" in said[0]
    assert "grant SELECT, INSERT, UPDATE and DELETE" in said[0]
    assert [jid] == [job.jid for job in owner.jobs.dead()]
    joblog.close()
    owner.close()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {user}")
        connection.execute(f"DROP ROLE {user}")


def test_the_rehearsal_changes_nothing(joblog, job_factory):
    """The check whether events can be written changes no row."""
    job_factory(jid="a")
    before = joblog.get("a").as_dict()

    joblog.core.transitions.rehearse()

    assert [before] == [job.as_dict() for job in joblog.jobs]
    assert 0 == joblog.Failure.select().count() == joblog.Lock.select().count()
    joblog.release()


def test_entries_are_limited(caplog, monkeypatch):
    """There is at most one record per minute for each cause, with the number left out."""
    now = 100.0
    monkeypatch.setattr(limited_log.time, "monotonic", lambda: now)
    log = LimitedLog(logging.getLogger("of.mine"))

    assert log.log(logging.WARNING, "a", "first %s", 1)
    assert not log.log(logging.WARNING, "a", "second")
    assert log.log(logging.WARNING, "b", "of another")
    now += 59
    assert not log.log(logging.WARNING, "a", "third")
    now += 2
    assert log.log(logging.WARNING, "a", "fourth")

    assert [
        "first 1",
        "of another",
        "fourth (2 more like it were not logged since the last.)",
    ] == [record.getMessage() for record in caplog.records]
