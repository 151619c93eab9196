"""Unfinished jobs: a scope, and a search word."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import dramatiq
import pytest
from starlette.testclient import TestClient

from dramatiq_joblog import State

ENDED = {State.FINISHED, State.DEAD, State.SKIPPED}


@pytest.fixture
def one_of_each(job_factory):
    """Insert a job in each state, and return the unfinished states."""
    for state in State:
        job_factory(state=state, jid=str(state))
    return {str(state) for state in State if state not in ENDED}


def test_active_is_all_that_has_not_ended(joblog, one_of_each):
    """The scope has a job of each state except final ones, and chains like the others."""
    assert one_of_each == {job.jid for job in joblog.jobs.active()}
    assert {"started", "retrying"} == {job.jid for job in joblog.jobs.active().in_progress()}


def test_active_is_a_word_of_a_search(joblog, one_of_each):
    """``state:active`` is the same, may be negated, and is completed."""
    assert one_of_each == {job.jid for job in joblog.search("state:active")}
    assert set(map(str, ENDED)) == {job.jid for job in joblog.search("-state:active")}
    assert [("active", None)] == joblog.complete("state", "act")


def test_a_job_that_was_only_just_sent_is_active(joblog, make_broker):
    """A job that this process has just sent is active before any worker has seen it."""
    broker = make_broker(joblog=joblog)
    broker.declare_queue("default")
    actor = dramatiq.actor(lambda: None, actor_name="work", broker=broker)

    sent = actor.send(), actor.send_with_options(delay=60_000)

    assert {m.message_id for m in sent} == {job.jid for job in joblog.jobs.active()}
    assert not joblog.jobs.in_progress().exists()


def test_the_recipe_refuses_a_second_one(monkeypatch, tmp_path, redis_url):
    """The documented endpoint responds with 409 until the earlier job has ended."""
    page = Path(__file__).parent.parent.parent / "docs" / "integrations" / "fastapi.md"
    (source,) = re.findall(
        r'^```python title="shop.py"\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", redis_url)
    (tmp_path / "shop.py").write_text(source)
    shop = runpy.run_path("shop.py")

    with TestClient(shop["app"]) as client:
        first = client.post("/invoices/7")
        second = client.post("/invoices/7")
        other = client.post("/invoices/8")

    assert [202, 409, 202] == [first.status_code, second.status_code, other.status_code]
    assert first.json()["jid"] == second.json()["detail"]["jid"]
    shop["broker"].close()
