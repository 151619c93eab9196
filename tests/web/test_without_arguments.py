"""Access without arguments: neither they nor repetitions are shown, or can be searched."""

from __future__ import annotations

import contextlib
import time

import pytest
from starlette.testclient import TestClient

from dramatiq_joblog import JobLog
from dramatiq_joblog.web import dashboard

SECRET = "s3cret-4711"
KEY = f"shop:{SECRET}"
ERROR = f"no shop {SECRET!r}"
PAGES = (
    *("/", "/jobs", "/types", "/types/work", "/queues", "/queues/default", "/dead", "/locks"),
    *("/workers", "/actions", "/alerts", "/compare", "/users/7", "/health", "/metrics"),
    *("/jobs/dead", "/jobs/waits", "/jobs/skipped", "/jobs/child", "/jobs/started"),
    *("/jobs?q=state:dead", "/jobs?sort=duration", "/jobs?q=error:ValueError", "/jobs?q=user:7"),
    *("/complete?word=section:", "/complete?word=args.", "/complete?word=reason:"),
)
ASKS = (
    *(f"args:{SECRET}", f"args.shop:{SECRET}", "args.shop:s*", f"-args:{SECRET}", "lines:s3*"),
    *(f"section:{KEY}", "-section:shop*", SECRET, f'"{ERROR}"', "reason:*s3cret*", "reason:*"),
    *(f"state:dead {SECRET}", "saved:mine", f"type:work -{SECRET}"),
)


@pytest.fixture
def log(sqlite_database):
    """Return a log in which a secret argument is everywhere it can be."""
    log = JobLog(sqlite_database)
    now = time.time_ns() // 1_000_000
    common = {
        "actor": "work", "queue": "default", "attempt": 1, "user_id": "7", "created_at": now,
        "updated_at": now, "started_at": now, "args": [SECRET], "kwargs": {"shop": SECRET},
        "meta": {"m": SECRET}, "progress": {"done": 1, "total": 2, "text": SECRET},
    }  # fmt: skip
    died = {"error_type": "ValueError", "error_message": ERROR, "finished_at": now}
    log.Job.create(jid="dead", state="dead", dead_reason="no_retries", **died, **common)
    log.Job.create(jid="child", state="dead", parent_jid="dead", root_jid="dead", **died, **common)
    log.Job.create(
        jid="skipped", state="skipped", skip_reason=f"section {KEY!r} was held by job started",
        finished_at=now, **common,
    )  # fmt: skip
    log.Job.create(jid="started", state="started", section=KEY, **common)
    for jid, key in (("waits", KEY), ("next", f"{KEY}:free")):
        log.Job.create(jid=jid, state="waiting", section=key, waiting_since=now, **common)
    for jid in ("dead", "child"):
        log.Failure.create(
            jid=jid, token="t", attempt=1, outcome="dead", started_at=now, finished_at=now,
            error_type="ValueError", error_message=ERROR, traceback=f"ValueError: {ERROR}",
        )  # fmt: skip
        log.Line.create(
            jid=jid, token="t", number=1, attempt=1, time=now, level="INFO", logger="work",
            text=SECRET,
        )  # fmt: skip
    for slot, owner in enumerate(("started", "dead", "a block of host:1")):
        log.Lock.create(
            kind="section", key=KEY, slot=slot, owner=owner, token="t", fence=1, ttl=60_000,
            acquired_at=now, expires_at=now + 60_000,
        )  # fmt: skip
    log.set_limit(f"{KEY}:paused", 0, who="ada")
    log.core.tables.alert.create(
        key="problems:sections", name="problems", is_open=True, since=now, count=1,
        summary=f"1 section is stuck: {KEY!r}", subjects=[KEY], search=f"section:{KEY}",
        first_seen_at=now, seen_at=now,
    )  # fmt: skip
    log.save_search("mine", f"args:{SECRET}", who="ada")
    yield log
    log.close()


@pytest.fixture
def ask(log):
    """Return a function that requests a URL with a level."""
    with contextlib.ExitStack() as stack:
        at = {
            level: stack.enter_context(TestClient(page_of(log, level), base_url="http://localhost"))
            for level in ("read-only", "without-arguments")
        }
        yield lambda level, path, **headers: at[level].get(path, headers=headers)


def page_of(log, level):
    """Return a dashboard on which everyone has the level."""
    return dashboard(log, authorize=lambda request: level)


@pytest.mark.full
def test_it_is_nowhere(ask):
    """No page and no JSON has arguments, and each still works."""
    seen = set()
    for path in PAGES:
        for headers in ({}, {"accept": "application/json"}):
            if SECRET in ask("read-only", path, **headers).text:
                seen.add(path)
            answer = ask("without-arguments", path, **headers)
            assert answer.status_code == 200, path
            assert SECRET not in answer.text, (path, headers)
    # What shows nothing to anyone would show nothing here.
    assert seen >= {"/", "/jobs", "/dead", "/locks", "/actions", "/alerts", "/jobs/waits"}
    assert seen >= {"/jobs/dead", "/jobs/skipped", "/health", "/complete?word=section:"}


@pytest.mark.few(5)
@pytest.mark.parametrize("words", ASKS)
def test_nobody_finds_it_out_by_asking(ask, words):
    """Search words that could confirm a guess are refused, with the allowed ones."""
    answer = ask("without-arguments", f"/jobs.json?q={words}")
    assert answer.status_code == 400
    assert "type:" in answer.json()["error"]
    assert ask("read-only", f"/jobs.json?q={words}").status_code == 200


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("error:ValueError", {"dead", "child"}),
        ("reason:no_retries", {"dead"}),
        ("state:waiting user:7", {"waits", "next"}),
        ("skipped", {"skipped"}),
    ],
)
def test_what_may_be_asked(ask, words, found):
    """An error class, a built-in reason, a user and a full jid find jobs."""
    answer = ask("without-arguments", f"/jobs.json?q={words}", accept="application/json")
    assert {job["jid"] for job in answer.json()["jobs"]} == found
