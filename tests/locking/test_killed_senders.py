"""Unique messages whose senders are killed while sending."""

from __future__ import annotations

import signal
from datetime import timedelta

import dramatiq
import pytest

from dramatiq_joblog import DuplicateJob, Unique

pytestmark = pytest.mark.process


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker shared with other processes."""
    return make_broker("redis", "last", joblog=joblog)


@pytest.fixture
def send_and_die(database_url, redis_url, broker, run_script):
    """Return a function that sends a message from a process that is killed at a place."""

    def send(place, number, *, until, keep="last", delay=0):
        arguments = [database_url, redis_url, broker.namespace, place, number, delay]
        died = run_script(
            "killed_sender.py", *arguments, UNIQUE_UNTIL=until or "ttl", UNIQUE_KEEP=keep
        )
        assert -signal.SIGKILL == died.returncode, died.stderr

    return send


@pytest.fixture
def actor_of(broker):
    """Return a function that declares the actor that the killed sender sends to."""

    def declare(until, keep="last"):
        done = []
        unique = Unique("key", until=until, keep=keep)

        @dramatiq.actor(unique=unique)
        def work(value):
            done.append(value)

        return work, done

    return declare


@pytest.mark.full
@pytest.mark.parametrize("until", ["finished", "started", None])
def test_the_newest_is_in_the_broker(
    joblog, broker, worker, actor_of, send_and_die, eventually, until
):
    """A message is superseded once the newer one is in the broker, even if its sender was killed.

    This holds even once the newer job has ended, and the key is free again.
    """
    work, done = actor_of(until)
    older = work.send_with_options(args=(1,), delay=3_000)
    send_and_die("enqueued", 2, until=until)
    with worker(broker):
        eventually(lambda: joblog.jobs.finished().count() == 1)
        assert "skipped" == eventually(
            lambda: (state := joblog.get(older.message_id).state) != "delayed" and state
        )
        broker.join("default")
    newer = joblog.jobs.finished().first()
    assert [2] == done
    reason = f"it was replaced by job {newer.jid}, the newest with the key 'key'"
    assert reason == joblog.get(older.message_id).skip_reason
    assert not joblog.Lock.select().where(joblog.Lock.kind == "former").exists()


@pytest.mark.few(1)
@pytest.mark.parametrize("until", ["finished", "started", None])
def test_the_newest_was_never_sent(
    joblog, broker, worker, actor_of, send_and_die, eventually, until, monkeypatch, caplog
):
    """A message whose newer message never reached the broker runs, after a timeout."""
    monkeypatch.setattr("dramatiq_joblog.recording.exclusive.COPY_DELAY", 200)
    work, done = actor_of(until)
    older = work.send(1)
    send_and_die("claimed", 2, until=until)
    with worker(broker):
        # It may still be on its way.
        eventually(lambda: "was skipped" in caplog.text)
        assert [] == done
        past = joblog.now() - timedelta(seconds=61)
        lock = joblog.Lock
        lock.update(acquired_at=past).where(lock.kind == "former").execute()
        lock.update(expires_at=past).where(lock.kind == "unique").execute()
        joblog.release()
        eventually(lambda: joblog.get(older.message_id).state == "finished")
    assert [1] == done


@pytest.mark.full
def test_a_third_message(joblog, broker, worker, actor_of, send_and_die, eventually):
    """A message that supersedes one never sent also supersedes the one before."""
    work, done = actor_of("started")
    older = work.send_with_options(args=(1,), delay=2_000)
    send_and_die("claimed", 2, until="started")
    work.send(3)
    with worker(broker):
        eventually(lambda: joblog.get(older.message_id).state == "skipped")
    assert [3] == done


@pytest.mark.few(1)
@pytest.mark.parametrize("place", ["enqueued", "claimed"])
def test_the_first_is_kept(joblog, broker, worker, actor_of, send_and_die, eventually, place):
    """A key whose sender was killed is held for a minute, or by its job if it was sent."""
    work, done = actor_of("finished", keep="first")
    send_and_die(place, 1, until="finished", keep="first")
    with pytest.raises(DuplicateJob):
        work.send(2)
    with worker(broker):
        if place == "enqueued":
            eventually(lambda: joblog.jobs.finished().count() == 1)
        else:
            joblog.Lock.update(expires_at=joblog.now()).execute()
            joblog.release()
        work.send(3)
        eventually(lambda: 3 in done)
    assert done == ([1, 3] if place == "enqueued" else [3])
