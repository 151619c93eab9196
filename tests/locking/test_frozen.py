"""Keys while the database does not respond, like on a stopped host."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import dramatiq
import pytest

from dramatiq_joblog import DatabaseAwayError, Exclusive, JobLog, JobLogError, current_job


@pytest.fixture
def joblog(postgres):
    """Return a log in a database that can be frozen."""
    log = JobLog(postgres.url)
    log.create_tables()
    yield log
    postgres.thaw()
    log.close()


@pytest.mark.full
def test_senders_do_not_wait_in_turn(joblog, postgres, make_broker, eventually):
    """Only the first request for a key waits for the database; the others fail at once.

    Once it responds, keys can be acquired again.
    """
    broker = make_broker("stub", "last", joblog=joblog)
    work = dramatiq.actor(lambda n: None, actor_name="work", unique="{n}", broker=broker)
    work.send(0)
    postgres.freeze()
    with pytest.raises(JobLogError):
        work.send(1)
    began = time.monotonic()
    for n in range(2, 6):
        with pytest.raises(JobLogError, match="unavailable"):
            work.send(n)
    with pytest.raises(DatabaseAwayError), joblog.lock("key", wait=60_000):
        pass
    assert time.monotonic() - began < 4
    postgres.thaw()
    eventually(lambda: not joblog.core.writer.away)
    work.send(7)


@pytest.mark.full
def test_a_lock_that_is_held_meanwhile(joblog, postgres):
    """The holder is warned once its lease may have expired, and leaves without an error."""
    with joblog.lock("key", ttl=1_000) as lease:
        postgres.freeze()
        time.sleep(1.2)
        assert lease.lost
        postgres.thaw()
    with joblog.lock("key", wait=10_000) as next_one:
        assert next_one.fence > lease.fence


@pytest.mark.full
def test_a_coroutine_that_waits(joblog, postgres):
    """An event loop is not blocked while a coroutine queries a database that does not respond."""
    pauses = []

    async def tick():
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            pauses.append(time.monotonic() - began)

    async def main():
        ticking = asyncio.create_task(tick())
        with pytest.raises(DatabaseAwayError):
            async with joblog.lock("key", wait=1_000):
                pass
        ticking.cancel()

    with joblog.lock("another"):
        pass
    postgres.freeze()
    asyncio.run(main())
    # Any machine has a slow moment.
    assert sorted(pauses)[len(pauses) * 95 // 100] < 0.3


@pytest.mark.full
def test_jobs_of_a_key(joblog, postgres, make_broker, worker, eventually):
    """Jobs of one key run one after the other once the database responds again."""
    broker = make_broker("stub", "last", joblog=joblog)
    stays, begun = [], threading.Event()

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait", ttl=2_000), broker=broker)
    def work():
        begun.set()
        began = time.monotonic()
        time.sleep(0.05)
        stays.append((began, time.monotonic(), current_job().lease_lost))

    with worker(broker):
        for _ in range(6):
            work.send()
        assert begun.wait(10)
        postgres.freeze()
        time.sleep(2.5)
        postgres.thaw()
        eventually(lambda: joblog.jobs.finished().count() == 6, timeout=60)
    for first, second in itertools.pairwise(sorted(stays)):
        assert first[1] <= second[0] or first[2]
