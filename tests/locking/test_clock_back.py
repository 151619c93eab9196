"""The database's clock is set back: no lease, heartbeat or queue position lasts longer."""

from __future__ import annotations

import time

import dramatiq
import pytest

from dramatiq_joblog import DuplicateJob, Exclusive, LockNotAcquired
from dramatiq_joblog.locking.leases import Claim
from dramatiq_joblog.locking.needs import SECTION
from dramatiq_joblog.recording.heartbeat import Heartbeat

HOUR = 3_600_000


@pytest.fixture
def held(joblog):
    """Return a function that makes a dead process hold a key, with a clock an hour ahead."""

    def hold(key="key", kind=SECTION, ttl=60_000):
        heartbeat = Heartbeat(joblog.core.tables, timeout=30_000)
        locks = joblog.core.locks
        claim = Claim(kind, key, "gone", "token", ttl, process=heartbeat.process)
        with joblog.database.connection_context():
            heartbeat.beat()
            locks.take(claim)
            locks.leases.forget("token")
            lock, worker = joblog.Lock, joblog.Worker
            lock.update(expires_at=lock.expires_at + HOUR).execute()
            worker.update(heartbeat_at=worker.heartbeat_at + HOUR, host="elsewhere").execute()

    return hold


def lease_left(joblog):
    lock = joblog.Lock
    row = lock.select().where(lock.owner == "gone").get()
    left = (row.expires_at - joblog.now()).total_seconds() * 1000
    joblog.release()
    return left


@pytest.mark.parametrize("ttl", [300, 60_000])
def test_a_lease_by_hand(joblog, held, ttl):
    """A request for a key shortens an old lease to at most its ttl."""
    held(ttl=ttl)
    assert lease_left(joblog) > HOUR / 2
    with pytest.raises(LockNotAcquired):
        joblog.lock("key").__enter__()
    assert lease_left(joblog) <= ttl
    if ttl < 1_000:
        with joblog.lock("key", wait=10_000):
            pass


def test_a_unique_key(joblog, held, make_broker, eventually):
    """An old unique key is released after its ttl."""
    held("key", "unique", ttl=300)
    broker = make_broker("stub", "last", joblog=joblog)
    work = dramatiq.actor(lambda: None, actor_name="work", unique="key", broker=broker)

    def sent():
        try:
            return work.send()
        except DuplicateJob:
            return None

    eventually(sent)


def test_a_heartbeat_of_the_future(joblog, held):
    """A heartbeat in the future is set to now, and all leases are shortened with it."""
    held()
    held("another")
    locks = joblog.core.locks
    beat = Heartbeat(joblog.core.tables, timeout=30_000, clock_went_back=locks.bound)
    with joblog.database.connection_context():
        beat.beat()
        assert {True} == {row.heartbeat_at <= joblog.now() for row in joblog.Worker.select()}
        assert {True} == {
            (row.expires_at - joblog.now()).total_seconds() <= 60
            for row in joblog.Lock.select().where(joblog.Lock.owner == "gone")
        }


def test_a_backlog_goes_on(joblog, held, make_broker, worker, eventually):
    """Jobs that wait behind a dead holder run one ttl after the clock was set back."""
    held(ttl=500)
    broker = make_broker("stub", "last", joblog=joblog, heartbeat=100, heartbeat_timeout=1_000)
    work = dramatiq.actor(
        lambda: None, actor_name="work", exclusive=Exclusive("key", on_conflict="wait")
    )
    began = time.monotonic()
    with worker(broker):
        work.send()
        eventually(lambda: joblog.jobs.finished().exists())
    assert time.monotonic() - began < 30


def test_doctor_says_so(joblog, held):
    """``doctor()`` reports that the clock was set back, for as long as old times remain."""
    assert {True} == {f.ok for f in joblog.doctor() if f.name == "clock"}
    held()
    [clock] = [f for f in joblog.doctor() if f.name == "clock"]
    assert not clock.ok
    assert "1 heartbeat(s) are in the future, and 1 lease(s) last" in clock.text


def test_what_is_kept_for_a_retry(joblog):
    """A section reserved until a late retry keeps its duration."""
    locks = joblog.core.locks
    with joblog.database.connection_context():
        locks.take(Claim(SECTION, "key", "job", "token", 1_000))
        locks.keep("key", "job", "token", HOUR)
        locks.bound()
        left = joblog.Lock.get(joblog.Lock.owner == "job").expires_at - joblog.now()
        assert left.total_seconds() > 3_500
