"""A second copy of a message, while its job runs in the same process."""

from __future__ import annotations

import threading

import dramatiq
import pytest

from dramatiq_joblog import Exclusive

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.mark.parametrize("on_conflict", ["wait", "retry", "skip", "fail"])
def test_a_copy_that_finds_its_job_at_work(joblog, make_broker, worker, eventually, on_conflict):
    """The fate of a copy does not affect the outcome of the job's own run."""
    broker = make_broker("stub", joblog=joblog)
    inside, leave = threading.Event(), threading.Event()

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict=on_conflict), min_backoff=60_000)
    def work():
        inside.set()
        assert leave.wait(20)

    with worker(broker, worker_threads=2):
        message = work.send()
        assert inside.wait(20)
        copy = message.copy(options={"joblog_delivery": ["another", None]})
        broker.queues["default"].put(copy.encode())
        eventually(lambda: broker.queues["default"].unfinished_tasks == 1)
        leave.set()
        ends = eventually(lambda: _state_after("started", joblog, message))
        assert ends == "finished"


def _state_after(state, joblog, message):
    now = joblog.get(message.message_id).state
    return now if now != state else None


@pytest.mark.parametrize("kind", ["stub", "redis"])
def test_a_redelivery_while_its_job_is_at_work(joblog, make_broker, worker, eventually, kind):
    """A message that is redelivered while its job runs does not run a second time."""
    broker = make_broker(kind, joblog=joblog)
    inside, leave, runs = threading.Event(), threading.Event(), []

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait"))
    def work():
        runs.append(1)
        inside.set()
        assert leave.wait(20)

    with worker(broker, worker_threads=2) as running:
        sent = work.send()
        assert inside.wait(20)
        if kind == "stub":
            broker.queues["default"].put(sent.encode())
        else:
            broker.client.rpush(f"{broker.namespace}:default", sent.options["redis_message_id"])
        held_back = [consumer.delay_queue for consumer in running.consumers.values()]
        eventually(lambda: sum(queue.qsize() for queue in held_back) == 1)
        leave.set()
        eventually(lambda: joblog.get(sent.message_id).state == "finished")
        broker.join("default", timeout=30_000)

    assert [1] == runs
    assert [] == list(joblog.get(sent.message_id).failures)
