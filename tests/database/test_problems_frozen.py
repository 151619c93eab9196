"""A frozen database: the problems report it within the time limit."""

from __future__ import annotations

import time

import pytest

from dramatiq_joblog import JobLog


@pytest.mark.full
def test_a_frozen_database(postgres):
    """Problems return within the time limit even with a frozen database; later all is well."""
    log = JobLog(postgres.url)
    log.create_tables()
    # A connection idles in the pool, as it does in an application that was asked before.
    log.problems()
    postgres.freeze()
    began = time.monotonic()

    found = log.problems(timeout=1_000)

    assert time.monotonic() - began < 20
    assert ("database", "connection") == (found[0].kind, found[0].subject)
    postgres.thaw()
    assert "database" not in {problem.kind.value for problem in log.problems()}
    log.close()
