"""A record for each run that ends."""

from __future__ import annotations

import json
import logging

import dramatiq
import pytest
from dramatiq.middleware import SkipMessage

from dramatiq_joblog import Exclusive, OutcomeFormatter


@pytest.fixture
def database_url(sqlite_database):
    """Return the URL of an empty SQLite database: nothing here depends on the database."""
    return sqlite_database


@pytest.fixture
def told():
    """Return what the logger received, as level and document."""
    lines = []
    handler = logging.Handler()
    handler.setFormatter(OutcomeFormatter())
    handler.emit = lambda record: lines.append(
        (record.levelname, json.loads(handler.format(record)))
    )
    logger = logging.getLogger("dramatiq_joblog.outcome")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_each_run_is_told(joblog, make_broker, worker, told):
    """Every end has its line: a retry is a warning, a death an error."""
    broker = make_broker("stub", "last", joblog=joblog, outcome_log=True)

    @dramatiq.actor(
        job_type="import", job_user="user_id", max_retries=1, min_backoff=1, max_backoff=1
    )
    def work(user_id):
        if user_id == 8:
            raise ValueError("row 7 is broken")
        if user_id == 9:
            raise SkipMessage("closed")

    for user_id in (7, 8, 9):
        work.send(user_id)
    with worker(broker, worker_threads=1):
        broker.join("default", fail_fast=False)

    by_user = {user: [t for t in told if t[1]["user_id"] == str(user)] for user in (7, 8, 9)}
    [(level, document)] = by_user[7]
    row = joblog.jobs.finished().get()
    assert "INFO" == level
    assert {"attempt": 1, "state": "finished", "jid": row.jid, "job_type": "import"} == {
        name: document[name] for name in ("attempt", "state", "jid", "job_type")
    }
    assert row.duration == document["duration"]
    assert "error_type" not in document
    assert [("WARNING", "retrying", 1, None), ("ERROR", "dead", 2, "retries_exhausted")] == [
        (level, d["state"], d["attempt"], d.get("dead_reason")) for level, d in by_user[8]
    ]
    assert "row 7 is broken" == by_user[8][0][1]["error_message"]
    # The wait before the first run belongs to that run.
    dead = joblog.jobs.dead().get()
    assert [dead.queue_time, None] == [d.get("queue_time") for _, d in by_user[8]]
    assert [("INFO", "actor: closed")] == [(level, d["skip_reason"]) for level, d in by_user[9]]


def test_a_job_whose_section_is_taken(joblog, make_broker, worker, told):
    """A job that was dropped before it ran is logged too."""
    broker = make_broker("stub", "last", joblog=joblog, outcome_log=True)
    work = dramatiq.actor(lambda: None, actor_name="work", exclusive=Exclusive("one"))
    with joblog.lock("one"):
        work.send()
        with worker(broker):
            broker.join("default")
    [(level, document)] = told
    assert ("INFO", "skipped") == (level, document["state"])
    assert "section 'one' is held by" in document["skip_reason"]


def test_it_is_off(joblog, make_broker, worker, told):
    """Nothing is logged by default."""
    broker = make_broker("stub", "last", joblog=joblog)
    dramatiq.actor(lambda: None, actor_name="work").send()
    with worker(broker):
        broker.join("default")
    assert [] == told
