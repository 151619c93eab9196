"""Keys: how they are made, who holds them, and that two never hold one slot."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import tiers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dramatiq_joblog import (
    ConfigurationError,
    DatabaseAwayError,
    Exclusive,
    JobLog,
    LockNotAcquired,
    Unique,
)
from dramatiq_joblog.locking import cleaning
from dramatiq_joblog.locking.leases import Claim, Lease
from dramatiq_joblog.locking.needs import SECTION, UNIQUE
from dramatiq_joblog.locking.options import key_maker
from dramatiq_joblog.locking.release import freeing
from dramatiq_joblog.recording.heartbeat import Heartbeat


def import_prices(user_id, symbol="AAPL", *rest, **more):
    pass


def strict(user_id, order=None):
    pass


# Keys


@pytest.mark.parametrize(
    ("expected", "key", "args", "kwargs"),
    [
        ("finance:7", "finance:{user_id}", (7,), {}),
        ("finance:7", "finance:{user_id}", (), {"user_id": 7}),
        ("7-AAPL", "{user_id}-{symbol}", (7,), {}),
        ("7-IBM", "{user_id}-{symbol}", (7, "IBM"), {}),
        ("9", "{tenant}", (7,), {"tenant": 9}),
        ("all", "all", (7,), {}),
        ("{}", "{{}}", (7,), {}),
        ("8", lambda user_id: user_id + 1, (7,), {}),
    ],
)
def test_keys(expected, key, args, kwargs):
    """A key is a format over the actor's parameters, defaults included, or a callable."""
    assert expected == key_maker(key, import_prices, "it")(*args, **kwargs)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("finance:{userid}", "'userid' is not one of its parameters (user_id, order)"),
        ("{0}", "'0' is not one of its parameters"),
        ("{user_id", "is not a format"),
        ("", "a format string or a callable is needed"),
        (7, "a format string or a callable is needed"),
    ],
)
def test_keys_that_cannot_be_made(key, text):
    """A key that names no parameter, or is not a key, is refused."""
    with pytest.raises(ConfigurationError, match="actor 'strict'") as refused:
        key_maker(key, strict, "actor 'strict'")
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        (Exclusive, {"on_conflict": "block"}, "on_conflict='block' is not known"),
        (Exclusive, {"on_timeout": "run"}, "on_timeout='run' is not known"),
        (Exclusive, {"limit": 0}, "limit=0 must be a whole number of at least 1"),
        (Exclusive, {"limit": 2**31}, "limit=2147483648 must be"),
        (Exclusive, {"ttl": 1.5}, "ttl=1.5 must be a whole number"),
        (Exclusive, {"ttl": 10**20}, "and at most"),
        (Exclusive, {"wait_for": 10**20}, "and at most"),
        (Exclusive, {"wait_for": -1}, "wait_for=-1 must be"),
        (Unique, {"until": "dead"}, "until='dead' is not known"),
        (Unique, {"ttl": True}, "ttl=True must be"),
        (Unique, {"ttl": 10**20}, "and at most"),
    ],
)
def test_values_that_make_no_sense(kind, values, text):
    """An unknown or invalid value is refused."""
    with pytest.raises(ConfigurationError) as refused:
        kind("key", **values)
    assert text in str(refused.value)


# Leases


def test_a_lease_is_lost_when_it_was_not_renewed():
    """A lease is lost when it has expired, or when another holds the key."""
    lease = Lease("key", "token", 1, lasts=60_000, began=time.monotonic())
    assert not lease.lost
    lease.gone = True
    assert lease.lost
    assert Lease("key", "token", 1, lasts=1000, began=time.monotonic() - 2).lost


# The statements


@pytest.fixture
def locks(joblog):
    """Return the statements on an open connection."""
    with joblog.database.connection_context():
        yield joblog.core.locks


def claim(owner, token=None, key="key", **more):
    return Claim(SECTION, key, owner, token or f"{owner} 1", **{"ttl": 60_000} | more)


def expire(locks, key="key"):
    """Expire the leases of a key."""
    lock = locks.lock
    lock.update(expires_at=lock.expires_at - 120_000).where(lock.key == key).execute()


def test_one_at_a_time(locks):
    """A held key cannot be acquired until it is released; the fence grows by one."""
    assert 1 == locks.take(claim("a")).fence
    assert locks.take(claim("b")) is None
    assert "a" == locks.holders.first(SECTION, "key").owner
    locks.release(SECTION, "key", "a", "a 1")
    assert locks.holders.first(SECTION, "key") is None
    assert 2 == locks.take(claim("b")).fence


def test_only_the_owner_frees(locks):
    """A key is released only by the run that holds it, not even by another run of the job."""
    locks.take(claim("a"))
    locks.release(SECTION, "key", "b", "a 1")
    locks.release(SECTION, "key", "a", "a 2")
    assert locks.take(claim("c")) is None


def test_several_are_freed_at_once(locks):
    """Runs cancel what they hold, or what was kept for their jobs, and nothing of other runs."""
    for owner in "abcd":
        assert locks.take(claim(owner, f"{owner} 1", key=owner)) is not None
    locks.keep("b", "b", "b 1", 60_000)
    held = {"a": "a 1", "b": "b 2", "c": "c 2"}
    rows = [{"key": key, "owner": key, "token": token} for key, token in held.items()]
    freeing(locks.lock).write(rows)

    assert [None, None] == [locks.holders.first(SECTION, key) for key in "ab"]
    assert ["c", "d"] == [locks.holders.first(SECTION, key).owner for key in "cd"]
    fences = [locks.take(claim("x", f"x {key}", key=key)) for key in "abcd"]
    assert [2, 2, None, None] == [lease and lease.fence for lease in fences]


def test_a_lease_that_ran_out(locks):
    """A key with an expired lease is taken over, with a new fence, and the old holder knows."""
    first = locks.take(claim("a"))
    expire(locks)
    second = locks.take(claim("b"))

    assert (1, 2) == (first.fence, second.fence)
    locks.leases.renew()
    assert (True, False) == (first.lost, second.lost)
    locks.release(SECTION, "key", "a", "a 1")
    assert "b" == locks.holders.first(SECTION, "key").owner


def test_renewed(locks):
    """A renewed lease does not expire, and an expired one is recovered if no one took the key."""
    lease = locks.take(claim("a"))
    expire(locks)
    lease.deadline -= 120
    assert lease.lost
    locks.leases.renew()

    assert not lease.lost
    assert locks.take(claim("b")) is None


def test_a_copy_does_not_come_in(locks):
    """Another run of the holding job cannot acquire the key while the first one runs."""
    locks.take(claim("a", "a 1"))
    assert locks.take(claim("a", "a 2")) is None
    assert locks.take(claim("a", "a 2", reenter=True)) is not None


def test_kept_for_a_retry(locks):
    """Between two runs, a key is reserved for its job, for the given time."""
    locks.take(claim("a", "a 1"))
    locks.keep("key", "a", "a 1", 60_000)
    assert locks.take(claim("b")) is None
    assert 2 == locks.take(claim("a", "a 2")).fence
    locks.keep("key", "a", "a 2", 0)
    assert 3 == locks.take(claim("b")).fence


@pytest.mark.parametrize("limit", [2, 3])
def test_a_limit(locks, limit):
    """As many as the limit hold a key, none twice; the fence grows with each holder."""
    fences = [locks.take(claim(f"{n}", limit=limit)).fence for n in range(limit)]
    assert list(range(1, limit + 1)) == fences
    assert locks.take(claim("late", limit=limit)) is None
    assert locks.take(claim("0", "0 2", limit=limit)) is None
    locks.release(SECTION, "key", "1", "1 1")
    assert limit + 1 == locks.take(claim("late", limit=limit)).fence
    assert limit == len(locks.holders.owners("key"))


steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "release", "keep", "expire", "renew"]),
        st.sampled_from("abc"),
        st.integers(1, 2),
    ),
    max_size=25,
)


@settings(
    max_examples=tiers.examples(120),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=steps, limit=st.integers(1, 2))
def test_whatever_the_order(locks, steps, limit):
    """Never more holders than slots, a slot released by another, or a decreasing fence."""
    locks.lock.delete().execute()
    locks.forget_all()
    highest = 0
    for step, owner, run in steps:
        token = f"{owner} {run}"
        before = {row.slot: row for row in locks.lock.select()}
        if step == "take":
            lease = locks.take(claim(owner, token, limit=limit))
            if lease is not None:
                assert lease.fence > highest
                highest = lease.fence
        elif step == "release":
            locks.release(SECTION, "key", owner, token)
        elif step == "keep":
            locks.keep("key", owner, token, 60_000)
        elif step == "expire":
            expire(locks)
        else:
            locks.leases.renew()
        after = {row.slot: row for row in locks.lock.select()}
        assert len(after) <= limit
        owners = [row.owner for row in after.values() if row.owner is not None]
        assert len(owners) == len(set(owners))
        for slot, row in before.items():
            freed = row.owner is not None and after[slot].owner is None
            if freed:
                assert (step, row.owner) == ("release", owner)
                assert row.token in (None, token)


def test_waiters_in_order(joblog, job_factory):
    """``waiters`` are the waiting jobs of a key, longest first."""
    for jid, since in (("c", 30), ("a", 10), ("b", 20)):
        job_factory(jid=jid, state="waiting", section="key", waiting_since=since, eta=1)
    job_factory(jid="other", state="waiting", section="other", waiting_since=5, eta=1)
    job_factory(jid="done", state="finished", section="key", waiting_since=5)

    assert ["a", "b", "c"] == [job.jid for job in joblog.waiters("key")]
    assert ["b"] == [job.jid for job in joblog.waiters("key").offset(1).limit(1)]


def test_waiters_of_several_keys(joblog, job_factory, asked):
    """``lines`` are the waiting jobs of each key as ``waiters`` has them, in as many questions."""
    for number, key in enumerate(("a", "b", "a", "b", "a")):
        began = {"started_at": 5} if number == 4 else {}
        waits = {"waiting_since": 100 - number, "eta": 1, "section": key, **began}
        job_factory(jid=f"{number}", state="waiting", **waits)
    job_factory(jid="done", state="finished", section="a", waiting_since=5)
    job_factory(jid="elsewhere", state="waiting", section="c", waiting_since=5, eta=1)
    joblog.core.locks.reservations.keep(["b"], "elsewhere")
    keys = ["a", "b", "nobody"]

    found = joblog.waiters_by_key(keys)

    jids = {key: [job.jid for job in line] for key, line in found.items()}
    assert {"a": ["4", "2", "0"], "b": ["elsewhere", "3", "1"]} == jids
    assert jids == {key: [job.jid for job in joblog.waiters(key)] for key in keys[:2]}
    first = joblog.waiters_by_key(keys, limit=1)
    assert {"a": ["4"], "b": ["elsewhere"]} == {k: [j.jid for j in v] for k, v in first.items()}
    assert {} == joblog.waiters_by_key([])
    with asked() as few:
        joblog.waiters_by_key(["a"])
    with asked() as many:
        joblog.waiters_by_key(["a", *map(str, range(100))])
    assert len(few) == len(many)


def test_held_keys_tell_of_their_holders(joblog):
    """``locks`` has a key's holder, since when, the remaining lease and the fence."""
    with joblog.lock("report", ttl=50_000) as lease:
        [row] = joblog.locks
        assert (lease.token, 1, "section") == (row.token, row.fence, row.kind)
        assert 0 < row.lease_left <= 50_000
        assert row.since == row.acquired_at < row.expires_at
        assert 1 == joblog.locks.count()


def test_who_holds_it(joblog):
    """The error of a held key has its holder, since when and until when."""
    with joblog.lock("report", ttl=50_000):
        [row] = joblog.locks
        with pytest.raises(LockNotAcquired) as refused:
            joblog.lock("report").__enter__()
    error = refused.value
    assert ("report", row.owner, row.since) == (error.key, error.owner, error.since)
    assert row.expires_at <= error.until
    assert f"since {row.since:%Y-%m-%d %H:%M:%S} UTC, until" in str(error)


def test_the_fence_of_a_key_whatever_its_limit(locks):
    """The fence grows with each holder of a key, even if the limit changes."""
    fences = []
    for owner, limit in (("a", 3), ("b", 3), ("c", 3)):
        fences.append(locks.take(claim(owner, limit=limit)).fence)
    for owner in "abc":
        locks.release(SECTION, "key", owner, f"{owner} 1")
    fences.append(locks.take(claim("d")).fence)
    fences.append(locks.take(claim("e", limit=2)).fence)
    locks.release(SECTION, "key", "d", "d 1")
    # One at a time, it says: another is in by the higher limit.
    assert locks.take(claim("f")) is None
    locks.release(SECTION, "key", "e", "e 1")
    fences.append(locks.take(claim("f")).fence)
    assert [1, 2, 3, 4, 5, 6] == fences


def test_cleaning(locks):
    """Rows of free keys are deleted only after their fence is stored, which never decreases."""
    locks.take(claim("a"))
    for n in range(3):
        locks.take(claim(f"{n}", key="busy"))
        locks.release(SECTION, "busy", f"{n}", f"{n} 1")
    locks.take(Claim(UNIQUE, "expired", "x", None, 60_000))
    locks.lock.update(expires_at=1).where(locks.lock.kind == UNIQUE).execute()

    locks.clean()
    assert {"key", "busy", ""} == {row.key for row in locks.lock.select()}
    locks.clean(idle=-1, settled=-1)
    assert {"key", "busy", ""} == {row.key for row in locks.lock.select()}
    locks.clean(idle=-1)
    assert {"key", "busy", ""} == {row.key for row in locks.lock.select()}
    locks.clean(idle=-1, settled=-1)
    assert {"key", ""} == {row.key for row in locks.lock.select()}
    assert 4 == locks.take(claim("b", key="busy")).fence
    assert locks.take(claim("b")) is None


def test_cleaning_in_parts(locks, monkeypatch):
    """However many rows there are to delete, each call deletes a batch of them."""
    monkeypatch.setattr(cleaning, "BATCH", 2)
    locks.take(Claim(UNIQUE, "held", "x", None, 60_000))
    for n in range(5):
        locks.take(Claim(UNIQUE, f"{n}", "x", None, 60_000))
        locks.take(claim(f"{n}", key=f"section {n}"))
        locks.release(SECTION, f"section {n}", f"{n}", f"{n} 1")
    expired = (locks.lock.kind == UNIQUE) & (locks.lock.key != "held")
    locks.lock.update(expires_at=1).where(expired).execute()
    left = []

    for idle in (24 * 3600 * 1000, -1, -1):
        while locks.clean(idle=idle, settled=-1):
            left.append(locks.lock.select().count())
        left.append(locks.lock.select().count())

    assert [9, 7, 7, 7, 5, 3, 2] == left
    assert {"held", ""} == {row.key for row in locks.lock.select()}


def test_the_keys_of_a_process_that_has_ended(joblog):
    """If this host knows that a process has ended, its keys are released at the next check."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    locks = joblog.core.locks
    with joblog.database.connection_context():
        other, mine = (
            Heartbeat(joblog.core.tables, timeout=30_000, ended=locks.end_of) for _ in range(2)
        )
        other.beat()
        joblog.Worker.update(pid=process.pid).execute()
        locks.take(claim("a", process=other.process))
        mine.beat()
        assert locks.take(claim("b")) is None
        process.kill()
        process.communicate()
        mine.beat()
        assert 2 == locks.take(claim("b")).fence


# By hand


def test_by_hand(joblog):
    """A key is held until the end of the block, even if it fails, and is in ``.locks``."""
    with joblog.lock("report") as lease:
        assert (1, False) == (lease.fence, lease.lost)
        [row] = joblog.locks
        assert ("report", 0) == (row.key, row.slot)
        with pytest.raises(LockNotAcquired, match=r"lock 'report' is held by .* until"):
            joblog.lock("report").__enter__()
    assert [] == list(joblog.locks)
    with pytest.raises(ZeroDivisionError), joblog.lock("report"):
        raise ZeroDivisionError
    assert [] == list(joblog.locks)


def test_by_hand_with_waiting(joblog):
    """A waiting block gets the key soon after it is released, with a larger fence."""
    entered, fences = threading.Event(), []

    def wait():
        entered.set()
        with joblog.lock("report", wait=20_000) as lease:
            fences.append(lease.fence)

    waiting = threading.Thread(target=wait)
    with joblog.lock("report"):
        waiting.start()
        entered.wait(10)
    waiting.join(20)

    assert [2] == fences


def test_by_hand_for_longer_than_its_lease(joblog, eventually):
    """A key held for longer than its ttl is renewed, and no one else acquires it."""
    with joblog.lock("report", ttl=300) as lease:
        first = joblog.locks.get().expires_at
        eventually(lambda: joblog.locks.get().expires_at > first)
        end = time.monotonic() + 1.0
        eventually(lambda: time.monotonic() > end)
        with pytest.raises(LockNotAcquired):
            joblog.lock("report").__enter__()
        assert not lease.lost


def test_by_hand_in_a_transaction(joblog):
    """A key cannot be locked inside a transaction of the same database."""
    with (
        joblog.database.atomic(),
        pytest.raises(ConfigurationError, match="take the lock first"),
        joblog.lock("report"),
    ):
        pass


def test_by_hand_without_a_database(tmp_path):
    """While the database is unavailable, no key can be acquired."""
    joblog = JobLog(f"sqlite:///{tmp_path}/missing/jobs.db")
    with pytest.raises(DatabaseAwayError), joblog.lock("report"):
        pass
    joblog.close()


def test_many_threads_and_one_key(joblog):
    """Of many threads that lock a key, never two hold it, and each fence is new."""
    inside, fences, faults = [], [], []

    def work():
        for _ in range(5):
            with joblog.lock("report", wait=60_000) as lease:
                inside.append(1)
                faults.extend([len(inside)] if len(inside) > 1 else [])
                fences.append(lease.fence)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert [] == faults
    assert list(range(1, 31)) == fences


HOLD = """
import sys
from dramatiq_joblog import JobLog
joblog = JobLog(sys.argv[1])
with joblog.lock("report", ttl=2_000, wait=1_000) as lease:
    print(lease.fence, flush=True)
    sys.stdin.read()
"""


@pytest.mark.full
@pytest.mark.one_database
@pytest.mark.process
def test_by_hand_in_another_process(joblog, database_url):
    """A key is locked against another process, and released a lease after that is killed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, database_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "1" == holder.stdout.readline().strip()
    with pytest.raises(LockNotAcquired) as refused:
        joblog.lock("report", ttl=2_000, wait=200).__enter__()
    assert f":{holder.pid}:" in refused.value.owner
    holder.kill()
    holder.communicate()
    with joblog.lock("report", ttl=2_000, wait=20_000) as lease:
        assert 2 == lease.fence
