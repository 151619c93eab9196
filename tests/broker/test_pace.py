"""How often keys with waiters are polled: often by the process with the next one, else seldom."""

from __future__ import annotations

import time

import dramatiq
import pytest

from dramatiq_joblog import Exclusive
from dramatiq_joblog.broker.pace import OFTEN, SELDOM, STILL, Pace


@pytest.fixture
def pace():
    """Return a pace with one key that has been polled, and is idle."""
    pace = Pace()
    assert ["key"] == pace.due(["key"])
    pace.asks_who_is_next("key", "mark")
    pace._keys["key"].moving_until = 0.0
    return pace


def planned(pace):
    """Return the seconds until the next poll."""
    pace.plan("key")
    return pace.next_due - time.monotonic()


def test_a_key_that_stands_still(pace):
    """It is polled often by the process with the next waiter, and otherwise seldom."""
    assert pace.asks_who_is_next("key", "mark")
    pace.is_near("key", False)
    assert planned(pace) > STILL / 1000
    assert not pace.asks_who_is_next("key", "mark")
    pace.is_near("key", True)
    assert OFTEN / 1000 < planned(pace) <= STILL / 1000


def test_a_key_that_moves(pace):
    """It is polled often for a while after a handover."""
    pace.is_near("key", False)
    assert not pace.asks_who_is_next("key", "another")
    assert planned(pace) <= OFTEN / 1000
    pace._keys["key"].moving_until = 0.0
    assert pace.asks_who_is_next("key", "another")


def test_whether_a_key_moves(pace):
    """A key that has just changed is active, and an idle one is not."""
    pace.asks_who_is_next("key", "held by one")
    assert pace.is_moving
    pace._keys["key"].moving_until = 0.0
    pace.asks_who_is_next("key", "held by one")
    assert not pace.is_moving


def test_a_key_that_others_have_freed(pace):
    """It is polled at once, and a key without waiters is forgotten."""
    pace.is_near("key", False)
    pace.plan("key")
    assert [] == pace.due(["key"])
    pace.want(["key", "other"])
    assert ["key"] == pace.due(["key"])
    assert [] == pace.due([])
    assert ["key"] == pace.due(["key"])


@pytest.mark.parametrize(("within", "most"), [(10, OFTEN), (100, 100), (10_000, SELDOM)])
def test_what_is_due(pace, within, most):
    """A key is polled again when its rate allows more, but never more often than the minimum."""
    pace.is_near("key", False)
    pace.plan("key", within)
    assert pytest.approx(most / 1000, abs=0.03) == pace.next_due - time.monotonic()


def test_a_wait_that_is_over_by_the_database(joblog, make_broker, worker, eventually, monkeypatch):
    """A job that has waited as long as it may is cancelled though its message is due much later.

    As on a host whose clock is behind that of the one which put the message back.
    """
    monkeypatch.setattr("dramatiq_joblog.broker.waiter_heartbeats.HEARTBEAT_EVERY", 200)
    broker = make_broker("stub", "last", joblog=joblog)
    exclusive = Exclusive("key", on_conflict="wait", wait_for=60_000, on_timeout="skip")
    work = dramatiq.actor(lambda: None, actor_name="work", exclusive=exclusive)
    with joblog.lock("key"), worker(broker):
        jid = work.send().message_id
        eventually(lambda: joblog.get(jid).state == "waiting")
        job = joblog.Job
        job.update(waiting_since=1).where(job.jid == jid).execute()
        joblog.release()
        eventually(lambda: joblog.get(jid).state == "skipped")
