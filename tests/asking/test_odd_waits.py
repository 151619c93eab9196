"""What is waited for in odd ways: without an end, without time, cancelled, delivered again."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from watching import watched

from dramatiq_joblog import JobLogError, State, WaitTimeout
from dramatiq_joblog.web import status


@pytest.mark.parametrize("timeout", [-1, -0.5, "soon", True, float("nan"), float("inf")])
@pytest.mark.parametrize("ask", ["wait", "follow", "wait_all", "wait_family"])
def test_a_time_that_is_none(joblog, ask, timeout):
    """A time that is no number of milliseconds is refused at once, and nobody waits."""
    jids = ["a"] if ask == "wait_all" else "a"
    with pytest.raises((JobLogError, ValueError, TypeError)):
        getattr(joblog, ask)(jids, timeout=timeout)
    assert watched(joblog) == []


def test_no_time_at_all(joblog, job_factory):
    """With no time the log is asked once."""
    job_factory(jid="runs", state="started")

    for jid, state in (("runs", "started"), ("none", None)):
        with pytest.raises(WaitTimeout) as caught:
            joblog.wait(jid, timeout=0)
        assert state == caught.value.state
    with pytest.raises(WaitTimeout):
        list(joblog.follow("none", timeout=0))
    assert watched(joblog) == []


def test_a_jid_that_never_comes(joblog):
    """Who waits for ever for what never comes can be cancelled, and leaves nothing behind."""

    async def ask():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(joblog.wait_async("never"), 0.3)

    asyncio.run(ask())
    assert watched(joblog) == []


def test_a_job_that_is_cancelled(joblog, job_factory, elsewhere, eventually):
    """A job that is given up while it is waited for has ended: it is dead."""
    job = job_factory(state="delayed")
    wait = elsewhere(joblog.wait, job.jid, timeout=10_000)
    eventually(lambda: watched(joblog))
    joblog.cancel(job.jid)

    ended = wait()
    assert (State.DEAD, "cancelled") == (ended.state, ended.dead_reason)


def test_a_job_that_is_delivered_again(joblog, job_factory, elsewhere, eventually):
    """A job whose worker vanished is waited for through its next run, and followed through it."""
    job = job_factory(state="started", attempt=1)

    def is_seen(state):
        eventually(lambda: seen and seen[-1] == state)

    seen = []

    def follow():
        for each in joblog.follow(job.jid, timeout=10_000):
            seen.append(str(each.state))
        return each

    follows, wait = elsewhere(follow), elsewhere(joblog.wait, job.jid, timeout=10_000)
    is_seen("started")
    for state in ("lost", "started", "finished"):
        joblog.Job.update(state=state, updated_at=joblog.now()).where(
            joblog.Job.jid == job.jid
        ).execute()
        is_seen(state)

    assert State.FINISHED == wait().state == follows().state
    assert ["started", "lost", "started", "finished"] == seen


async def _yes():
    return True


@pytest.mark.parametrize("prefix", ["", "/my/jobs", "/a b/ä"])
def test_the_status_below_a_path(joblog, job_factory, prefix):
    """Wherever it is mounted GET and HEAD are answered; *authorize* may return a coroutine."""
    job = job_factory(state="finished")
    app = status(joblog, authorize=lambda request, job: _yes())
    client = TestClient(Starlette(routes=[Mount(prefix, app)]) if prefix else app)

    assert "finished" == client.get(f"{prefix}/{job.jid}").json()["state"]
    for path in (job.jid, f"{job.jid}/events"):
        head = client.head(f"{prefix}/{path}")
        assert (200, b"") == (head.status_code, head.content)
    assert 404 == client.head(f"{prefix}/none").status_code
