"""On Redis, waiting jobs stay in the process that fetched them, without broker traffic."""

from __future__ import annotations

import threading

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import default_middleware
from proxy import Proxy

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def broker(joblog, make_broker):
    """Return a Redis broker with the log."""
    return make_broker("redis", joblog=joblog)


def declare(broker, **options):
    """Declare an actor that waits for ``key``; return it and the list of its runs."""
    ran = []

    @dramatiq.actor(broker=broker, exclusive=Exclusive("key", on_conflict="wait"), **options)
    def guarded(n):
        ran.append(n)

    return guarded, ran


def count(broker, queue, what="hlen"):
    """Return how many messages Redis has in a queue, or with ``llen`` how many can be fetched."""
    name = f"{broker.namespace}:{queue}"
    return getattr(broker.client, what)(name + (".msgs" if what == "hlen" else ""))


def test_nothing_is_enqueued(joblog, broker, worker, eventually):
    """A waiting job is neither requeued nor acknowledged; it runs once its section is free."""
    guarded, ran = declare(broker)
    with worker(broker):
        with joblog.lock("key"):
            for n in range(3):
                guarded.send(n)
                eventually(lambda n=n: joblog.jobs.waiting().count() == n + 1)
            assert (3, 0) == (count(broker, "default"), count(broker, "default.DQ"))
        eventually(lambda: joblog.jobs.finished().count() == 3)
        assert [0, 1, 2] == ran
        broker.join("default", timeout=20_000)


def test_a_worker_that_stops(joblog, broker, worker, eventually):
    """A worker that stops returns its waiting messages to the broker, and another one runs them."""
    guarded, ran = declare(broker)
    with joblog.lock("key"):
        with worker(broker):
            message = guarded.send(0)
            eventually(lambda: joblog.get(message.message_id).state == "waiting")
        assert 1 == count(broker, "default", "llen")
    with worker(broker):
        eventually(lambda: joblog.get(message.message_id).state == "finished")
    assert [0] == ran
    assert ["waited"] == [str(f.outcome) for f in joblog.get(message.message_id).failures]


@pytest.mark.expects_critical
def test_a_lost_connection(joblog, redis_url, worker, eventually, critical_guard):
    """A job that waits while its worker loses the connection to Redis still runs."""
    proxy = Proxy(redis_url)
    middleware = [*(m() for m in default_middleware), JobLogMiddleware(joblog)]
    broker = RedisBroker(url=proxy.through(redis_url), namespace="lost", middleware=middleware)
    guarded, _ = declare(broker)
    with worker(broker):
        with joblog.lock("key"):
            message = guarded.send(0)
            eventually(lambda: joblog.get(message.message_id).state == "waiting")
            proxy.refuse()
            eventually(lambda: len(critical_guard.texts) >= 2, timeout=60)
            proxy.resume()
        eventually(lambda: joblog.get(message.message_id).state == "finished", timeout=30)
        eventually(lambda: count(broker, "default") == 0)
    broker.close()
    broker.client.connection_pool.disconnect()
    proxy.close()


def test_threads_that_are_busy(joblog, broker, worker, eventually, redis_url, sqlite_database):
    """A job whose turn comes while all threads here are busy runs in another process."""
    guarded, ran = declare(broker)
    goes_on, at_work = threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker)
    def stay():
        at_work.set()
        assert goes_on.wait(30)

    other_log = JobLog(sqlite_database)
    middleware = [*(m() for m in default_middleware), JobLogMiddleware(other_log)]
    other = RedisBroker(url=redis_url, namespace=broker.namespace, middleware=middleware)
    # As a worker process does when it boots: Dramatiq 1 has middleware that starts here.
    other.emit_after("process_boot")
    dramatiq.actor(broker=other, actor_name="guarded")(lambda n: ran.append(f"{n} elsewhere"))
    dramatiq.actor(broker=other, actor_name="stay")(lambda: None)
    with worker(broker, worker_threads=1):
        with joblog.lock("key"):
            message = guarded.send(0)
            eventually(lambda: joblog.get(message.message_id).state == "waiting")
            # The other one fills what its consumer may fetch.
            stay.send(), stay.send()
            assert at_work.wait(20)
        with worker(other):
            eventually(lambda: joblog.get(message.message_id).state == "finished")
            goes_on.set()
    assert ["0 elsewhere"] == ran
    other.close()
    other.client.connection_pool.disconnect()
    other_log.close()
