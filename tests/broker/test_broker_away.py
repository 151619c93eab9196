"""The broker is unavailable while jobs run: no wrong state, and nothing twice."""

from __future__ import annotations

import threading

import brokers
import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, Retries
from proxy import Proxy

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware, current_job


class Acknowledgements(Middleware):
    """Counts the calls of ``before_ack``."""

    def __init__(self):
        self.asked = 0

    def before_ack(self, broker, message):
        self.asked += not message.queue_name.endswith(".DQ")


@pytest.fixture
def joblog(sqlite_database):
    """Return a log; the database does not matter here."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


@pytest.fixture
def proxy(redis_url):
    """Return a proxy before Redis."""
    proxy = Proxy(redis_url)
    yield proxy
    proxy.close()


@pytest.fixture
def broker(request, joblog, proxy, redis_url):
    """Return a broker whose Redis is behind the proxy; ``acks`` counts its acknowledgements."""
    how = getattr(request, "param", "auto")
    broker = RedisBroker(
        url=proxy.through(redis_url),
        namespace="away",
        middleware=[
            Retries(max_retries=2, min_backoff=10, max_backoff=20),
            JobLogMiddleware(joblog, acks=how),
            Acknowledgements(),
        ],
    )
    broker.acks = broker.middleware[-1]
    dramatiq.set_broker(broker)
    yield broker
    broker.close()
    broker.client.connection_pool.disconnect()


def rows(joblog, jid):
    job = joblog.get(jid)
    return str(job.state), job.attempt, job.dead_reason, [str(f.outcome) for f in job.failures]


# Consumers that lose their connection say so.
@pytest.mark.expects_critical
def test_away_when_the_job_ends(joblog, broker, proxy, worker, eventually, critical_guard):
    """A job that ends without a broker has one outcome, however often it is reported."""
    gone, goes_on = threading.Event(), threading.Event()

    @dramatiq.actor
    def work():
        proxy.refuse()
        gone.set()
        goes_on.wait(30)

    with worker(broker):
        sent = work.send()
        gone.wait(30)
        goes_on.set()
        eventually(lambda: joblog.get(sent.message_id).state == "finished")
        told = joblog.Job.select().dicts().get()
        eventually(lambda: broker.acks.asked > 0)
        # The host's consumers say that they lost their connection.
        eventually(lambda: critical_guard.texts, timeout=60)
        proxy.resume()
        eventually(lambda: broker.client.hlen("away:default.msgs") == 0, timeout=30)

    assert ("finished", 1, None, []) == rows(joblog, sent.message_id)
    assert told == joblog.Job.select().dicts().get()


@pytest.mark.expects_critical
def test_a_retry_that_cannot_be_enqueued(joblog, broker, proxy, worker, eventually):
    """A job whose retry cannot be enqueued is lost to the broker: it is dead, not retrying."""
    gone, goes_on = threading.Event(), threading.Event()

    @dramatiq.actor
    def breaks():
        proxy.refuse()
        gone.set()
        goes_on.wait(30)
        raise ValueError("row 7 is broken")

    with worker(broker):
        sent = breaks.send()
        gone.wait(30)
        goes_on.set()
        eventually(lambda: joblog.get(sent.message_id).state == "dead", timeout=30)
        proxy.resume()
        eventually(lambda: broker.client.hlen("away:default.msgs") == 0, timeout=30)

    assert ("dead", 1, "retry_lost", ["dead"]) == rows(joblog, sent.message_id)


@pytest.mark.expects_critical
def test_a_refused_retry_whose_message_comes_again(
    joblog, broker, proxy, redis_url, worker, eventually
):
    """A job whose retry was refused runs again if its message was not acknowledged either."""
    gone, goes_on, runs = threading.Event(), threading.Event(), []

    @dramatiq.actor(max_interruptions=1)
    def breaks():
        runs.append(current_job().attempt)
        if len(runs) == 1:
            proxy.refuse()
            gone.set()
            goes_on.wait(30)
        if len(runs) < 3:
            raise ValueError("row 7 is broken")

    other = brokers.connect(
        redis_url,
        namespace="away",
        middleware=[Retries(min_backoff=10, max_backoff=20), JobLogMiddleware(joblog)],
        impatient=True,
    )
    other.declare_actor(breaks)
    with worker(broker):
        jid = breaks.send().message_id
        gone.wait(30)
        goes_on.set()
        eventually(lambda: joblog.get(jid).state == "dead", timeout=30)
        assert ("dead", 1, "retry_lost", ["dead"]) == rows(joblog, jid)
        # For Redis, the first worker is gone: it sends no heartbeats.
        with worker(other):
            eventually(lambda: joblog.get(jid).state == "finished", timeout=30)
        proxy.resume()
        eventually(lambda: broker.client.hlen("away:default.msgs") == 0, timeout=30)
    brokers.disconnect(other)

    assert [1, 1, 2] == runs
    assert ("finished", 2, None, ["dead", "retried"]) == rows(joblog, jid)


# With handed acknowledgements it stays with its consumer, and is not put back.
@pytest.mark.parametrize("broker", ["plain"], indirect=True)
@pytest.mark.expects_critical
def test_a_waiter_that_cannot_be_put_back(
    joblog, broker, proxy, worker, eventually, caplog, critical_guard
):
    """A job that finds its section held while the broker is unavailable is requeued later."""
    held, goes_on = threading.Event(), threading.Event()

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait"))
    def guarded(first):
        if first:
            held.set()
            goes_on.wait(60)

    class Away(Middleware):
        """Makes the broker unavailable at the first requeue."""

        def before_enqueue(self, broker, message, delay):
            if delay is not None and not goes_on.is_set():
                proxy.refuse()

    with worker(broker):
        first = guarded.send(True)
        held.wait(30)
        broker.add_middleware(Away())
        second = guarded.send(False)
        eventually(lambda: "cannot be put back yet" in caplog.text, timeout=30)
        eventually(lambda: critical_guard.texts, timeout=60)
        goes_on.set()
        proxy.resume()
        eventually(lambda: joblog.get(second.message_id).state == "finished", timeout=60)

    assert ("finished", 1, None, ["waited"]) == rows(joblog, second.message_id)
    assert ("finished", 1, None, []) == rows(joblog, first.message_id)
