"""Unique keys that keep the newest message."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import dramatiq
import pytest
from dramatiq.middleware import GroupCallbacks, default_middleware
from dramatiq.rate_limits.backends import StubBackend

from dramatiq_joblog import ConfigurationError, DuplicateJob, Exclusive, Unique
from dramatiq_joblog.broker.claims import Claims


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log and group callbacks."""
    stack = [*(m() for m in default_middleware), GroupCallbacks(StubBackend())]
    broker = make_broker("stub", "last", joblog=joblog, middleware=stack)
    broker.fail_fast_default = False
    return broker


@pytest.fixture
def work(broker):
    """Return an actor that keeps its newest message."""
    done = []

    @dramatiq.actor(unique=Unique("{key}", keep="last"))
    def work(key, n):
        done.append(n)

    work.fn.done = done
    return work


def done(actor):
    return actor.fn.done


def test_debounce(joblog, broker, worker, work, eventually):
    """Of several delayed messages, the last runs; the others are skipped and name the next."""
    sent = [work.send_with_options(args=("a", n), delay=600) for n in range(4)]
    other = work.send_with_options(args=("b", 9), delay=600)
    states = [joblog.get(m.message_id).state for m in sent]
    assert ["skipped"] * 3 + ["delayed"] == states
    for older, newer in itertools.pairwise(sent):
        reason = f"it was replaced by job {newer.message_id}, the newest with the key 'a'"
        assert reason == joblog.get(older.message_id).skip_reason
    with worker(broker):
        eventually(lambda: joblog.jobs.finished().count() == 2)
        broker.join("default")
    assert [3, 9] == sorted(done(work))
    assert 3 == joblog.jobs.skipped().count()
    assert "finished" == joblog.get(other.message_id).state
    assert 0 == joblog.Lock.select().where(joblog.Lock.kind == "unique").count()


def test_one_that_has_begun_does_not_give_way(joblog, broker, worker, eventually):
    """A job that runs, or is retried, keeps its key, and a newer message is a duplicate."""
    inside, leave = threading.Event(), threading.Event()

    @dramatiq.actor(unique=Unique("key", keep="last"))
    def work():
        inside.set()
        leave.wait(30)

    with worker(broker):
        first = work.send()
        assert inside.wait(10)
        with pytest.raises(DuplicateJob, match=first.message_id):
            work.send()
        leave.set()
        eventually(lambda: joblog.get(first.message_id).state == "finished")
        again = work.send()
        eventually(lambda: joblog.get(again.message_id).state == "finished")


def test_until_it_has_started(joblog, broker, worker, eventually):
    """With ``until="started"`` a message that is sent during the run is the next."""
    inside, leave = threading.Event(), threading.Event()

    @dramatiq.actor(unique=Unique("key", until="started", keep="last"))
    def work(n):
        inside.set()
        leave.wait(30)

    with worker(broker):
        work.send(1)
        assert inside.wait(10)
        second = work.send_with_options(args=(2,), delay=60_000)
        third = work.send(3)
        assert "skipped" == joblog.get(second.message_id).state
        leave.set()
        eventually(lambda: joblog.get(third.message_id).state == "finished")


def test_the_older_waits_for_its_keys(joblog, broker, worker, eventually):
    """A job that is replaced while it waits for several keys leaves none of them reserved."""
    keys = [Exclusive("a", on_conflict="wait"), Exclusive("b", on_conflict="wait")]
    work = dramatiq.actor(
        lambda n: None, actor_name="work", unique=Unique("key", keep="last"), exclusive=keys
    )
    reserved = joblog.Lock.select().where(joblog.Lock.kind == "wait")
    with joblog.lock("b"):
        with worker(broker):
            first = work.send(1)
            eventually(lambda: [first.message_id] == [lock.owner for lock in reserved.clone()])
        second = work.send(2)
        assert "skipped" == joblog.get(first.message_id).state
        assert [] == list(reserved.clone())
    with worker(broker):
        eventually(lambda: joblog.get(second.message_id).state == "finished")


def test_the_older_begins_during_the_send(joblog, broker, worker, monkeypatch):
    """A message is sent if the older one begins, and frees the key, after it held it."""
    work = dramatiq.actor(
        lambda n: None, actor_name="work", unique=Unique("key", until="started", keep="last")
    )
    take_place = Claims._take_place
    begun = []

    def begins_first(claims, claim, former):
        if not begun:
            begun.append(former)
            with worker(broker):
                broker.join("default")
        return take_place(claims, claim, former)

    first = work.send(1)
    monkeypatch.setattr(Claims, "_take_place", begins_first)
    second = work.send(2)
    assert [first.message_id] == begun
    with worker(broker):
        broker.join("default")
    states = [joblog.get(m.message_id).state for m in (first, second)]
    assert ["finished", "finished"] == states


def test_many_senders_at_once(joblog, broker, worker, work, eventually):
    """Of messages that threads send at the same time, one runs, and no sender is refused."""
    barrier = threading.Barrier(8)

    def send(n):
        barrier.wait()
        return [work.send_with_options(args=("a", n), delay=500).message_id for _ in range(4)]

    with ThreadPoolExecutor(8) as threads:
        jids = [jid for sent in threads.map(send, range(8)) for jid in sent]
    with worker(broker):
        eventually(lambda: joblog.jobs.finished().exists())
        broker.join("default")
    counts = Counter(joblog.get(jid).state for jid in jids)
    assert {"finished": 1, "skipped": 31} == counts


def test_one_that_waits(joblog, broker, worker, eventually):
    """A job that waits for its section has not begun: it is superseded, and its wait ends."""
    work = dramatiq.actor(
        lambda: None,
        actor_name="work",
        exclusive=Exclusive("section", on_conflict="wait"),
        unique=Unique("key", keep="last"),
    )
    with worker(broker):
        with joblog.lock("section"):
            first = work.send()
            eventually(lambda: joblog.get(first.message_id).state == "waiting")
            second = work.send()
            eventually(lambda: joblog.get(second.message_id).state == "waiting")
            assert [second.message_id] == [job.jid for job in joblog.waiters("section")]
        eventually(lambda: joblog.get(second.message_id).state == "finished")
    assert ("skipped", None) == (
        joblog.get(first.message_id).state,
        joblog.get(first.message_id).waiting_since,
    )


def test_one_whose_row_came_later(joblog, broker, worker, work, eventually):
    """A message whose row was written only after it was superseded is skipped when delivered."""
    first, second = work.message("a", 1), work.message("a", 2)
    broker.enqueue(first)
    joblog.core.writer.flush()
    row = joblog.get(first.message_id)
    row.delete_instance()
    broker.enqueue(second)
    joblog.core.writer.flush()
    # As if the log had come to know of it only now.
    row.id = None
    row.save(force_insert=True)
    joblog.release()
    with worker(broker):
        eventually(lambda: joblog.get(first.message_id).state == "skipped")
        eventually(lambda: joblog.get(second.message_id).state == "finished")
    assert [2] == done(work)
    assert f"it was replaced by job {second.message_id}" in joblog.get(first.message_id).skip_reason


def test_a_send_that_fails(joblog, broker, worker, work, eventually, monkeypatch):
    """If the newer message cannot be sent, the older one is the newest again, and runs."""
    first = work.send_with_options(args=("a", 1), delay=300)
    with monkeypatch.context() as patch:
        patch.delitem(broker.queues, "default")
        with pytest.raises(dramatiq.QueueNotFound):
            work.send("a", 2)
    assert "delayed" == joblog.get(first.message_id).state
    with worker(broker):
        eventually(lambda: joblog.get(first.message_id).state == "finished")
    assert [1] == done(work)


def test_one_that_is_on_its_way(joblog, broker, worker, work, eventually, monkeypatch, caplog):
    """While it is unknown whether the newer one is sent, the older is requeued when delivered."""
    monkeypatch.setattr("dramatiq_joblog.recording.exclusive.COPY_DELAY", 100)
    first = work.send("a", 1)
    newer = work.message("a", 2)
    with joblog.database.connection_context():
        newest = joblog.core.newest
        claim = joblog.core.locks.lock
        claim.update(owner=newer.message_id, process="sending").where(
            claim.kind == "unique"
        ).execute()
        with worker(broker):
            eventually(lambda: "was skipped" in caplog.text)
            assert [] == done(work)
            newest.give_back("a", newer.message_id, first.message_id, 60_000)
            eventually(lambda: joblog.get(first.message_id).state == "finished")
    assert [1] == done(work)


def test_in_a_group(joblog, broker, worker, work, eventually):
    """A superseded member counts as done, like any other duplicate."""
    ends = dramatiq.actor(lambda: done(work).append("all"), actor_name="ends")
    members = dramatiq.group([work.message("a", 1), work.message("a", 2), work.message("b", 3)])
    members.add_completion_callback(ends.message())
    members.run()
    with worker(broker):
        eventually(lambda: "all" in done(work))
    assert [2, 3, "all"] == sorted(done(work), key=str)


def test_a_retry_of_the_newest(joblog, broker, worker, eventually):
    """A retry is never superseded."""
    runs = []

    @dramatiq.actor(
        unique=Unique("key", until="started", keep="last"), min_backoff=300, max_backoff=350
    )
    def work(n):
        runs.append(n)
        if runs == [1]:
            raise ValueError

    with worker(broker):
        first = work.send(1)
        eventually(lambda: joblog.get(first.message_id).state == "retrying")
        work.send_with_options(args=(2,), delay=2_000)
        eventually(lambda: joblog.get(first.message_id).state == "finished")
    assert [1, 1] == runs


def test_what_is_not_known():
    """Other values are refused."""
    with pytest.raises(ConfigurationError, match="keep='newest' is not known"):
        Unique("key", keep="newest")
