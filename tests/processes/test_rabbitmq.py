"""Behaviour of RabbitMQ only: a message is requeued as soon as its connection drops."""

from __future__ import annotations

import gc
import threading

import brokers
import dramatiq
import pytest
from dramatiq.middleware import Middleware
from proxy import Proxy

from dramatiq_joblog import JobLogMiddleware


@pytest.fixture
def proxy(rabbit_url):
    """Return a proxy before RabbitMQ."""
    found = Proxy(rabbit_url)
    yield found
    found.close()


@pytest.fixture
def broker(rabbit_url, proxy, joblog):
    """Return a broker that reaches RabbitMQ through the proxy."""
    made = brokers.connect(proxy.through(rabbit_url), namespace="")
    made.add_middleware(JobLogMiddleware(joblog))
    dramatiq.set_broker(made)
    yield made
    brokers.disconnect(made)


class Ended(Middleware):
    """Counts the runs with a committed outcome, because it comes after the log."""

    runs = 0

    def before_ack(self, broker, message):
        if message.queue_name == "default":
            self.runs += 1

    before_nack = before_ack


class Runs:
    """The runs of one job, each of which continues until it is released."""

    def __init__(self, *, first_breaks) -> None:
        self.first_breaks = first_breaks
        self.began = []
        self.may_end = [threading.Event() for _ in range(3)]

    def __call__(self):
        number = len(self.began)
        self.began.append(number)
        assert self.may_end[number].wait(60)
        if number == 0 and self.first_breaks:
            raise ValueError("row 7 is broken")


# The host logs the lost connection itself as CRITICAL.
@pytest.mark.expects_critical
# pika leaves two sockets of its own open if a connection drops while it is made.
@pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("database_url", "first_breaks"),
    [("sqlite", False), ("postgres", True)],
    indirect=["database_url"],
)
def test_a_connection_that_drops(
    joblog, broker, proxy, rabbit_url, worker, eventually, first_breaks
):
    """Of two concurrent runs of one attempt, only the newer one ends the job."""
    ended = Ended()
    broker.add_middleware(ended)
    runs = Runs(first_breaks=first_breaks)
    actor = dramatiq.actor(runs, actor_name="work", max_retries=0)

    with worker(broker):
        message = actor.send()
        jid = message.message_id
        eventually(lambda: len(runs.began) == 1)
        first = joblog.get(jid).token
        proxy.cut()
        eventually(lambda: len(runs.began) == 2, timeout=30)
        second = joblog.get(jid).token
        assert first != second
        [interrupted] = joblog.get(jid).failures
        assert ("interrupted", first) == (interrupted.outcome, interrupted.token)

        runs.may_end[0].set()
        eventually(lambda: ended.runs == 1)
        assert "started" == joblog.get(jid).state
        runs.may_end[1].set()
        eventually(lambda: joblog.get(jid).state == "finished")

    job = joblog.get(jid)
    # A run that was considered cut off and then fails by itself is kept as that.
    outcome, interruptions = ("dead", None) if first_breaks else ("interrupted", 1)
    assert [(first, outcome)] == [(f.token, str(f.outcome)) for f in job.failures]
    assert (second, 1, interruptions) == (job.token, job.attempt, job.interruptions)
    assert 2 == len(runs.began)
    # The broker's own connection was cut as well.
    other = brokers.connect(rabbit_url, namespace="")
    assert not brokers.holds(other, message)
    brokers.disconnect(other)
    # These sockets are reported here, and not in another test.
    gc.collect()
