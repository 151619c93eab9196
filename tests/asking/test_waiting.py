"""Waiting for jobs, and following them, from outside of them."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import threading

import dramatiq
import pytest
from dramatiq import group, pipeline
from watching import watched

from dramatiq_joblog import (
    ConfigurationError,
    JobLogError,
    JobNotFound,
    State,
    WaitTimeout,
    current_job,
)
from dramatiq_joblog.asking import watcher


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    broker = make_broker("stub", "last", joblog=joblog)
    broker.fail_fast_default = False
    return broker


@pytest.fixture
def gated(broker):
    """Return an actor whose jobs end once its event is set."""
    event = threading.Event()

    @dramatiq.actor(max_retries=0)
    def gated(fails=False):
        assert event.wait(10)
        if fails:
            raise ValueError("no")

    gated.event = event
    yield gated
    event.set()


@pytest.mark.every_database
def test_waiting_for_a_job_that_goes_on(joblog, broker, gated, worker, elsewhere, eventually):
    """A wait returns the job as it ended, and then the job is no longer watched."""
    with worker(broker):
        message = gated.send()
        wait = elsewhere(joblog.wait, message.message_id, timeout=10_000)
        eventually(lambda: watched(joblog))
        gated.event.set()
        job = wait()

    assert job == joblog.get(message.message_id)
    assert job.state == State.FINISHED
    assert watched(joblog) == []


def test_waiting_for_a_job_that_has_ended(joblog, job_factory):
    """A job that has ended is returned at once, even with no time to wait."""
    job = job_factory(state="dead")

    assert joblog.wait(job.jid, timeout=0) == job
    assert joblog.wait(job.jid) == job


def test_waiting_for_a_job_without_a_row(joblog, job_factory, elsewhere, eventually):
    """A job without a row yet can be waited for, because its row is written later."""
    wait = elsewhere(joblog.wait, "to-come", timeout=10_000)
    eventually(lambda: watched(joblog))
    job_factory(jid="to-come", state="skipped")

    assert wait().state == State.SKIPPED


@pytest.mark.parametrize(
    ("state", "text"),
    [(None, "the log has no such job yet"), ("lost", "it is lost")],
)
def test_a_wait_that_is_over(joblog, job_factory, state, text):
    """The error of a timeout reports what is known about the job, and is a TimeoutError."""
    if state is not None:
        job_factory(jid="slow", state=state)

    with pytest.raises(WaitTimeout, match=f"job slow did not end within 60 ms: {text}") as caught:
        joblog.wait("slow", timeout=60)
    assert ("slow", 60, state) == (caught.value.jid, caught.value.timeout, caught.value.state)
    assert isinstance(caught.value, TimeoutError)
    assert watched(joblog) == []


def test_a_job_that_is_pruned_meanwhile(joblog, job_factory, elsewhere, eventually):
    """A wait for a job whose row is deleted raises an error."""
    job = job_factory(state="started")
    wait = elsewhere(joblog.wait, job.jid, timeout=10_000)
    eventually(lambda: next((x.seen for x in joblog.core.watcher._watch._listeners), None))
    job.delete_instance()

    assert isinstance(wait(), JobNotFound)


def test_closing_the_log(joblog, job_factory, elsewhere, eventually):
    """Closing the log ends its waits with an error, and new waits are possible."""
    # Another test's log may have a watcher that lingers.
    others = set(threading.enumerate())
    wait = elsewhere(joblog.wait, "none")
    follow = elsewhere(lambda: list(joblog.follow("none")))
    eventually(lambda: len(watched(joblog)) == 2)
    joblog.close()

    for error in (wait(), follow()):
        assert isinstance(error, JobLogError)
        assert "closed" in str(error)
    own = set(threading.enumerate()) - others
    assert "dramatiq_joblog watcher" not in {thread.name for thread in own}
    assert joblog.wait(job_factory().jid, timeout=5_000).state == State.FINISHED


def test_nobody_is_asked_for_when_nobody_waits(joblog, job_factory, eventually, monkeypatch):
    """The thread and its connection end once there are no more waits."""
    monkeypatch.setattr(watcher, "LINGER", 50)
    joblog.wait(job_factory().jid)

    eventually(lambda: joblog.core.watcher._watch._thread is None)
    assert joblog.core.watcher._watch._connection._raw is None


@pytest.mark.parametrize("again", ["enqueued", "started"])
def test_a_dead_job_that_runs_again(joblog, job_factory, elsewhere, eventually, again):
    """For a job that runs again under its own jid, the new end is waited for."""
    job = job_factory(state=again, attempt=2)
    wait = elsewhere(joblog.wait, job.jid, timeout=10_000)
    eventually(lambda: next((x.seen for x in joblog.core.watcher._watch._listeners), None))
    job.state = "dead"
    job.save()

    assert wait().state == State.DEAD


def test_a_job_that_is_requeued(joblog, broker, gated, worker):
    """A requeued job has a new jid: each of the two is waited for separately."""
    gated.event.set()
    with worker(broker):
        first = joblog.wait(gated.send(fails=True).message_id, timeout=10_000)
        again = joblog.requeue(first.jid)
        second = joblog.wait(again.message_id, timeout=10_000)

    assert (first.state, second.state) == (State.DEAD, State.DEAD)
    assert second.replay_of == first.jid


def test_a_thousand_that_wait(joblog, job_factory, elsewhere, eventually, monkeypatch):
    """All waits of a process share one query at a time, of bounded length."""
    asked, guard, together = [], threading.Lock(), []
    read = watcher._Watch._read

    def reading(self, jids, by_jid):
        together.append(guard.acquire(blocking=False))
        asked.append(len(jids))
        try:
            return read(self, jids, by_jid)
        finally:
            guard.release()

    monkeypatch.setattr(watcher._Watch, "_read", reading)
    jobs = [job_factory(state="started") for _ in range(1000)]

    async def all_of_them():
        waits = [asyncio.ensure_future(joblog.wait_async(j.jid, timeout=30_000)) for j in jobs]
        await asyncio.to_thread(eventually, lambda: len(watched(joblog)) == 1000)
        await asyncio.to_thread(joblog.Job.update(state="finished").execute)
        return await asyncio.gather(*waits)

    found = asyncio.run(all_of_them())

    assert [job.jid for job in found] == [job.jid for job in jobs]
    assert all(together)
    assert max(asked) <= watcher.MOST_JOBS
    assert len(asked) < 200


def test_an_event_loop_is_not_stopped(joblog, job_factory):
    """The plain forms refuse to wait in a running event loop."""
    job = job_factory()

    async def ask():
        with pytest.raises(ConfigurationError, match="wait_async"):
            joblog.wait(job.jid)
        with pytest.raises(ConfigurationError, match="async for"):
            list(joblog.follow(job.jid))
        return await joblog.wait_async(job.jid)

    assert asyncio.run(ask()) == job


def test_waiting_in_a_coroutine(joblog, job_factory):
    """A coroutine waits as a thread does, and one that is cancelled leaves nothing behind."""
    job = job_factory(state="started")

    async def ask():
        with pytest.raises(WaitTimeout):
            await joblog.wait_async(job.jid, timeout=60)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(joblog.wait_async(job.jid), 0.05)

    asyncio.run(ask())
    assert watched(joblog) == []


def test_a_job_does_not_wait_for_itself(joblog, broker, worker):
    """A job that would wait for its own end is refused."""

    @dramatiq.actor(max_retries=0)
    def selfish():
        joblog.wait(current_job().jid)

    with worker(broker):
        job = joblog.wait(selfish.send().message_id, timeout=10_000)

    assert job.error_type == "ConfigurationError"


@pytest.mark.every_database
def test_following_a_job(joblog, broker, worker, elsewhere, eventually):
    """Each change of state and progress is yielded, from the current state to the end."""
    steps, shown = threading.Semaphore(0), []

    @dramatiq.actor(max_retries=0)
    def walks():
        for done in (1, 2):
            current_job().progress(done, 2)
            assert steps.acquire(timeout=10)

    def follow(jid):
        for job in joblog.follow(jid, timeout=20_000):
            seen = str(job.state), (job.progress or {}).get("done")
            shown.append(seen)

    message = walks.send()
    join = elsewhere(follow, message.message_id)
    eventually(lambda: ("enqueued", None) in shown)
    with worker(broker):
        for done in (1, 2):
            eventually(lambda done=done: ("started", done) in shown)
            steps.release()
        assert join() is None

    assert shown[-1] == ("finished", 2)
    assert len(shown) == len({*shown})


def test_following_in_a_coroutine(joblog, job_factory):
    """``async for`` yields the same, and breaking out leaves nothing behind."""
    job = job_factory(state="started")

    async def follow():
        states = []
        async for seen in joblog.follow(job.jid):
            states.append(seen.state)
            if seen.state == State.STARTED:
                finish = joblog.Job.update(state="finished", updated_at=1)
                await asyncio.to_thread(finish.execute)
        with contextlib.suppress(WaitTimeout):
            async for _ in joblog.follow("none", timeout=60):
                pass
        changes = joblog.follow(job.jid).__aiter__()
        await changes.__anext__()
        await changes.aclose()
        return states

    assert asyncio.run(follow()) == [State.STARTED, State.FINISHED]
    assert watched(joblog) == []


def test_a_follower_that_breaks_off(joblog, job_factory):
    """After breaking out of a loop, its job is no longer polled."""
    job = job_factory(state="started")

    for _ in joblog.follow(job.jid):
        break

    assert watched(joblog) == []


def test_a_pipeline(joblog, broker, worker):
    """The jobs of a pipeline are a family, which is waited for by any of them."""

    @dramatiq.actor
    def add(a, b):
        return a + b

    with worker(broker):
        first = pipeline([add.message(1, 2), add.message(3), add.message(4)]).run()
        whole = joblog.wait_family(first.messages[0].message_id, timeout=10_000)
        last = joblog.wait_family(first.messages[2].message_id, timeout=10_000)

    assert [job.jid for job in whole] == [message.message_id for message in first.messages]
    assert last == whole


def test_a_group(joblog, broker, gated, worker):
    """The jobs of a group are waited for together, in their order."""
    gated.event.set()
    with worker(broker):
        run = group([gated.message(), gated.message(fails=True)]).run()
        jobs = joblog.wait_all([m.message_id for m in run.children], timeout=10_000)

    assert [job.jid for job in jobs] == [m.message_id for m in run.children]
    assert [job.state for job in jobs] == [State.FINISHED, State.DEAD]


@pytest.mark.every_database
def test_a_family(joblog, broker, gated, worker, elsewhere, eventually):
    """A wait for a family lasts until the last descendant has ended."""

    @dramatiq.actor
    def begins():
        gated.send()
        gated.send(fails=True)

    with worker(broker):
        message = begins.send()
        wait = elsewhere(joblog.wait_family, message.message_id, timeout=10_000)
        joblog.wait(message.message_id, timeout=10_000)
        with pytest.raises(WaitTimeout, match=r"family of job .* it is finished itself, and not"):
            joblog.wait_family(message.message_id, timeout=0)
        gated.event.set()
        states = [str(job.state) for job in wait()]
        again = asyncio.run(joblog.wait_family_async(message.message_id, timeout=10_000))

    assert states[0] == "finished"
    assert sorted(states[1:]) == ["dead", "finished"]
    assert len(again) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_waiting_in_a_fork(joblog, job_factory, elsewhere, eventually):
    """A child forked during its parent's wait can wait too, and does not disturb the parent."""
    job = job_factory(state="started")
    wait = elsewhere(joblog.wait, job.jid, timeout=15_000)
    eventually(lambda: next((x.seen for x in joblog.core.watcher._watch._listeners), None))

    def child():
        joblog.wait(job.jid, timeout=15_000)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    joblog.Job.update(state="finished").execute()
    process.join(15)

    assert process.exitcode == 0
    assert wait().state == State.FINISHED
    assert joblog.wait(job.jid, timeout=5_000).state == State.FINISHED
