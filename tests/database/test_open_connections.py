"""No connection that the log opened outlives what needed it."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading

import dramatiq
import psutil
import pytest
from dramatiq.middleware import AsyncIO, default_middleware
from peewee import SqliteDatabase
from playhouse.pool import PooledSqliteDatabase

from dramatiq_joblog import JobLog
from dramatiq_joblog.asking.threads import THREADS

MAKE = {
    "url": "sqlite:///{}".format,
    "database": SqliteDatabase,
    "pool": functools.partial(PooledSqliteDatabase, check_same_thread=False),
}


@pytest.fixture(params=MAKE)
def path(request, tmp_path):
    """Return the database's URL; ``log`` uses it, created in each way in turn."""
    return tmp_path / "jobs.db"


@pytest.fixture
def log(request, path):
    """Return a log on a URL, or on a passed-in database."""
    log = JobLog(MAKE[request.node.callspec.params["path"]](str(path)))
    log.create_tables()
    yield log
    log.close()


def held(path):
    """Return the number of this process's connections to the database."""
    return [file.path for file in psutil.Process().open_files()].count(str(path))


def test_threads_of_a_worker(log, path, make_broker, worker):
    """Connections opened by jobs, also async ones, close with the worker, the rest with the log."""
    broker = make_broker(
        "stub", joblog=log, middleware=[*(make() for make in default_middleware), AsyncIO()]
    )

    @dramatiq.actor(max_retries=0)
    def works(fails):
        assert log.jobs.count()
        if fails:
            raise ValueError

    @dramatiq.actor
    async def waits():
        assert log.jobs.count()

    for number in range(6):
        works.send(fails=number == 5)
        waits.send()
    with worker(broker):
        broker.join("default", fail_fast=False)
    assert log.jobs.count() == 12
    log.close()
    if isinstance(log.database, PooledSqliteDatabase):
        log.database.close_idle()

    assert held(path) == 0


def test_a_thread_that_forgets(tmp_path):
    """A thread's queries leave nothing open when the thread ends."""
    path = tmp_path / "jobs.db"
    log = JobLog(f"sqlite:///{path}")
    log.create_tables()
    threads = [threading.Thread(target=log.jobs.count) for _ in range(5)]
    for thread in threads:
        thread.start()
        thread.join()

    assert not log.database._in_use
    log.close()
    assert held(path) == 0


@pytest.mark.parametrize("coroutines", [0, 1, THREADS + 1])
def test_a_question_that_outlives_its_log(tmp_path, coroutines):
    """Queries during the closing of the log leave nothing open afterwards."""
    path = tmp_path / "jobs.db"
    log = JobLog(f"sqlite:///{path}")
    log.create_tables()
    asking, put, closed = threading.Event(), threading.Event(), threading.Event()
    if not coroutines:
        put.set()

    def ask():
        with log.reading(timeout=10_000):
            assert log.jobs.count() == 0
            asking.set()
            assert closed.wait(10)

    async def ask_all():
        asked = [asyncio.create_task(log.fetch(ask)) for _ in range(coroutines)]
        # Each is put once it has been begun.
        await asyncio.sleep(0)
        put.set()
        await asyncio.gather(*asked)

    run = (lambda: asyncio.run(ask_all())) if coroutines else ask
    thread = threading.Thread(target=run)
    thread.start()
    assert asking.wait(10)
    assert put.wait(10)
    log.close()
    closed.set()
    thread.join()

    assert held(path) == 0
    assert log.jobs.count() == 0
    # It is in use again, and keeps what it may need soon.
    assert held(path) == 1
    log.close()
    assert held(path) == 0


#: The child ends in the same way, and what the parent has open is none of its business.
FORK = "if child := os.fork(): os.waitpid(child, 0); assert joblog.jobs.count() == 1"


@pytest.mark.parametrize(
    "ends", ["", *(pytest.param(ends, marks=pytest.mark.full) for ends in ("sys.exit(0)", FORK))]
)
def test_a_program_that_forgets(tmp_path, ends):
    """A program that ends without closing its log leaves nothing open, and no warning."""
    program = f"""
import os, sys
import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq_joblog import JobLog, JobLogMiddleware

joblog = JobLog("sqlite:///jobs.db", spool="spool")
joblog.create_tables()
broker = StubBroker()
broker.add_middleware(JobLogMiddleware(joblog))
dramatiq.set_broker(broker)

@dramatiq.actor
def work():
    pass

work.send()
assert joblog.jobs.count() == 1
{ends}
"""
    # Python warns of a fork, and older versions of the host of backends that are not installed.
    warnings = ["error", "ignore::ImportWarning", "ignore::DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *(f"-W{warning}" for warning in warnings), "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr)
