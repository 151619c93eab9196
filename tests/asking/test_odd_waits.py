"""Unusual waits: endless, without time, cancelled, redelivered."""

from __future__ import annotations

import asyncio
import uuid

import dramatiq
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from watching import watched

from dramatiq_joblog import ConfigurationError, JobLogError, State, WaitTimeout
from dramatiq_joblog.web import status


@pytest.mark.parametrize("timeout", [-1, -0.5, "soon", True, float("nan"), float("inf")])
@pytest.mark.parametrize("ask", ["wait", "follow", "wait_all", "wait_family"])
def test_a_time_that_is_none(joblog, ask, timeout):
    """A timeout that is not a number of milliseconds is refused at once."""
    jids = ["a"] if ask == "wait_all" else "a"
    with pytest.raises((JobLogError, ValueError, TypeError)):
        getattr(joblog, ask)(jids, timeout=timeout)
    assert watched(joblog) == []


def test_no_time_at_all(joblog, job_factory):
    """With a timeout of 0, the log is queried once."""
    job_factory(jid="runs", state="started")

    for jid, state in (("runs", "started"), ("none", None)):
        with pytest.raises(WaitTimeout) as caught:
            joblog.wait(jid, timeout=0)
        assert state == caught.value.state
    with pytest.raises(WaitTimeout):
        list(joblog.follow("none", timeout=0))
    assert watched(joblog) == []


def test_a_jid_that_never_comes(joblog):
    """An endless wait can be cancelled, and leaves nothing behind."""

    async def ask():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(joblog.wait_async("never"), 0.3)

    asyncio.run(ask())
    assert watched(joblog) == []


def test_a_job_that_is_cancelled(joblog, job_factory, elsewhere, eventually):
    """A job that is cancelled while it is waited for has ended: it is dead."""
    job = job_factory(state="delayed")
    wait = elsewhere(joblog.wait, job.jid, timeout=10_000)
    eventually(lambda: watched(joblog))
    joblog.cancel(job.jid)

    ended = wait()
    assert (State.DEAD, "cancelled") == (ended.state, ended.dead_reason)


def test_a_job_that_is_delivered_again(joblog, job_factory, elsewhere, eventually):
    """A wait, and following, continue through the next run of a job that lost its worker."""
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


@pytest.mark.parametrize("ask", ["wait", "follow", "wait_family"])
@pytest.mark.parametrize("thing", [None, "", b"a", True, object(), 1.5, ["a"]])
def test_what_is_no_jid(joblog, ask, thing):
    """An invalid jid is refused at once."""
    with pytest.raises(ConfigurationError, match=r"is not a jid: wait for message\.message_id"):
        list(getattr(joblog, ask)(thing))


def test_a_message_or_a_row_in_place_of_its_jid(joblog, job_factory):
    """A message or a row is refused with the attribute to use, and without its arguments."""
    message = dramatiq.Message("default", "login", ("hunter2",), {}, {})
    for thing in (message, job_factory(state="finished")):
        with pytest.raises(ConfigurationError, match="is not a jid") as caught:
            joblog.wait(thing)
        assert "hunter2" not in str(caught.value)


def test_jids_that_are_no_texts(joblog, job_factory):
    """Message IDs may be UUIDs or numbers: their rows are found."""
    for jid in (uuid.uuid4(), 4711):
        job = job_factory(jid=str(jid), state="finished")
        assert joblog.wait(jid, timeout=1_000).id == job.id
        assert [found.id for found in joblog.follow(jid, timeout=1_000)] == [job.id]


@pytest.mark.parametrize("things", [None, "abc", b"abc", 7, dramatiq.group([])])
def test_what_is_no_list_of_jids(joblog, things):
    """A single string is not treated as a list of letters, nor a group as a list of jids."""
    with pytest.raises(ConfigurationError, match="is not a list of jids"):
        joblog.wait_all(things)
    with pytest.raises(ConfigurationError, match="is not a list of jids"):
        asyncio.run(joblog.wait_all_async(things))


def test_several_jids_by_whatever_has_them(joblog, job_factory):
    """Jids may come from any iterable, more than once, or not at all."""
    jid = job_factory(state="finished").jid
    assert [job.jid for job in joblog.wait_all(iter([jid, jid]), timeout=1_000)] == [jid, jid]
    assert joblog.wait_all(set(), timeout=1_000) == []


async def nothing():
    """Return nothing."""


@pytest.mark.parametrize("thing", ["SELECT 1", None, 7, nothing])
def test_what_has_no_rows(joblog, thing):
    """Anything other than a query or a plain function is refused."""
    with pytest.raises(ConfigurationError, match=r"fetch\("):
        asyncio.run(joblog.fetch(thing))


@pytest.mark.parametrize("authorize", [7, "all", lambda: True, lambda request: True])
def test_who_could_not_decide(joblog, authorize):
    """An *authorize* that cannot be called is refused when the application is created."""
    with pytest.raises(ConfigurationError, match="authorize="):
        status(joblog, authorize)
