"""A database that is frozen: what is wrong is said within the time, and that is what it is."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil
import pytest
import servers

from dramatiq_joblog import JobLog


@pytest.fixture
def postgres():
    """Return a PostgreSQL of the test's own, which it may freeze."""
    try:
        server = servers.start_postgres()
    except servers.ServerMissingError as e:
        pytest.skip(str(e))
    yield server
    freeze(server, signal.SIGCONT)
    server.stop()


def freeze(server, number):
    """Send a signal to a server and all its processes."""
    main = psutil.Process(server.process.pid)
    for process in [*main.children(recursive=True), main]:
        with contextlib.suppress(ProcessLookupError):  # one that has ended since it was listed
            os.kill(process.pid, number)


def test_a_frozen_database(postgres):
    """Problems are known within the time, also while the database is frozen; then all is well."""
    log = JobLog(postgres.url)
    log.create_tables()
    # A connection idles in the pool, as it does in an application that was asked before.
    log.problems()
    freeze(postgres, signal.SIGSTOP)
    began = time.monotonic()

    found = log.problems(timeout=1_000)

    assert time.monotonic() - began < 20
    assert ("database", "connection") == (found[0].kind, found[0].subject)
    freeze(postgres, signal.SIGCONT)
    assert "database" not in {problem.kind.value for problem in log.problems()}
    log.close()
