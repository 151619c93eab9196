"""A burst for one key: new jobs join the end of a long wait queue without checking the key."""

from __future__ import annotations

import dramatiq
import pytest

from dramatiq_joblog import Exclusive, JobLogMiddleware, Rate
from dramatiq_joblog.recording.in_line import InLine

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def joins(monkeypatch):
    """Return the batches of jobs that joined a wait queue together."""
    seen, join = [], InLine.join

    def noted(self, events, rows):
        if events:
            seen.append([event.jid for event in events])
        return join(self, events, rows)

    monkeypatch.setattr(InLine, "join", noted)
    return seen


def burst(joblog, make_broker, need, **options):
    """Return an actor that needs a key, and the list of its runs."""
    broker, ran = make_broker("redis", joblog=joblog), []

    @dramatiq.actor(broker=broker, exclusive=need, **options)
    def work(n):
        ran.append(n)

    return broker, work, ran


@pytest.mark.full
@pytest.mark.parametrize(
    "need",
    [Exclusive("key", on_conflict="wait"), Rate("key", 100, per=1_000)],
    ids=["section", "rate"],
)
def test_all_run_once(joblog, make_broker, worker, eventually, joins, need):
    """Jobs that join a wait queue without a check wait, and run once their turn comes."""
    broker, work, ran = burst(joblog, make_broker, need)
    joblog.set_limit("key", 0)
    with worker(broker):
        for n in range(120):
            work.send(n)
        # Only a process that holds so many waiters knows of the queue.
        [log] = [m for m in broker.middleware if isinstance(m, JobLogMiddleware)]
        eventually(lambda: len(log._services.waker._held.of("key")) == 120)
        for n in range(120, 150):
            work.send(n)
        eventually(lambda: joblog.waiters("key").count() == 150, timeout=30)
        assert joins
        joblog.set_limit("key", None)
        eventually(lambda: joblog.jobs.finished().count() == 150, timeout=40)
    assert sorted(ran) == list(range(150))
    outcomes = joblog.Failure.select(joblog.Failure.outcome).distinct().tuples()
    assert ["waited"] == [str(outcome) for (outcome,) in outcomes]


def test_who_may_not_wait(joblog, make_broker, worker, eventually, joins):
    """A job that may not wait, or has already begun, is handled normally."""
    need = Exclusive("key", on_conflict="wait", wait_for=0, on_timeout="skip")
    broker, work, ran = burst(joblog, make_broker, need)
    with worker(broker), joblog.lock("key"):
        messages = [work.send(n) for n in range(3)]
        eventually(lambda: joblog.jobs.skipped().count() == len(messages))
    assert [] == joins
    assert [] == ran


def test_one_that_cannot_stand_in_line(joblog, make_broker, worker, eventually, joins):
    """A message whose job has already ended does not wait: it is acknowledged."""
    broker, work, ran = burst(joblog, make_broker, Exclusive("key", on_conflict="wait"))
    with worker(broker):
        done = work.send(0)
        eventually(lambda: joblog.get(done.message_id).state == "finished")
        with joblog.lock("key"):
            for n in range(1, 6):
                work.send(n)
            eventually(lambda: joblog.waiters("key").count() == 5)
            queue = f"{broker.namespace}:default"
            broker.client.hset(f"{queue}.msgs", done.options["redis_message_id"], done.encode())
            broker.client.rpush(queue, done.options["redis_message_id"])
            eventually(lambda: [done.message_id] in joins)
            eventually(lambda: broker.client.hlen(f"{queue}.msgs") == 5)
        eventually(lambda: len(ran) == 6)
    assert [0, 1, 2, 3, 4, 5] == sorted(ran)
    assert "finished" == joblog.get(done.message_id).state


def test_a_waiter_that_is_delivered_again(joblog, make_broker, worker, eventually, joins):
    """A waiter of a killed worker keeps its position."""
    broker, work, ran = burst(joblog, make_broker, Exclusive("key", on_conflict="wait"))
    with joblog.lock("key"):
        with worker(broker):
            first = work.send(0)
            eventually(lambda: joblog.waiters("key").count() == 1)
        # As Redis does with what a killed worker had: it comes behind what is there by then.
        queue = f"{broker.namespace}:default"
        assert first.options["redis_message_id"].encode() == broker.client.lpop(queue)
        with worker(broker):
            sent = 0
            while not joins:
                sent += 1
                message = work.send(sent)
                eventually(lambda jid=message.message_id: joblog.get(jid).state == "waiting")
            broker.client.rpush(queue, first.options["redis_message_id"])
            eventually(lambda: [first.message_id] in joins)
            assert joblog.waiters("key").first().jid == first.message_id
    with worker(broker):
        eventually(lambda: joblog.jobs.finished().count() == sent + 1)
    assert list(range(sent + 1)) == sorted(ran)
    assert 1 == len(list(joblog.get(first.message_id).failures))
