"""No connection that the log opened outlives what needed it."""

from __future__ import annotations

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

MAKE = {
    "url": "sqlite:///{}".format,
    "database": SqliteDatabase,
    "pool": functools.partial(PooledSqliteDatabase, check_same_thread=False),
}


@pytest.fixture(params=MAKE)
def path(request, tmp_path):
    """Return where the database is; ``log`` is on it, made in each way in turn."""
    return tmp_path / "jobs.db"


@pytest.fixture
def log(request, path):
    """Return a log on a database that it made itself, or that was handed in."""
    log = JobLog(MAKE[request.node.callspec.params["path"]](str(path)))
    log.create_tables()
    yield log
    log.close()


def held(path):
    """Return how often this process has the database open."""
    return [file.path for file in psutil.Process().open_files()].count(str(path))


def test_threads_of_a_worker(log, path, make_broker, worker):
    """What jobs open, async ones too, is closed with the worker, and the rest with the log."""
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
    """What a thread asks of the log leaves nothing open when the thread ends."""
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


#: The child ends in the same way, and what the parent has open is none of its business.
FORK = "if child := os.fork(): os.waitpid(child, 0); assert joblog.jobs.count() == 1"


@pytest.mark.parametrize("ends", ["", "sys.exit(0)", FORK])
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
