"""Queries from coroutines: the log never blocks an event loop, even with a frozen database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time

import dramatiq
import pytest

from dramatiq_joblog import (
    CancelError,
    DatabaseAwayError,
    JobLog,
    JobNotFound,
    State,
    WaitTimeout,
    current_job,
)
from dramatiq_joblog.recording.events import Enqueued

#: Seconds that an event loop may stand still: a call that waits for a frozen server takes several
#: times as long, and a busy machine seldom does.
PAUSE = 0.1


class Pulse:
    """Measures the longest pause of the event loop that runs it."""

    def __init__(self):
        self.longest = 0.0
        self._task = None

    async def __aenter__(self):
        self._task = asyncio.ensure_future(self._beat())
        await asyncio.sleep(0.01)
        self.longest = 0.0
        return self

    async def __aexit__(self, *exc_info):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _beat(self):
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.monotonic() - before - 0.001)


@pytest.fixture
def frozen(postgres):
    """Return a log whose database is frozen, with an event that its writer cannot write."""
    log = JobLog(postgres.url, on_outage="drop")
    log.create_tables()
    assert log.jobs.count() == 0
    log.core.writer.call(lambda: None)
    postgres.freeze()
    now = int(time.time() * 1000)
    row = {"jid": "a", "actor": "work", "queue": "q", "state": "enqueued", "attempt": 1}
    log.core.writer.put(Enqueued(row | {"enqueued_at": now, "created_at": now}))
    yield log
    postgres.thaw()
    log.close()


#: Each way to ask from a coroutine, which a frozen database does not answer.
QUESTIONS = {
    "cancel": lambda log: log.cancel_async("a", timeout=300),
    "fetch a function": lambda log: log.fetch(log.counts, timeout=300),
    "fetch a query": lambda log: log.fetch(log.jobs.dead().of_type("a"), timeout=300),
    "get": lambda log: log.get_async("a", timeout=300),
    "wait": lambda log: log.wait_async("a", timeout=300),
    "wait for a family": lambda log: log.wait_family_async("a", timeout=300),
    "wait for all": lambda log: log.wait_all_async(["a", "b"], timeout=300),
}


async def _follow(log):
    async for _ in log.follow("a", timeout=300):
        pass


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX freeze the server")
def test_a_frozen_database_stops_no_event_loop(frozen):
    """With a frozen database, a query in a coroutine fails in time, and the loop is not blocked."""

    async def ask():
        async with Pulse() as pulse:
            begin = time.monotonic()
            questions = [ask(frozen) for ask in QUESTIONS.values()]
            answers = await asyncio.gather(*questions, _follow(frozen), return_exceptions=True)
            took = time.monotonic() - begin
        return dict(zip([*QUESTIONS, "follow"], answers, strict=True)), pulse.longest, took

    answers, longest, took = asyncio.run(ask())
    # Other processes may have had the core meanwhile, though hardly each time.
    pauses = [longest, *(asyncio.run(ask())[1] for _ in range(2))]

    kinds = {name: type(answer) for name, answer in answers.items()}
    waits = {name: WaitTimeout for name in kinds if name.startswith(("wait", "follow"))}
    assert kinds == dict.fromkeys(kinds, DatabaseAwayError) | waits
    assert took < 5
    assert min(pauses) < PAUSE


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX freeze the server")
def test_a_pause_is_measured(frozen):
    """The pulse detects a blocking query: the test above can fail."""

    async def ask():
        async with Pulse() as pulse:
            frozen.core.writer.flush(timeout=0.3)
            await asyncio.sleep(0.01)
        return pulse.longest

    assert asyncio.run(ask()) > PAUSE


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX freeze the server")
def test_waiting_outlives_a_frozen_database(frozen, postgres):
    """A wait during a long freeze of the database returns the job's end afterwards."""
    waiting = []
    wait = threading.Thread(target=lambda: waiting.append(frozen.wait("b", timeout=40_000)))
    wait.start()
    with pytest.raises(WaitTimeout, match="did not respond"):
        frozen.wait("c", timeout=100)

    postgres.thaw()
    now = int(time.time() * 1000)
    frozen.Job.create(
        jid="b", actor="a", queue="q", state="dead", attempt=1, created_at=now, updated_at=now
    )
    wait.join(40)

    assert [job.jid for job in waiting] == ["b"]


@pytest.mark.every_database
def test_asking_from_a_coroutine(joblog, job_factory):
    """The async forms return and raise the same as the plain ones."""
    job, lost = job_factory(job_type="import"), job_factory(state="lost")

    async def ask():
        assert await joblog.get_async(job.jid) == job
        with pytest.raises(JobNotFound):
            await joblog.get_async("none")
        assert await joblog.fetch(joblog.jobs.finished().of_type("import")) == [job]
        assert await joblog.fetch(joblog.workers) == []
        assert await joblog.fetch(joblog.jobs.count) == 2
        assert (await joblog.cancel_async(lost.jid, who="ada")).state == State.DEAD
        with pytest.raises(CancelError):
            await joblog.cancel_async(job.jid)

    asyncio.run(ask())
    assert joblog.database.is_closed()
    assert joblog.actions.get().who == "ada"


def test_requeueing_from_a_coroutine(joblog, make_broker, worker):
    """A job is run again from a coroutine as it is from a thread."""
    broker = make_broker("stub", "last", joblog=joblog)

    @dramatiq.actor
    def work():
        pass

    with worker(broker):
        job = joblog.wait(work.send().message_id, timeout=10_000)
        again = asyncio.run(joblog.requeue_async(job.jid, who="ada"))
        assert joblog.wait(again.message_id, timeout=10_000).replay_of == job.jid


def test_a_query_that_is_made_in_an_event_loop(joblog, make_broker):
    """A coroutine's query includes what this process has sent, like any other."""
    make_broker("stub", "last", joblog=joblog)

    @dramatiq.actor
    def work():
        pass

    async def ask():
        jids = [work.send().message_id for _ in range(3)]
        query = joblog.jobs.enqueued()
        return jids, await joblog.fetch(query)

    jids, jobs = asyncio.run(ask())
    assert {job.jid for job in jobs} == {*jids}


def test_an_async_actor_that_asks(joblog, make_broker, worker):
    """An async actor with ``start="soon"`` finds itself in its own query."""
    broker = make_broker(
        "stub", "last", joblog=joblog, start="soon", middleware=[dramatiq.middleware.AsyncIO()]
    )
    seen = []

    @dramatiq.actor
    async def asks():
        seen.append((await joblog.get_async(current_job().jid)).state)
        seen.extend(job.state for job in await joblog.fetch(joblog.jobs.started()))

    with worker(broker):
        joblog.wait(asks.send().message_id, timeout=10_000)

    assert seen == [State.STARTED, State.STARTED]
