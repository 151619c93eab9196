"""Logs with rules of their own."""

from __future__ import annotations

import dramatiq
import pytest

from dramatiq_joblog import JobLog


@pytest.fixture
def make_log(database_url, joblog):
    """Return a function that makes another log on the database, as another process has it."""
    made = []

    def make(*alerts, **options):
        log = JobLog(database_url, alerts=alerts, **{"alerts_every": 1_000} | options)
        made.append(log)
        return log

    yield make
    for log in made:
        log.close()


@pytest.fixture
def let_die(make_broker, worker):
    """Return a function that lets jobs of a log die, and returns their jids."""

    def die(log, number):
        broker = make_broker("stub", "last", joblog=log)
        broker.fail_fast_default = False

        @dramatiq.actor(max_retries=0)
        def dies():
            raise ValueError

        with worker(broker):
            jids = [dies.send().message_id for _ in range(number)]
            log.wait_all(jids, timeout=20_000)
        return jids

    return die
