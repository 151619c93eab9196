"""Manual locks: in coroutines, and when the database's reply is lost."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time

import dramatiq
import pytest
from dramatiq.middleware import default_middleware
from dramatiq.middleware.asyncio import AsyncIO

from dramatiq_joblog import ConfigurationError, DatabaseAwayError, JobLog, LockNotAcquired


def test_in_two_coroutines(joblog):
    """Coroutines of one loop wait for each other, without blocking the loop."""
    inside, order, ticks = [], [], []

    async def stay(name):
        async with joblog.lock("key", wait=10_000) as lease:
            assert [] == inside
            inside.append(name)
            await asyncio.sleep(0.1)
            order.append(lease.fence)
            inside.remove(name)

    async def tick():
        while len(order) < 3:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def both():
        await asyncio.gather(stay("a"), stay("b"), stay("c"), tick())

    asyncio.run(both())
    assert [1, 2, 3] == order
    assert len(ticks) > 10
    assert not joblog.locks.exists()


@pytest.mark.parametrize("is_async", [False, True], ids=["with", "async with"])
def test_a_file_that_stays_locked(sqlite_database, is_async):
    """A wait for a key does not exceed its timeout while another process has locked the file.

    The key is free once the file is unlocked.
    """
    log = JobLog(sqlite_database)
    with log.lock("another"):
        # The writer's thread has done by then what it does first.
        pass
    other = sqlite3.connect(log.database.database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    async def enter():
        async with log.lock("key", wait=100):
            pass

    with pytest.raises(DatabaseAwayError, match=r"the database (is locked|did not respond)"):
        asyncio.run(enter()) if is_async else log.lock("key", wait=100).__enter__()
    other.execute("ROLLBACK")
    other.close()
    with log.lock("key", wait=10_000):
        pass
    log.close()


def test_in_async_actors(joblog, make_broker, worker, eventually):
    """Async actors hold keys by their job's jid, and none blocks the others."""
    stack = [*(m() for m in default_middleware), AsyncIO()]
    broker = make_broker("stub", "last", joblog=joblog, middleware=stack)
    owners = []

    @dramatiq.actor(max_retries=0)
    async def work():
        async with joblog.lock("key", wait=20_000):
            owners.append(await asyncio.to_thread(_owner, joblog))
            await asyncio.sleep(0.05)

    with worker(broker):
        jids = {work.send().message_id for _ in range(3)}
        eventually(lambda: joblog.jobs.finished().count() == 3)
    assert jids == set(owners)


def _owner(joblog):
    owner = joblog.locks.get().owner
    joblog.release()
    return owner


def test_waiting_in_a_loop_is_refused(joblog):
    """The blocking form refuses to wait in a running event loop, and names the cure."""

    async def work():
        with joblog.lock("key"):
            pass
        with (
            pytest.raises(ConfigurationError, match=r"async with joblog\.lock"),
            joblog.lock("key", wait=100),
        ):
            pass

    asyncio.run(work())
    assert not joblog.locks.exists()


def test_taken_in_a_loop(joblog):
    """A held key raises like in the blocking form."""

    async def work():
        async with joblog.lock("key"):
            with pytest.raises(LockNotAcquired, match="is held by"):
                async with joblog.lock("key", wait=100):
                    pass

    asyncio.run(work())


@pytest.mark.parametrize("when", ["taking", "waiting", "inside"])
def test_a_coroutine_that_is_cancelled(joblog, eventually, when):
    """A cancelled coroutine holds nothing, wherever it was."""
    begun, go = threading.Event(), threading.Event()
    take = joblog.core.locks.take

    def slow(claim):
        lease = take(claim)
        begun.set()
        go.wait(10)
        return lease

    async def stay():
        async with joblog.lock("key", wait=10_000):
            begun.set()
            await asyncio.sleep(30)

    async def work():
        task = asyncio.create_task(stay())
        while not begun.is_set():
            await asyncio.sleep(0.01)
            if when == "waiting":
                begun.set()
                await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    if when == "taking":
        joblog.core.locks.take = slow
    if when == "waiting":
        with joblog.lock("key"):
            asyncio.run(work())
    else:
        asyncio.run(work())
    joblog.core.locks.take = take
    joblog.core.writer.flush()
    assert not joblog.locks.exists()
    assert not joblog.core.locks.leases


def test_a_commit_whose_answer_is_lost(joblog, monkeypatch):
    """A lock that was acquired but whose reply was lost is not renewed, and is released."""
    atomic, lost = joblog.core.transitions.atomic, []

    class Lost:
        def __enter__(self):
            self.transaction = atomic()
            self.transaction.__enter__()

        def __exit__(self, *exc_info):
            self.transaction.__exit__(*exc_info)
            if not lost:
                lost.append(True)
                raise DatabaseAwayError("the answer of a commit is lost")

    monkeypatch.setattr(joblog.core.transitions, "atomic", Lost)
    with pytest.raises(DatabaseAwayError), joblog.lock("key"):
        pass
    joblog.core.writer.flush()
    monkeypatch.undo()
    assert lost
    assert not joblog.core.locks.leases
    with joblog.lock("key"):
        pass


def test_as_a_decorator(joblog):
    """A function decorated with a lock acquires the key for each call."""
    fences = []

    @joblog.lock("key")
    def work():
        fences.append(joblog.locks.get().fence)

    work()
    work()
    assert [1, 2] == fences
    assert not joblog.locks.exists()


def test_entered_twice(joblog):
    """A lock object cannot be entered again while it is held."""
    lock = joblog.lock("key")
    with lock, pytest.raises(ConfigurationError, match="a second time"), lock:
        pass
    with lock:
        pass


@pytest.mark.parametrize(
    ("key", "values", "text"),
    [
        ("", {}, "the key '' is not valid"),
        (None, {}, "the key None is not valid"),
        ("key", {"limit": 0}, "limit=0 must be a whole number of at least 1"),
        ("key", {"limit": True}, "limit=True must be"),
        ("key", {"ttl": 0}, "ttl=0 must be"),
        ("key", {"ttl": 10**20}, "and at most"),
        ("key", {"wait": -1}, "wait=-1 must be"),
        ("key", {"wait": 1.5}, "wait=1.5 must be"),
    ],
)
def test_values_that_make_no_sense(joblog, key, values, text):
    """An invalid manual lock is refused when it is created, with the value."""
    with pytest.raises(ConfigurationError) as refused:
        joblog.lock(key, **values)
    assert text in str(refused.value)


def test_a_limit_of_a_billion(joblog):
    """The cost of a slot does not depend on the limit."""
    began = time.monotonic()
    with joblog.lock("key", limit=10**9), joblog.lock("key", limit=10**9):
        assert [0, 1] == [row.slot for row in joblog.locks.order_by(joblog.Lock.slot)]
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("nested", [True, False])
def test_one_that_would_wait_for_itself(joblog, make_broker, worker, eventually, nested):
    """A nested block, or a block in a job that holds the key, raises at once with the reason."""
    broker = make_broker("stub", "last", joblog=joblog)
    took = []

    @dramatiq.actor(max_retries=0, exclusive=None if nested else "key")
    def work():
        began = time.monotonic()
        try:
            with joblog.lock("key") if nested else contextlib.nullcontext():
                with joblog.lock("other", wait=60_000), joblog.lock("key", limit=2, wait=60_000):
                    pass
                with joblog.lock("key", wait=60_000):
                    pass
        finally:
            took.append(time.monotonic() - began)

    with worker(broker):
        jid = work.send().message_id
        eventually(lambda: joblog.get(jid).state == "dead")
        # The block was left: its thread may take the key again, as others may.
        again = work.send().message_id
        eventually(lambda: joblog.get(again).state == "dead")
    for each in (jid, again):
        assert "LockNotAcquired" == joblog.get(each).error_type
        assert "would wait for itself" in joblog.get(each).error_message
        assert each in joblog.get(each).error_message
    assert max(took) < 10
    assert not joblog.locks.exists()


def test_a_task_of_a_block_waits_for_its_end(joblog):
    """A task or thread started in a block is not the holder: it waits until the block is left."""

    async def later():
        async with joblog.lock("key", wait=20_000) as lease:
            return lease.fence

    async def work():
        async with joblog.lock("key"):
            task = asyncio.create_task(later())
            aside = asyncio.create_task(asyncio.to_thread(_take_later, joblog))
            await asyncio.sleep(0.2)
        return await asyncio.gather(task, aside)

    assert {2, 3} == set(asyncio.run(work()))


def _take_later(joblog):
    with joblog.lock("key", wait=20_000) as lease:
        return lease.fence


def test_the_key_of_another_log(joblog, tmp_path):
    """A key of another log is a different key: it is waited for like any other."""
    other = JobLog(f"sqlite:///{tmp_path}/other.db")
    other.create_tables()
    holds, leave = threading.Event(), threading.Event()

    def hold():
        with other.lock("key"):
            holds.set()
            assert leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(20)
    with joblog.lock("key"):
        threading.Timer(0.3, leave.set).start()
        with other.lock("key", wait=20_000):
            pass
    thread.join(20)
    other.close()


def test_a_block_that_has_lost_its_lease(joblog, eventually):
    """A block that lost its lease holds nothing: a nested one waits for the key's holder."""
    holds, leave = threading.Event(), threading.Event()

    def hold():
        with joblog.lock("key", wait=20_000):
            holds.set()
            assert leave.wait(20)

    with joblog.lock("key", ttl=300) as lease:
        thread = threading.Thread(target=hold)
        thread.start()
        joblog.unlock("key", fence=lease.fence, reason="stuck", who="ada")
        eventually(lambda: lease.lost)
        assert holds.wait(20)
        threading.Timer(0.3, leave.set).start()
        with joblog.lock("key", wait=20_000):
            pass
    thread.join(20)
