"""The wall clock of a worker's host jumps while it runs: no duration depends on it."""

from __future__ import annotations

import threading
import time

import dramatiq
import pytest

from dramatiq_joblog import Exclusive, Rate, current_job

HOUR = 3_600


@pytest.fixture
def jump(monkeypatch):
    """Return a function that shifts the wall clock by a number of seconds."""
    wall, wall_ns = time.time, time.time_ns

    def move(seconds):
        monkeypatch.setattr(time, "time", lambda: wall() + seconds)
        monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + seconds * 10**9)

    return move


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["redis", "stub"])
@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_waiters_and_holders(joblog, make_broker, worker, eventually, jump, kind, by):
    """A job keeps its section, and those that wait come in when it ends, or cancel in time."""
    broker = make_broker(kind, joblog=joblog)
    leave, inside, lost = threading.Event(), [], []

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait", ttl=2_000))
    def work(n):
        inside.append(n)
        assert leave.wait(30)
        lost.append(current_job().lease_lost)

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait", wait_for=2_500))
    def impatient():
        inside.append("impatient")

    @dramatiq.actor(exclusive=Rate("rate", 1, per=3_000))
    def counted():
        """Start."""

    with worker(broker):
        work.send(0)
        eventually(lambda: inside == [0])
        work.send(1)
        gives_up = impatient.send()
        counted.send(), counted.send()
        eventually(lambda: joblog.jobs.waiting().count() == 3)
        jump(by)
        eventually(lambda: joblog.get(gives_up.message_id).state == "dead", timeout=20)
        assert [0] == inside
        leave.set()
        eventually(lambda: joblog.jobs.finished().count() == 4, timeout=20)
        broker.join("default", timeout=20_000, **({} if kind == "redis" else {"fail_fast": False}))
    assert [0, 1] == inside
    assert [False, False] == lost
    assert not list(joblog.jobs.lost())
