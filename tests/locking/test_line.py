"""One wait queue per key: who is next, whatever the policies, and even if some are gone."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
import time

import dramatiq
import pytest

from dramatiq_joblog import Exclusive, LockNotAcquired, current_job
from dramatiq_joblog.locking.by_hand import Wish
from dramatiq_joblog.locking.leases import Claim
from dramatiq_joblog.locking.presence import HELD_FOR, PATIENCE
from dramatiq_joblog.locking.waiters import Place
from dramatiq_joblog.schema.fields import instant_of

#: Milliseconds; longer than any test takes.
LONG = 60_000


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    broker = make_broker("stub", "last", joblog=joblog)
    broker.fail_fast_default = False
    return broker


@pytest.fixture
def declare():
    """Return a function that declares an actor in the section ``key``, and the order of runs."""
    order = []

    def make(policy, **options):
        exclusive = Exclusive("key", on_conflict=policy, **options)

        @dramatiq.actor(actor_name=f"work_{policy}", exclusive=exclusive, min_backoff=LONG)
        def work(name):
            order.append(name)

        return work

    make.order = order
    return make


def now():
    return time.time_ns() // 1_000_000


def put_in_line(job_factory, jid, *, waits=10_000, eta=LONG, **more):
    """Insert a waiter of ``key`` without a message."""
    row = {"state": "waiting", "section": "key", "started_at": None, "finished_at": None}
    row |= {"waiting_since": now() - waits, "eta": now() + eta}
    return job_factory(jid=jid, **row | more)


# A job that has begun


@pytest.mark.parametrize("policy", ["skip", "wait", "retry", "fail"])
@pytest.mark.parametrize("state", ["lost", "started", "retrying"])
def test_a_job_that_has_begun_waits(
    joblog, broker, worker, job_factory, declare, eventually, policy, state
):
    """A job that lost its worker, or whose retry came late, waits whatever its policy."""
    work = declare(policy)
    message = work.message("begun")
    message.options["retries"] = int(state == "retrying")
    job_factory(
        jid=message.message_id,
        state=state,
        token="a",
        section="key",
        finished_at=None,
        actor=work.actor_name,
    )
    with worker(broker):
        with joblog.lock("key"):
            broker.enqueue(message)
            eventually(lambda: joblog.get(message.message_id).state == "waiting")
            assert joblog.get(message.message_id).started_at is not None
        eventually(lambda: joblog.get(message.message_id).state == "finished")

    assert ["begun"] == declare.order
    assert "waited" in [f.outcome for f in joblog.get(message.message_id).failures]


@pytest.mark.parametrize("policy", ["skip", "fail"])
def test_a_job_that_runs_again_on_purpose_is_a_newcomer(
    joblog, broker, worker, job_factory, declare, eventually, policy
):
    """A job that has ended, and is enqueued again, follows its policy."""
    work = declare(policy)
    message = work.message("again")
    job_factory(jid=message.message_id, state="dead", token="a", section="key")
    with worker(broker), joblog.lock("key"):
        broker.enqueue(message)
        state = {"skip": "skipped", "fail": "dead"}[policy]
        why = joblog.Job.dead_reason if policy == "fail" else joblog.Job.skip_reason
        eventually(joblog.jobs.in_state(state).where(why.is_null(False)).exists)

    assert [] == declare.order


def test_a_retry_for_its_section_has_not_begun(joblog, broker, worker, declare, eventually):
    """A job that was only refused so far is refused again, and does not wait."""
    work = declare("retry", limit=1)
    message = work.message("refused")
    message.options.update(min_backoff=10, max_backoff=20, max_retries=3)
    with worker(broker), joblog.lock("key"):
        broker.enqueue(message)
        eventually(lambda: joblog.get(message.message_id).state == "dead")

    assert ["SectionTakenError"] * 4 == [
        f.error_type for f in joblog.get(message.message_id).failures
    ]


def test_who_has_begun_comes_first(joblog, broker, worker, declare, job_factory, eventually):
    """A job that has already begun comes before those that have waited longer and have not."""
    work = declare("wait")
    first = work.message("begun")
    with worker(broker, worker_threads=1):
        with joblog.lock("key"):
            waits = work.send("waits")
            eventually(lambda: joblog.get(waits.message_id).state == "waiting")
            row = {"state": "lost", "token": "a", "section": "key", "finished_at": None}
            job_factory(jid=first.message_id, **row)
            broker.enqueue(first)
            eventually(lambda: joblog.get(first.message_id).state == "waiting")
            assert [first.message_id, waits.message_id] == [j.jid for j in joblog.waiters("key")]
        eventually(lambda: joblog.jobs.finished().count() == 2)

    assert ["begun", "waits"] == declare.order


# Newcomers


@pytest.mark.parametrize(
    ("policy", "state"),
    [("skip", "skipped"), ("wait", "waiting"), ("retry", "retrying"), ("fail", "dead")],
)
def test_newcomers_stand_behind(
    joblog, broker, worker, job_factory, declare, eventually, policy, state
):
    """For a new job of any policy, a free key counts as held if a present waiter needs it."""
    put_in_line(job_factory, "waiter")
    work = declare(policy)
    with worker(broker):
        message = work.send("newcomer")
        job = eventually(
            lambda: joblog.jobs.in_state(state).where(joblog.Job.jid != "waiter").first()
        )

    assert [] == declare.order
    assert job.jid == message.message_id
    if policy != "wait":
        told = job.skip_reason or job.error_message
        assert "is reserved for job waiter, which has waited for it since" in told


@pytest.mark.parametrize("waiters", [1, 2])
def test_as_many_as_there_is_room_for(joblog, broker, worker, job_factory, declare, waiters):
    """A new job runs if more slots are free than present waiters need."""
    for n in range(waiters):
        put_in_line(job_factory, f"waiter {n}")
    work = declare("skip", limit=2)
    with worker(broker):
        message = work.send("newcomer")
        broker.join("default")

    assert ("finished" if waiters < 2 else "skipped") == joblog.get(message.message_id).state


def test_by_hand_stands_behind(joblog, job_factory):
    """A manual lock does not overtake a present waiter, and names it."""
    put_in_line(job_factory, "waiter")
    joblog.release()
    with pytest.raises(
        LockNotAcquired, match="is reserved for job waiter, which has waited for it"
    ):
        joblog.lock("key", wait=100).__enter__()
    with joblog.lock("key", limit=2):
        pass


@pytest.fixture
def stand(joblog):
    """Return a function that makes a block wait for ``key`` whose messages no process holds."""
    locks = joblog.core.locks
    claims = []

    def make(*, waits=10_000, lasts=None):
        claim = Claim("section", "key", "host:1:2", secrets.token_hex(14), LONG, by_hand=True)
        claims.append(claim)
        locks.hands.enter(claim, now() - waits)
        if lasts is not None:
            lock = joblog.Lock
            mine = lock.update(expires_at=now() + lasts).where(lock.token == claim.token)
            mine.execute()
        joblog.release()

    yield make
    for claim in claims:
        locks.hands.leave(claim)
    joblog.release()


@pytest.mark.parametrize("policy", ["skip", "wait", "retry", "fail"])
def test_newcomers_stand_behind_a_block(joblog, broker, worker, stand, declare, eventually, policy):
    """For a new job, the key is reserved for a waiting manual lock, and the reason says so."""
    work = declare(policy)
    stand(lasts=4_900)
    with worker(broker):
        message = work.send("newcomer")
        state = {"skip": "skipped", "wait": "waiting", "retry": "retrying", "fail": "dead"}[policy]
        eventually(lambda: joblog.get(message.message_id).state == state)
        row = joblog.get(message.message_id)
        told = {"skip": row.skip_reason, "wait": "is reserved for host:1:2, a manual"}.get(policy)
        told = told or row.error_message
        assert "is reserved for host:1:2, a manual lock that has waited since"[: len(told)] in told
        if policy == "wait":
            # Nobody looks for that block any more.
            eventually(lambda: joblog.get(message.message_id).state == "finished")


def test_as_many_as_there_is_room_for_beside_a_block(joblog, broker, worker, stand, declare):
    """A new job runs if more slots are free than blocks need."""
    work = declare("skip", limit=2)
    stand()
    with worker(broker):
        work.send("newcomer")
        broker.join(work.queue_name)
    assert ["newcomer"] == declare.order


@pytest.mark.parametrize("lasts", [-1, LONG])
def test_a_block_that_is_gone(joblog, broker, worker, stand, declare, lasts):
    """A waiting block of a killed process is ignored, even if the clock was set back since."""
    work = declare("skip")
    stand(lasts=lasts)
    with worker(broker):
        work.send("newcomer")
        broker.join(work.queue_name)
    assert ["newcomer"] == declare.order


@pytest.mark.parametrize("policy", ["skip", "retry", "fail"])
def test_a_block_beside_a_stream_of_newcomers(joblog, broker, worker, declare, eventually, policy):
    """A waiting manual lock comes before all later requests."""
    work = declare(policy)
    first = joblog.lock("key")
    first.__enter__()
    inside, go = threading.Event(), threading.Event()

    def block():
        with joblog.lock("key", wait=LONG):
            declare.order.append("block")
            inside.set()
            go.wait(30)

    waits = threading.Thread(target=block)
    waits.start()
    try:
        eventually(joblog.Lock.select().where(joblog.Lock.kind == "hand").exists)
        with worker(broker):
            first.__exit__(None, None, None)
            while not inside.is_set():
                work.send("newcomer")
            assert ["block"] == declare.order
    finally:
        go.set()
        waits.join()
    assert not joblog.Lock.select().where(joblog.Lock.kind == "hand").exists()


def test_jobs_and_blocks_in_turn(joblog, broker, worker, declare, eventually):
    """Jobs and blocks of one key are served in the order in which they began to wait."""
    work, threads = declare("wait"), []

    def block(name):
        with joblog.lock("key", wait=LONG):
            declare.order.append(name)

    def in_line():
        hands = joblog.Lock.select().where(joblog.Lock.kind == "hand").count()
        return hands + joblog.jobs.waiting().count()

    def wait_for_line(length):
        eventually(lambda: in_line() == length)
        # Who begins to wait in the same millisecond has no order.
        seen = joblog.core.locks.now()
        eventually(lambda: joblog.core.locks.now() > seen)

    with worker(broker):
        with joblog.lock("key"):
            for place in range(3):
                threads.append(threading.Thread(target=block, args=(f"block {place}",)))
                threads[-1].start()
                wait_for_line(2 * place + 1)
                work.send(f"job {place}")
                wait_for_line(2 * place + 2)
        for thread in threads:
            thread.join()
        eventually(lambda: len(declare.order) == 6)
    assert [f"{kind} {place}" for place in range(3) for kind in ("block", "job")] == declare.order


def test_a_job_and_a_block_of_the_same_millisecond(joblog, job_factory):
    """A job goes first if a manual lock began to wait in the same millisecond."""
    locks, since = joblog.core.locks, now() - 1_000
    block = Claim("section", "key", "host:1:2", secrets.token_hex(14), LONG, by_hand=True)
    put_in_line(job_factory, "same", waits=0)
    joblog.Job.update(waiting_since=instant_of(since)).execute()

    def attempt():
        locks.hands.enter(block, since)
        first = locks.waiters.next_of("key", 1)
        return first, locks.take_in_turn(block, Place(since=since, by_hand=True))

    assert ([("same", True)], None) == joblog.core.writer.call(attempt)


def test_a_block_whose_time_is_over_at_once(joblog, monkeypatch):
    """A block that makes no other attempt keeps nobody out, however long its answer takes."""
    locks, seen = joblog.core.locks, []
    refuse = Wish.refusal

    def refusing(wish):
        seen.append(joblog.Lock.select().where(joblog.Lock.kind == "hand").count())
        return refuse(wish)

    def slow(claim, place):
        # As a busy database is.
        eventually_over = time.monotonic() + 0.03
        while time.monotonic() < eventually_over:
            pass
        return take(claim, place)

    take = locks.take_in_turn
    monkeypatch.setattr(locks, "take_in_turn", slow)
    monkeypatch.setattr(Wish, "refusal", refusing)
    with joblog.lock("key"), pytest.raises(LockNotAcquired), joblog.lock("key", wait=20):
        pass
    assert [0] == seen


def test_a_block_whose_answer_comes_late(joblog, monkeypatch):
    """A block that has kept others out makes one more attempt, though its time is over by then."""
    locks, queue_up = joblog.core.locks, Wish._queue_up
    holder = Claim("section", "key", "other", "a" * 28, LONG)
    joblog.core.writer.call(lambda: locks.take(holder))

    def late(wish, claim):
        queue_up(wish, claim)
        while not wish.is_over:
            pass
        locks.release("section", "key", holder.owner, holder.token)

    monkeypatch.setattr(Wish, "_queue_up", late)
    with joblog.lock("key", wait=1_000) as lease:
        assert not lease.lost


def test_a_block_that_gives_up(joblog):
    """A block whose wait timed out has left the wait queue."""
    with joblog.lock("key"), pytest.raises(LockNotAcquired), joblog.lock("key", wait=200):
        pass
    assert not joblog.Lock.select().where(joblog.Lock.kind == "hand").exists()


def test_by_hand_before_who_comes_later(joblog, job_factory):
    """A manual lock that has waited longer than a job comes before it."""
    entered = threading.Event()

    def wait():
        with joblog.lock("key", wait=LONG):
            entered.set()
        joblog.release()

    with joblog.lock("key"):
        thread = threading.Thread(target=wait)
        thread.start()
        put_in_line(job_factory, "later", waits=-1_000)
        joblog.release()
    assert entered.wait(10)
    thread.join()


@pytest.mark.few(1)
@pytest.mark.parametrize("policy", ["skip", "retry", "fail"])
def test_waiters_beside_a_stream_of_newcomers(joblog, broker, worker, eventually, policy):
    """Waiters are served one after the other, however many new jobs arrive meanwhile."""
    done, inside, most = threading.Event(), [], []

    def stay(name):
        inside.append(name)
        most.append(len(inside))
        time.sleep(0.005)
        inside.remove(name)

    options = {"max_retries": 1000 * (policy == "retry"), "min_backoff": 5, "max_backoff": 10}
    waits = dramatiq.actor(
        stay, actor_name="waits", exclusive=Exclusive("key", on_conflict="wait", wait_for=60_000)
    )
    hurries = dramatiq.actor(
        stay, actor_name="hurries", exclusive=Exclusive("key", on_conflict=policy), **options
    )

    def newcomers():
        for n in itertools.takewhile(lambda _: not done.is_set(), itertools.count()):
            if broker.queues["default"].qsize() < 2:
                hurries.send(f"newcomer {n}")
            with contextlib.suppress(LockNotAcquired), joblog.lock("key", wait=5):
                stay("by hand")
        joblog.release()

    threads = [threading.Thread(target=newcomers) for _ in range(2)]
    with worker(broker, worker_threads=4):
        with joblog.lock("key"):
            for n in range(6):
                waits.send(f"waiter {n}")
            eventually(lambda: joblog.jobs.waiting().of_actor("waits").count() == 6)
            # Several threads took them: whose turn it is goes by who has waited longest.
            since = (joblog.Job.waiting_since, joblog.Job.id)
            waiting = [job.jid for job in joblog.jobs.waiting().order_by(*since)]
        for thread in threads:
            thread.start()
        eventually(lambda: joblog.jobs.of_actor("waits").finished().count() == 6, timeout=50)
        done.set()
        for thread in threads:
            thread.join()

    jobs = [joblog.get(jid) for jid in waiting]
    began = [job.started_at for job in jobs]
    assert sorted(began) == began
    assert {1} == set(most)


# Who is absent


@pytest.mark.parametrize("policy", ["skip", "wait", "retry", "fail"])
def test_an_absent_waiter_is_not_waited_for(joblog, broker, worker, job_factory, declare, policy):
    """Absent waiters are ignored, however many there are."""
    for n in range(20):
        put_in_line(job_factory, f"absent {n}", eta=-PATIENCE - 1)
    work = declare(policy)
    with worker(broker):
        messages = [work.send("newcomer")]
        broker.join("default")
    with joblog.lock("key"):
        pass

    assert {"finished"} == {joblog.get(m.message_id).state for m in messages}


def test_absent_waiters_do_not_slow_others_down(
    joblog, broker, worker, job_factory, declare, eventually
):
    """Waiters behind absent ones run as soon as the section is free."""
    for n in range(20):
        put_in_line(job_factory, f"absent {n}", eta=-PATIENCE - 1)
    work = declare("wait")
    with worker(broker):
        with joblog.lock("key"):
            for n in range(5):
                message = work.send(n)
                eventually(lambda jid=message.message_id: joblog.get(jid).state == "waiting")
            began = time.monotonic()
        eventually(lambda: joblog.jobs.finished().count() == 5)

    assert list(range(5)) == declare.order
    assert time.monotonic() - began < PATIENCE / 1000


def test_waiters_are_looked_after(joblog, broker, worker, declare, eventually, monkeypatch):
    """The process that holds a waiter's message extends it for as long as it holds it."""
    monkeypatch.setattr("dramatiq_joblog.broker.waiter_heartbeats.HEARTBEAT_EVERY", 100)
    work = declare("wait")
    with worker(broker):
        with joblog.lock("key"):
            message = work.send("waits")
            first = eventually(lambda: joblog.get(message.message_id).eta)
            eventually(lambda: joblog.get(message.message_id).eta > first)
            assert (joblog.get(message.message_id).eta - joblog.now()).total_seconds() < (
                HELD_FOR / 1000 + 1
            )
        eventually(lambda: joblog.get(message.message_id).state == "finished")


def test_a_waiter_of_before_the_clock_went_back(joblog, job_factory):
    """A waiter with an eta too far in the future is absent."""
    put_in_line(job_factory, "absent", eta=3_600_000)
    joblog.release()
    with joblog.lock("key"):
        pass


def test_a_waiter_with_a_limit_of_its_own(joblog, broker, worker, job_factory, eventually):
    """The fence and the lease of a job that waited are its own."""
    seen = []

    @dramatiq.actor(exclusive=Exclusive("key", limit=2, on_conflict="wait"))
    def work():
        seen.append((current_job().fence, current_job().lease_lost))

    with worker(broker):
        with joblog.lock("key", limit=2), joblog.lock("key", limit=2):
            work.send()
            eventually(joblog.jobs.waiting().exists)
        eventually(joblog.jobs.finished().exists)

    assert [(3, False)] == seen
