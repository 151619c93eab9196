"""How many may be in a section at once, when the code that says so changes."""

from __future__ import annotations

import threading
from dataclasses import asdict

import dramatiq
import pytest

from dramatiq_joblog import Exclusive, LockNotAcquired
from dramatiq_joblog.broker.messages import SECTION


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    return make_broker("stub", "last", joblog=joblog)


def test_a_limit_that_was_raised(joblog, broker, worker, eventually):
    """Jobs that wait come in by the limit of the running code, not by that of their sending."""
    inside, go = [], threading.Event()

    def stay(n):
        inside.append(n)
        go.wait(30)

    work = dramatiq.actor(stay, exclusive=Exclusive("key", limit=1, on_conflict="wait"))
    with worker(broker, worker_threads=8):
        for n in range(5):
            work.send(n)
        eventually(lambda: len(inside) == 1 and joblog.jobs.waiting().count() == 4)
        # As a deploy does.
        work.options["exclusive"] = Exclusive("key", limit=4, on_conflict="wait")
        eventually(lambda: len(inside) == 4)
        assert 1 == joblog.jobs.waiting().count()
        go.set()
        eventually(lambda: joblog.jobs.finished().count() == 5)


@pytest.mark.parametrize("lower", [1, 2])
def test_a_limit_that_was_lowered(joblog, lower):
    """A lower limit holds for who comes by it, whoever is inside by a higher one."""
    blocks = [joblog.lock("key", limit=4) for _ in range(3)]
    for block in blocks:
        block.__enter__()
    # The first slots are free, and others are held.
    free = lower
    for block in blocks[:free]:
        block.__exit__(None, None, None)
    held = 3 - free
    claimed = []
    for n in range(lower):
        try:
            block = joblog.lock("key", limit=lower)
            block.__enter__()
        except LockNotAcquired:
            continue
        claimed.append(n)
        blocks.append(block)
    assert max(0, lower - held) == len(claimed)
    for block in blocks[free:]:
        block.__exit__(None, None, None)
    with joblog.lock("key", limit=lower):
        pass


@pytest.mark.parametrize(
    "malformed", [None, 7, "key", [], {}, {"key": 7}, {"key": "key", "limit": "many"}]
)
def test_a_section_that_nobody_understands(joblog, broker, worker, malformed, eventually):
    """A message in the delay queue with a malformed section keeps no waiter from its section."""
    work = dramatiq.actor(
        lambda: None, actor_name="work", exclusive=Exclusive("key", on_conflict="wait")
    )
    odd = work.message().copy(queue_name="default.DQ", options={"joblog_waits": True})
    odd.options.update({SECTION: malformed, "eta": 4 * 10**12})
    with worker(broker):
        broker.queues["default.DQ"].put(odd.encode())
        with joblog.lock("key"):
            message = work.send()
            eventually(joblog.jobs.waiting().exists)
        eventually(lambda: joblog.get(message.message_id).state == "finished")


def test_what_is_frozen_is_the_key(joblog, broker):
    """All of a section but its key is as the code says that handles the message next."""
    key = iter("ab")
    work = dramatiq.actor(
        lambda: None, actor_name="work", exclusive=Exclusive(lambda: next(key), ttl=5_000)
    )
    message = work.send()
    work.options["exclusive"] = Exclusive("other", limit=3, on_conflict="wait", ttl=7_000)
    broker.enqueue(message)

    expected = asdict(Exclusive("a", limit=3, on_conflict="wait", ttl=7_000))
    assert expected.items() <= message.options[SECTION].items()
