"""Settings that would change a program's behaviour are refused early, with one sentence."""

from __future__ import annotations

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, default_middleware

from dramatiq_joblog import JobLog, JobLogMiddleware
from dramatiq_joblog.errors import ConfigurationError, DuplicateJob

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class OwnMiddleware(JobLogMiddleware):
    """A subclass of the user."""


def the_same(joblog, first):
    return first


def another(joblog, first):
    return JobLogMiddleware(joblog)


def a_subclass(joblog, first):
    return OwnMiddleware(joblog)


def of_the_same_tables(joblog, first):
    return JobLogMiddleware(JobLog(joblog.database))


@pytest.mark.parametrize("make", [the_same, another, a_subclass, of_the_same_tables])
def test_a_second_middleware_of_a_log(joblog, make):
    """A broker may have a log's middleware once: a second one is refused as early as possible."""
    refusal = pytest.raises(ConfigurationError, match="2 JobLogMiddleware of the log")
    first = JobLogMiddleware(joblog)
    broker = StubBroker(middleware=[*(m() for m in default_middleware), first])
    broker.add_middleware(make(joblog, first))
    with refusal:
        dramatiq.actor(print, actor_name="late", broker=broker)
    with refusal:
        broker.declare_queue("default")
    with refusal:
        dramatiq.Worker(broker).start()

    broker = StubBroker(middleware=[first])
    dramatiq.actor(print, actor_name="early", broker=broker)
    with refusal:
        broker.add_middleware(make(joblog, first))


def test_logs_of_one_name_on_two_servers(joblog):
    """Logs whose databases only have the same name are different logs."""
    here = JobLog("postgresql://me@localhost/jobs")
    broker = StubBroker(middleware=[JobLogMiddleware(joblog), JobLogMiddleware(here)])
    dramatiq.actor(print, actor_name="early", broker=broker)
    for far in ("postgresql://me@db.example.com/jobs", "postgresql://me@localhost:5433/jobs"):
        broker.add_middleware(JobLogMiddleware(JobLog(far)))
    with pytest.raises(ConfigurationError, match="2 JobLogMiddleware of the log"):
        broker.add_middleware(JobLogMiddleware(JobLog("postgresql://you@127.0.0.1:5432/jobs")))


@pytest.mark.full
def test_two_logs(joblog, tmp_path, worker):
    """Two logs on one broker both have each job, however many actors there are."""
    other = JobLog(f"sqlite:///{tmp_path / 'other.db'}")
    other.create_tables()
    stack = [*(m() for m in default_middleware), JobLogMiddleware(joblog), JobLogMiddleware(other)]
    broker = StubBroker(middleware=stack)
    actors = [
        dramatiq.actor(print, actor_name=f"a{i}", broker=broker, unique="k") for i in range(600)
    ]
    broker.emit_after("process_boot")
    with worker(broker):
        actors[0].send_with_options(delay=10)
        broker.join("default")
    assert [1, 1] == [log.jobs.finished().count() for log in (joblog, other)]
    broker.close()
    other.close()


class Full(Middleware):
    """Simulates a broker that refuses one message after accepting the nested one."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def before_enqueue(self, broker, message, delay):
        if message.actor_name == "outer":
            broker.enqueue(self.inner.message())
            raise dramatiq.middleware.MiddlewareError("full")


def test_a_unique_message_that_could_not_be_sent(joblog, make_broker):
    """Its key is released at once, even if a middleware has sent another message meanwhile."""
    broker = make_broker("stub", joblog=joblog)
    inner = dramatiq.actor(print, actor_name="inner")
    outer = dramatiq.actor(print, actor_name="outer", unique="outer")
    broker.add_middleware(Full(inner))
    for _ in range(2):
        with pytest.raises(dramatiq.middleware.MiddlewareError, match="full") as refused:
            outer.send()
        assert not isinstance(refused.value, DuplicateJob)


@pytest.mark.parametrize("name", ["exclusive", "unique"])
def test_a_message_that_asks_for_a_key_and_no_row(joblog, make_broker, worker, name):
    """A message that needs a key but is not logged is refused by ``send()``."""
    broker = make_broker("stub", joblog=joblog)
    bound = dramatiq.actor(print, actor_name="bound", **{name: "k"})
    free = dramatiq.actor(print, actor_name="free")
    with pytest.raises(ConfigurationError, match=f"log_job=False and {name}"):
        bound.send_with_options(log_job=False)
    with pytest.raises(ConfigurationError, match=f"log_job=False and {name}"):
        free.send_with_options(log_job=False, **{name: "k"})
    with pytest.raises(ConfigurationError, match="needs log_job"):
        dramatiq.actor(print, actor_name="unlogged", log_job=False, **{name: "k"})
    with worker(broker):
        free.send_with_options(log_job=False)
        bound.send_with_options(log_job=False, **{name: False})
        broker.join("default")
    assert 0 == joblog.jobs.count()


@pytest.mark.parametrize("fails", [0, 1])
def test_a_sender_without_a_log(joblog, make_broker, worker, fails):
    """A message that needs a key but is not to be logged, from elsewhere, never runs without it."""
    broker = make_broker("stub", joblog=joblog)
    held = []

    @dramatiq.actor(exclusive="k", max_retries=1, min_backoff=10, max_backoff=10)
    def works():
        held.append(joblog.Lock.get(kind="section").owner)
        if len(held) <= fails:
            raise ValueError("row 7 is broken")

    message = works.message_with_options(log_job=False)
    with worker(broker):
        # As it comes from elsewhere: no hook of ours has seen it.
        broker.queues["default"].put(message.encode())
        broker.join("default")
    assert [message.message_id] * (1 + fails) == held
    assert 1 == joblog.jobs.finished().count()
