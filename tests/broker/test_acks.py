"""Batched acknowledgements: never before the commit, many at once, none lost."""

from __future__ import annotations

import contextlib
import threading
import uuid

import dramatiq
import pytest
import servers
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, SkipMessage, default_middleware

from dramatiq_joblog import JobLog, JobLogMiddleware
from dramatiq_joblog.broker import acks
from dramatiq_joblog.errors import ConfigurationError


class Gate:
    """Blocks the writer when it is about to commit an outcome."""

    def __init__(self, joblog):
        self.opened, self.reached = threading.Event(), threading.Event()
        self._write = joblog.core.transitions.write
        joblog.core.transitions.write = self._wait

    def _wait(self, events):
        if any(event.kind == "end" for event in events):
            self.reached.set()
            assert self.opened.wait(60)
        return self._write(events)


def left(broker):
    """Return how many messages of the default queue were not acknowledged."""
    return broker.client.hlen(f"{broker.namespace}:default.msgs")


def held(broker):
    """Return how many messages Redis holds for workers."""
    keys = broker.client.keys(f"{broker.namespace}:__acks__.*")
    return sum(broker.client.scard(key) for key in keys)


@contextlib.contextmanager
def boot(broker, **kwargs):
    """Prepare the broker's middleware for a worker, like ``Worker.start()``."""
    worker = dramatiq.Worker(broker, **kwargs)
    broker.emit_before("worker_boot", worker)
    yield
    broker.emit_after("worker_shutdown", worker)


def test_which_brokers_are_known(redis_url):
    """A broker other than Dramatiq's own RedisBroker is left unchanged."""

    class OwnConsumer(RedisBroker):
        @property
        def consumer_class(self):
            return type("Consumer", (_RedisConsumer,), {})

    redis_broker = RedisBroker(url=redis_url)

    assert acks.why_not(redis_broker) is None
    assert "StubBroker" in acks.why_not(StubBroker())
    assert "consumer_class" in acks.why_not(OwnConsumer(url=redis_url))
    redis_broker.client = object()
    assert "no redis.Redis" in acks.why_not(redis_broker)


def test_another_script_is_not_known(redis_url):
    """A broker whose script does more at an acknowledgement is left unchanged, ignoring blanks."""
    broker = RedisBroker(url=redis_url)
    script = broker.scripts["dispatch"]
    text = acks._script_of(broker)

    script.script = text.replace("    ", "\t-- more\n")
    assert acks.why_not(broker) is None
    script.script = text.replace('"hdel", queue_messages', '"unlink", queue_messages')
    assert "its script" in acks.why_not(broker)


def test_a_newer_dramatiq_is_not_known(redis_url, monkeypatch):
    """An unknown newer version of Dramatiq is left unchanged."""
    monkeypatch.setattr(acks.metadata, "version", lambda name: "3.0.0")

    assert "3.0.0 is newer" in acks.why_not(RedisBroker(url=redis_url))


def test_handed_is_refused_where_it_cannot_be(joblog, make_broker):
    """Requesting it for an unsupported broker is a clear error, when an actor is declared."""
    make_broker("stub", joblog=joblog, acks="handed")

    with pytest.raises(ConfigurationError, match=r"StubBroker.* use acks='auto'"):
        dramatiq.actor(lambda: None, actor_name="work")


def test_an_unknown_way(joblog):
    """An unknown way to acknowledge is refused."""
    with pytest.raises(ConfigurationError, match="acks='later' is not known"):
        JobLogMiddleware(joblog, acks="later")


def test_two_logs_of_one_broker(joblog, make_broker, tmp_path):
    """With two logs, one hands over and the other waits, so that no outcome is late."""
    broker = make_broker("redis", joblog=joblog)
    log = JobLog(f"sqlite:///{tmp_path / 'second.db'}")
    second = JobLogMiddleware(log)
    broker.add_middleware(second)
    with boot(broker):
        consumer = broker.consume("default")
        assert consumer._acks is not None
        assert second._services.acks is None
    log.close()


def test_no_acknowledgement_before_the_commit(joblog, make_broker, worker, eventually):
    """A message stays unacknowledged until its outcome is committed; its thread does not wait."""
    gate = Gate(joblog)
    broker = make_broker("redis", joblog=joblog, acks="handed")
    done = threading.Semaphore(0)

    @dramatiq.actor(log_job=False)
    def not_logged():
        done.release()

    @dramatiq.actor
    def work():
        done.release()

    with worker(broker, worker_threads=1):
        work.send()
        assert done.acquire(timeout=30)
        assert gate.reached.wait(30)
        # The one thread is free for the next.
        not_logged.send()
        assert done.acquire(timeout=30)
        # Its own acknowledgement comes after its body.
        eventually(lambda: 1 == left(broker) == held(broker))
        gate.opened.set()
        eventually(lambda: not left(broker))
        assert "finished" == joblog.jobs.get().state


def test_no_rejection_before_the_commit(joblog, make_broker, worker, eventually):
    """A dead job is not a dead letter until it is committed; its thread does not wait."""
    gate = Gate(joblog)
    # Prometheus, that Dramatiq 1 has by default, must not hear of a rejection too early.
    stack = [m() for m in default_middleware if m.__name__ != "Prometheus"]
    broker = make_broker("redis", joblog=joblog, acks="handed", middleware=stack)
    done = threading.Event()

    @dramatiq.actor(log_job=False)
    def not_logged():
        done.set()

    @dramatiq.actor(max_retries=0)
    def work():
        raise ValueError

    with worker(broker, worker_threads=1):
        message = work.send()
        assert gate.reached.wait(30)
        # The one thread is free for the next.
        not_logged.send()
        assert done.wait(30)
        # Its own acknowledgement comes after its body.
        eventually(lambda: 1 == left(broker) == held(broker))
        gate.opened.set()
        eventually(lambda: not left(broker))
        assert "dead" == joblog.get(message.message_id).state

    [letter] = broker.client.hvals(f"{broker.namespace}:default.XQ.msgs")
    assert message.message_id == dramatiq.Message.decode(letter).message_id
    assert 1 == broker.client.zcard(f"{broker.namespace}:default.XQ")


def test_many_in_one_round_trip(joblog, make_broker, worker, eventually, monkeypatch):
    """Jobs committed together are acknowledged together."""
    sizes = []
    tried = acks.HandedAcks._try
    monkeypatch.setattr(
        acks.HandedAcks, "_try", lambda self, batch: sizes.append(len(batch)) or tried(self, batch)
    )
    gate = Gate(joblog)
    broker = make_broker("redis", joblog=joblog)
    together = threading.Barrier(4)

    @dramatiq.actor
    def work():
        together.wait(30)

    with worker(broker, worker_threads=4):
        for _ in range(4):
            work.send()
        assert gate.reached.wait(30)
        gate.opened.set()
        eventually(lambda: not left(broker))
    assert 4 == sum(sizes)
    assert len(sizes) < 4


@pytest.mark.full
def test_more_than_are_fetched_at_once(joblog, make_broker, worker, eventually):
    """Fetching continues for many more jobs than are prefetched, of every kind."""
    broker = make_broker("redis", joblog=joblog)

    @dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=1, throws=KeyError)
    def work(n):
        if n % 10 == 1:
            raise SkipMessage("not today")
        if n % 10 == 2:
            raise KeyError(n)
        if n % 10 == 3:
            raise ValueError(n)

    for n in range(100):
        work.send(n)
    with worker(broker, worker_threads=2):
        eventually(lambda: not left(broker), timeout=60)
        eventually(lambda: not held(broker), timeout=60)
    counts = {
        state: joblog.jobs.in_state(state).count() for state in ("finished", "dead", "skipped")
    }
    assert {"finished": 70, "dead": 20, "skipped": 10} == counts


def test_who_is_told_is_not_told_too_early(joblog, make_broker, worker, eventually):
    """When `after_ack` of another middleware is called, the acknowledgement has been sent."""
    seen = []

    class Listens(Middleware):
        def after_ack(self, broker, message):
            seen.append(left(broker))

    broker = make_broker("redis", joblog=joblog)
    broker.add_middleware(Listens())

    @dramatiq.actor
    def work():
        """Do nothing."""

    with worker(broker, worker_threads=1):
        for n in range(5):
            work.send()
            eventually(lambda n=n: n + 1 == len(seen))
    assert [0] * 5 == seen


def test_too_many_that_wait(joblog, make_broker, worker, eventually, monkeypatch):
    """If too many acknowledgements are pending, a worker thread waits for its own."""
    monkeypatch.setattr(acks, "MAX_WAITING", 0)
    seen = []
    broker = make_broker("redis", joblog=joblog)

    @dramatiq.actor
    def work():
        seen.append(left(broker))

    for _ in range(5):
        work.send()
    with worker(broker, worker_threads=1):
        eventually(lambda: not left(broker))
    assert [5, 4, 3, 2, 1] == seen


@pytest.mark.expects_critical
def test_redis_restarts_while_acknowledgements_wait(
    joblog, make_broker, worker, eventually, global_broker, real_redis
):
    """Acknowledgements during an outage of Redis are sent when it is available again."""
    server = servers.start_redis(durable=True)
    broker = RedisBroker(url=server.url, namespace=uuid.uuid4().hex)
    # No heartbeat writes the last outcome.
    middleware = JobLogMiddleware(joblog, heartbeat=10**6, heartbeat_timeout=10**7)
    broker.add_middleware(middleware)
    dramatiq.set_broker(broker)
    gate = Gate(joblog)
    lasts, begun = threading.Event(), threading.Event()

    @dramatiq.actor
    def work(last):
        if last:
            begun.set()
            assert lasts.wait(60)

    try:
        with worker(broker, worker_threads=2):
            work.send(last=True)
            assert begun.wait(30)
            work.send(last=False)
            assert gate.reached.wait(30)
            server.process.kill()
            server.process.wait()
            gate.opened.set()
            eventually(lambda: 1 == joblog.jobs.finished().count(), timeout=30)
            eventually(lambda: middleware._services.acks._stuck, timeout=30)
            lasts.set()
            eventually(lambda: 2 == joblog.jobs.finished().count(), timeout=30)
            server.restart()
            eventually(lambda: not left_after(broker, server), timeout=60)
        assert 0 == joblog.Failure.select().count()
    finally:
        broker.close()
        broker.client.connection_pool.disconnect()
        server.stop()


def left_after(broker, server):
    """Return how many messages are left, or True while Redis does not answer."""
    try:
        return left(broker)
    except Exception:  # noqa: BLE001
        return True


def test_shutdown_with_acknowledgements_that_wait(joblog, make_broker, worker):
    """A worker that is stopped while acknowledgements wait leaves nothing unacknowledged."""
    gate = Gate(joblog)
    broker = make_broker("redis", joblog=joblog)
    begun = threading.Semaphore(0)

    @dramatiq.actor
    def work():
        begun.release()

    with worker(broker, worker_threads=2):
        work.send()
        assert begun.acquire(timeout=30)
        assert gate.reached.wait(30)
        assert 1 == held(broker)
        threading.Timer(0.2, gate.opened.set).start()
    assert 0 == left(broker) == held(broker)


@pytest.mark.full
@pytest.mark.process
def test_sigterm_in_mid_drain(
    joblog, database_url, redis_url, run_worker_process, eventually, tmp_path
):
    """After a SIGTERM during work, each job has ended and is acknowledged, or has not begun."""
    broker = RedisBroker(url=redis_url, namespace="kill")
    broker.declare_queue("default")
    (tmp_path / "runs").touch()
    environment = {
        "KILL_AT": "nowhere",
        "KILL_ACKS": "handed",
        "KILL_BROKER": redis_url,
        "KILL_DATABASE": database_url,
        "KILL_FOLDER": str(tmp_path),
    }
    for _ in range(1500):
        broker.enqueue(dramatiq.Message("default", "works", (), {}, {}))
    with run_worker_process("kill_worker", processes=2, env=environment):
        eventually(lambda: left(broker) < 1450, timeout=30)
    # Dramatiq leaves what it had fetched and not looked at to be delivered again later.
    assert left(broker) == 1500 - joblog.jobs.finished().count()
    assert 0 == joblog.jobs.in_progress().count()
    broker.close()
    broker.client.connection_pool.disconnect()
