"""How long a retried job holds its section."""

from __future__ import annotations

import threading

import dramatiq
import pytest

from dramatiq_joblog import ConfigurationError, Exclusive
from dramatiq_joblog.broker.options import SECTION


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    return make_broker("stub", "last", joblog=joblog)


@pytest.mark.parametrize("hold", ["job", "run"])
def test_between_two_runs(joblog, broker, worker, eventually, hold):
    """With ``hold="run"``, others may run between two runs of a job, with ``"job"`` not."""

    @dramatiq.actor(
        exclusive=Exclusive("key", hold=hold), min_backoff=1_000, max_backoff=1_100, max_retries=1
    )
    def fails(name):
        if name == "fails":
            raise ValueError

    with worker(broker):
        first = fails.send("fails")
        eventually(lambda: joblog.get(first.message_id).state == "retrying")
        held = [lock.owner for lock in joblog.locks]
        second = fails.send("other")
        eventually(lambda: joblog.get(second.message_id).state in ("finished", "skipped"))
        eventually(lambda: joblog.get(first.message_id).state == "dead")

    assert ([first.message_id] if hold == "job" else []) == held
    assert ("skipped" if hold == "job" else "finished") == joblog.get(second.message_id).state
    assert 0 == joblog.locks.count()


def test_a_retry_waits_for_its_section(joblog, broker, worker, eventually):
    """A retry that finds its section held by another waits, whatever its policy."""
    inside, leave = threading.Event(), threading.Event()

    @dramatiq.actor(exclusive=Exclusive("key", hold="run"), min_backoff=50, max_backoff=60)
    def fails():
        if not inside.is_set():
            raise ValueError

    # The runs before it are short, but it may come in one of them.
    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait"))
    def stays():
        inside.set()
        leave.wait(30)

    with worker(broker):
        first = fails.send()
        eventually(lambda: joblog.get(first.message_id).state == "retrying")
        stays.send()
        assert inside.wait(10)
        eventually(lambda: joblog.get(first.message_id).state == "waiting")
        leave.set()
        eventually(lambda: joblog.get(first.message_id).state == "finished")


def test_a_message_of_before(joblog, broker, worker, eventually):
    """A message sent by a version without ``hold`` keeps its section between its runs."""

    @dramatiq.actor(max_retries=1, min_backoff=1_000, max_backoff=1_100)
    def fails():
        raise ValueError

    message = fails.message()
    message.options[SECTION] = {
        "key": "key",
        "limit": 1,
        "on_conflict": "skip",
        "wait_for": None,
        "on_timeout": "dead",
        "ttl": 60_000,
        "jid": message.message_id,
    }
    with worker(broker):
        broker.enqueue(message)
        eventually(lambda: joblog.get(message.message_id).state == "retrying")
        assert [message.message_id] == [lock.owner for lock in joblog.locks]
        eventually(lambda: joblog.get(message.message_id).state == "dead")
    assert 0 == joblog.locks.count()


def test_what_is_not_known():
    """Other values are refused."""
    with pytest.raises(ConfigurationError, match="hold='ever' is not known"):
        Exclusive("key", hold="ever")
