"""Promotion: the job that has waited longest starts when its section is free."""

from __future__ import annotations

import queue
import threading
from dataclasses import asdict

import dramatiq
import pytest
from dramatiq.broker import MessageProxy

from dramatiq_joblog import Exclusive
from dramatiq_joblog.broker.held import HeldMessages
from dramatiq_joblog.broker.options import SECTION, WAITS


class Consumer:
    """The parts of Dramatiq's consumer thread that are used here."""

    def __init__(self, queue_name):
        self.queue_name = queue_name
        self.delay_queue = queue.PriorityQueue()


@pytest.mark.parametrize("kind", ["stub", "redis"])
def test_the_next_starts_when_its_section_is_free(joblog, make_broker, worker, eventually, kind):
    """Waiters run one after the other, oldest first, long before their eta."""
    broker = make_broker(kind, "last", joblog=joblog)
    go, order = threading.Event(), []

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait"))
    def work(n):
        order.append(n)
        go.wait(30)

    with worker(broker):
        work.send(0)
        eventually(lambda: order)
        for n in (1, 2, 3):
            message = work.send(n)
            eventually(lambda jid=message.message_id: joblog.get(jid).state == "waiting")
        go.set()
        eventually(lambda: joblog.jobs.finished().count() == 4)
        broker.join("default", timeout=20_000)

    assert [0, 1, 2, 3] == order


def test_a_copy_of_what_has_ended(joblog, make_broker, worker, eventually):
    """A waiting copy is promoted once another copy has ended the job, long before its eta."""
    broker = make_broker("stub", "last", joblog=joblog)
    actor = dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait"))(lambda: None)
    message = actor.message()
    with worker(broker) as running:
        with joblog.lock("key"):
            broker.enqueue(message)
            broker.enqueue(message)
            held = running.consumers["default.DQ"].delay_queue
            eventually(lambda: held.qsize() == 2)
        broker.join("default", timeout=20_000)

    assert "finished" == joblog.get(message.message_id).state


def test_a_message_that_could_not_be_put_forward(
    joblog, make_broker, worker, eventually, monkeypatch, caplog
):
    """A message that the broker does not accept is retried, and not lost."""
    broker = make_broker("stub", "last", joblog=joblog)
    go, faults, began = threading.Event(), [], []
    enqueue = broker.enqueue

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait"))
    def work(n):
        began.append(n)
        go.wait(30)

    def fails_twice(message, *, delay=None):
        if len(faults) < 2 and threading.current_thread().name == "dramatiq_joblog waker":
            faults.append(message)
            raise ConnectionError("no broker now")
        return enqueue(message, delay=delay)

    with worker(broker):
        work.send(0)
        eventually(lambda: began)
        work.send(1)
        eventually(lambda: joblog.jobs.waiting().exists())
        monkeypatch.setattr(broker, "enqueue", fails_twice)
        go.set()
        eventually(lambda: joblog.jobs.finished().count() == 2)

    assert 2 == len(faults)
    assert "could not be promoted" in caplog.text


def test_a_waiter_that_is_put_forward_is_written_once_more(
    joblog, make_broker, worker, eventually, monkeypatch
):
    """When a waiting job is requeued to a worker, only its start is written."""
    broker = make_broker("stub", "last", joblog=joblog)
    actor = dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait"))(lambda: None)
    kinds, put = [], joblog.core.writer._submit

    def submit(event, **how):
        kinds.append(getattr(event, "kind", None))
        return put(event, **how)

    with worker(broker):
        with joblog.lock("key"):
            message = actor.send()
            eventually(lambda: joblog.get(message.message_id).state == "waiting")
            monkeypatch.setattr(joblog.core.writer, "_submit", submit)
        eventually(lambda: joblog.get(message.message_id).state == "finished")

    assert ["start", "end"] == [kind for kind in kinds if kind is not None]


def test_what_is_held_is_known_as_it_comes_and_goes(joblog, make_broker):
    """Each scan finds exactly the messages that have entered and left a delay queue."""
    broker = make_broker("stub", "last", joblog=joblog)
    actor = dramatiq.actor(exclusive=Exclusive("{n}", on_conflict="wait"))(lambda n: None)
    consumer = Consumer("default.DQ")
    held = HeldMessages(broker)
    held.attach(consumer)

    def put(n):
        options = {WAITS: f"key {n}", SECTION: asdict(Exclusive(f"key {n}", on_conflict="wait"))}
        message = MessageProxy(actor.message_with_options(args=(n,), **options))
        consumer.delay_queue.put((n, message))
        return message

    put(1), put(2)
    held.look()
    assert {"key 1", "key 2"} == {*held.keys}
    [first] = held.of("key 1").values()
    assert [first] == held.take_out([first])
    assert not held.waits_for(["key 1"])
    held.look()
    assert ["key 2"] == [*held.keys]
    held.put_back([first])
    put(3)
    held.look()
    assert {"key 1", "key 2", "key 3"} == {*held.keys}
    consumer.delay_queue = queue.PriorityQueue()
    held.look()
    assert not held.keys
    assert not held.needs("key 2")
