"""Queries with a time limit, and actions that wait for the write lock."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from itertools import count

import pytest

from dramatiq_joblog import ConfigurationError, JobLog, QueryTimeout
from dramatiq_joblog.recording.events import Enqueued


def test_reading_in_an_event_loop(joblog):
    """A reading inside a running event loop is refused with its cure, which works."""

    def ask():
        with joblog.reading(timeout=5_000):
            return joblog.jobs.count()

    async def refused():
        with pytest.raises(ConfigurationError, match=r"await asyncio\.to_thread"):
            ask()

    async def two():
        return await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(2)))

    asyncio.run(refused())
    assert asyncio.run(two()) == [0, 0]
    assert ask() == 0
    assert joblog.database.is_closed()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_bound_ends_with_its_block(joblog):
    """A bound holds within its block alone, on its own or as a part of a transaction."""

    def bound():
        return joblog.database.execute_sql("SHOW statement_timeout").fetchone()[0]

    with joblog.database.connection_context():
        before = bound()
        with joblog.reading(timeout=777):
            assert bound() == "777ms"
            with joblog.reading(timeout=333):
                assert bound() == "333ms"
            assert bound() == "777ms"
        assert bound() == before
        with joblog.database.atomic():
            with joblog.reading(timeout=777):
                assert bound() == "777ms"
            assert bound() == before
    assert before not in {"777ms", "333ms"}


@pytest.mark.parametrize("database_url", ["mysql"], indirect=True)
def test_a_connection_has_its_own_bound_again(joblog):
    """After a block, a connection has the limit that it had before, or that of an outer block."""
    database = joblog.database
    with database.connection_context():
        version = database.execute_sql("SELECT version()").fetchone()[0]
    # MariaDB counts in seconds, MySQL in milliseconds.
    is_maria = "mariadb" in version.lower()
    name, second = ("max_statement_time", 1) if is_maria else ("max_execution_time", 1_000)

    def bound():
        return float(database.execute_sql(f"SELECT @@SESSION.{name}").fetchone()[0]) / second

    with database.connection_context():
        database.execute_sql(f"SET SESSION {name} = {12 * second}")
        with joblog.reading(timeout=777):
            assert bound() == 0.777
            with joblog.reading(timeout=333):
                assert bound() == 0.333
            assert bound() == 0.777
        assert bound() == 12


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_outer_bound_goes_on(joblog):
    """After a block within another, the limit of the outer one still holds."""
    endless = (
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000) "
        "SELECT count(*) FROM n"
    )

    def ask():
        with joblog.reading(timeout=300):
            with joblog.reading(timeout=10_000):
                assert joblog.jobs.count() == 0
            joblog.database.execute_sql(endless).fetchall()

    with pytest.raises(QueryTimeout):
        ask()

    # Without a block, a statement may last.
    long = endless.replace("100000000", "100000")
    assert joblog.database.execute_sql(long).fetchall() == [(100_000,)]
    joblog.release()


@pytest.fixture
def busy(sqlite_database):
    """Return a log whose file another connection writes to constantly, with gaps."""
    log = JobLog(sqlite_database)
    over = threading.Event()

    def write():
        numbers = count()
        with sqlite3.connect(sqlite_database.removeprefix("sqlite:///"), timeout=30) as connection:
            connection.isolation_level = None
            while not over.wait(0.001):
                connection.execute("BEGIN IMMEDIATE")
                for _ in range(20):
                    connection.execute(
                        "INSERT INTO joblog_mark (name, value) VALUES (?, 1)", (str(next(numbers)),)
                    )
                connection.execute("COMMIT")
        connection.close()

    thread = threading.Thread(target=write)
    thread.start()
    yield log
    over.set()
    thread.join()
    log.close()


def test_acts_beside_a_busy_writer(busy):
    """Actions wait for the write lock of a SQLite file, and never fail because of it."""
    jids = [f"j{n}" for n in range(60)]
    row = {"actor": "work", "queue": "default", "attempt": 1, "enqueued_at": 0}
    row |= {"created_at": 0, "updated_at": 0}
    for jid in jids:
        busy.core.writer.put(Enqueued(row | {"jid": jid, "state": "enqueued"}))

    for jid in jids:
        assert busy.cancel(jid, who="ada").dead_reason == "cancelled"
        assert busy.dismiss(jid, who="ada") == [jid]
        busy.record("note", who="ada", jid=jid)

    assert busy.actions.count() == 180
    assert busy.prune({"dead": 0})["dead"] == 60
