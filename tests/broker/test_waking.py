"""Bringing the job that waits longest forward: it starts when its section is free."""

from __future__ import annotations

import threading

import dramatiq
import pytest

from dramatiq_joblog import Exclusive


@pytest.mark.parametrize("kind", ["stub", "redis"])
def test_the_next_starts_when_its_section_is_free(joblog, make_broker, worker, eventually, kind):
    """Those that wait come in one after the other, the oldest first, long before their eta."""
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
    """A copy that waits comes in once its job has ended by another copy, long before its eta."""
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
    """A message that the broker does not take now is tried again, and not lost."""
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
    assert "was not brought forward" in caplog.text
