"""What MySQL and MariaDB need to behave like the other databases."""

from __future__ import annotations

import threading
import time

import peewee
import pytest
from proxy import Proxy

from dramatiq_joblog import JobLog
from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.connection import Connection
from dramatiq_joblog.database.dialects.mysql import is_away
from dramatiq_joblog.errors import DatabaseAwayError
from dramatiq_joblog.locking.leases import Claim
from dramatiq_joblog.locking.needs import SECTION
from dramatiq_joblog.recording.events import Started

NOW = 1_800_000_000_000


@pytest.fixture
def log(mysql_database):
    """Return a log on MariaDB or MySQL."""
    made = JobLog(mysql_database)
    yield made
    made.close()


def row(jid, **columns):
    times = dict.fromkeys(("created_at", "updated_at", "started_at"), NOW)
    start = {"actor": "work", "queue": "default", "state": "started", "attempt": 1, "token": "t"}
    return {"jid": jid, **start, **times, **columns}


def test_case_is_told_apart(log):
    """Jobs and keys that differ only in case are different."""
    log.core.transitions.write([Started(row("a")), Started(row("A"))])
    assert {"a", "A"} == {job.jid for job in log.jobs}
    assert ["A"] == [job.jid for job in log.jobs.where(log.Job.jid == "A")]

    with log.lock("key") as lower, log.lock("KEY") as upper:
        assert (1, 1) == (lower.fence, upper.fence)


def test_long_texts(log):
    """A traceback of the maximum length is stored, and so is a batch of many of them."""
    text = "\N{GRINNING FACE}" * 100_000
    failures = [
        {"jid": f"j{n}", "token": "t", "attempt": 1, "outcome": "dead", "traceback": text}
        for n in range(40)
    ]
    log.core.transitions.kept.insert(failures)

    kept = log.Failure.select(peewee.fn.char_length(log.Failure.traceback)).tuples()
    assert [100_000] * 40 == [int(length) for (length,) in kept]


def test_a_row_that_comes_in_between(log):
    """A row that another process inserts after the query is updated according to the guard."""
    upsert = log.core.transitions._statements.runs
    ask, asked = upsert._ask, []

    def ask_and_be_late(rows):
        found = ask(rows)
        if not asked:
            other = threading.Thread(target=log.Job.insert(row("j", attempt=2, token="o")).execute)
            other.start()
            other.join()
        asked.append(found)
        return found

    upsert._ask = ask_and_be_late
    late = Started(row("j"), redelivered=True)
    # On the writer's own connection, which locks no gaps.
    answers = log.core.writer.call(lambda: log.core.transitions.write([late, Started(row("k"))]))

    assert [{}, {("j",): False}] == asked
    assert (2, "o") == (log.get("j").attempt, log.get("j").token)
    assert not answers["j"].granted
    assert "started" == log.get("k").state


def test_no_two_hold_a_key(log):
    """Threads that acquire a key concurrently, each on its own connection, never both hold it."""
    fences, most, holders, guard = [], [], [], threading.Lock()

    def work(n):
        for _ in range(5):
            with log.lock("key", limit=2, wait=60_000) as lease:
                with guard:
                    holders.append(n)
                    fences.append(lease.fence)
                    most.append(len(holders))
                with guard:
                    holders.remove(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 20 == len(set(fences))
    assert max(most) <= 2


def test_a_lock_that_another_holds(log):
    """A slot with a locked row is waited for, and then reported as busy."""
    take = Claim(SECTION, "key", "me", "t", 60_000)
    with log.database.atomic():
        log.core.locks.take(Claim(SECTION, "key", "other", "o", 60_000))
        errors = []

        def wait():
            connection = Connection(log.database)
            try:
                connection.ask(lambda: log.core.locks.take(take))
            except DatabaseAwayError as e:
                errors.append(str(e))
            finally:
                connection.close()

        began = time.monotonic()
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(30)
        assert 1 < time.monotonic() - began < 30
    [error] = errors
    # Of the lock, or of the statement that waits for it, whichever is over first.
    assert "1205" in error or "1969" in error


def test_what_the_writer_is_set_to(log):
    """The writer's connection is strict without gap locks; the user's connections are unchanged."""
    ask = "SELECT @@sql_mode, @@innodb_lock_wait_timeout"
    before = log.database.execute_sql(ask).fetchone()
    mode, timeout = log.core.writer.call(lambda: log.database.execute_sql(ask).fetchone())

    assert "STRICT_ALL_TABLES" in mode
    assert 3 == timeout
    assert before == log.database.execute_sql(ask).fetchone()
    assert before[1] != 3


@pytest.mark.parametrize("zone", ["+00:00", "-11:00", "+05:30"])
def test_the_clock_knows_no_time_zone(log, zone):
    """The database's time is the same whatever the session's time zone."""
    log.database.execute_sql(f"SET time_zone = '{zone}'")
    ((now,),) = log.database.execute_sql(f"SELECT {database_now(log.database).sql}").fetchall()

    assert abs(int(now) - time.time() * 1000) < 60_000


def test_a_migration_that_was_cut_off(log):
    """Indexes missing because a process was killed are created."""

    def indexes():
        return {index.name for index in log.database.get_indexes("joblog_job")}

    before = indexes()
    assert {"joblog_job_active", "joblog_job_state", "job_jid"} & before
    log.database.execute_sql("DROP INDEX joblog_job_active ON joblog_job")

    log.create_tables()

    assert before == indexes()


@pytest.mark.parametrize(
    ("number", "away"),
    [(1213, True), (1205, True), (2006, True), (2013, True), (1146, True), (1406, False)],
)
def test_away(number, away):
    """Deadlocks, timeouts and lost connections are temporary errors; a value too long is not."""
    assert away == is_away(number)


@pytest.mark.parametrize("away", ["refuse", "hang"])
def test_an_outage(mysql_database, log, eventually, away):
    """While the server refuses or does not respond, events are kept, and written later."""
    proxy = Proxy(mysql_database)
    far = JobLog(proxy.through(mysql_database))
    far.core.writer.write(Started(row("before")))
    getattr(proxy, away)()

    far.core.writer.write(Started(row("meanwhile")))
    assert far.core.writer.away
    assert ["before"] == [job.jid for job in log.jobs]
    proxy.resume()

    eventually(lambda: log.jobs.count() == 2, timeout=30)
    eventually(lambda: not far.core.writer.away)
    far.close()
    proxy.close()
