"""A mounted dashboard while the database is frozen, disconnected or slow: all goes on."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import psycopg
import pytest
from pages import chromium, served
from playwright.sync_api import expect
from proxy import Proxy
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from dramatiq_joblog import JobLog
from dramatiq_joblog.asking.threads import THREADS
from dramatiq_joblog.web import dashboard

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(os.name != "posix", reason="signals of POSIX freeze the server"),
]

#: Requests that nobody waits for, as those of impatient people; and those that idle connections
#: are left behind by.
IMPATIENT, WARM = 45, 12
#: Seconds in which a program hears that something is wrong, and in which anybody does.
SOON, AT_MOST = 5.0, 10.0
PAGES = ("/", "/jobs", "/types", "/queues", "/dead", "/locks", "/workers", "/metrics")


@pytest.fixture
def proxy(postgres):
    """Return a proxy between the dashboard and its database that fails on demand."""
    proxy = Proxy(postgres.url)
    yield proxy
    proxy.close()


@pytest.fixture
def host(postgres, proxy):
    """Return the URL of an application with a mounted dashboard and its own endpoints."""
    log = JobLog(proxy.through(postgres.url))
    log.create_tables()

    def own(request):
        # In the threads that Starlette has for everybody.
        return PlainTextResponse("the host's own")

    page = dashboard(log, authorize=lambda request: "all")
    with served(Starlette(routes=[Route("/own", own), Mount("/joblog", page)])) as address:
        yield address.replace("localhost", "127.0.0.1")
    log.close()


@pytest.fixture
def frozen(postgres):
    """Freeze the server, like a host that hangs, until the end."""
    yield postgres.freeze, postgres.thaw
    postgres.thaw()


@pytest.fixture
def locked(postgres):
    """Return functions that lock all rows, like a migration, and unlock them."""
    held = []

    def hold():
        held.append(psycopg.connect(postgres.url))
        held[0].execute("LOCK TABLE joblog_job, joblog_worker IN ACCESS EXCLUSIVE MODE")

    def let_go():
        for connection in held:
            connection.close()

    yield hold, let_go
    let_go()


def impatient(address):
    """Request a page, and disconnect."""
    with contextlib.suppress(httpx.HTTPError):
        httpx.get(address, timeout=0.2, verify=False)


def status(address):
    """Return the status of an answer and the seconds that it took."""
    began = time.monotonic()
    code = httpx.get(address, timeout=40, verify=False).status_code
    return code, time.monotonic() - began


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["frozen", "silent", "refused", "lost", "locked"])
def test_a_database_that_fails_takes_nobody_along(host, proxy, frozen, locked, eventually, way):
    """The application responds as before, health soon returns 503, pages too, and all recovers."""
    ways = {
        "frozen": frozen,
        "locked": locked,
        "silent": (proxy.hang, proxy.resume),
        "refused": (proxy.refuse, proxy.resume),
        # A firewall that has forgotten its connections: new ones pass.
        "lost": (proxy.lose, lambda: None),
    }
    fail, mend = ways[way]
    before = set(threading.enumerate())
    with ThreadPoolExecutor(IMPATIENT) as people:
        pages = [f"{host}/joblog{path}" for path in PAGES]
        warm = [f"{host}/joblog/jobs?q=user:{n}" for n in range(WARM)]
        assert {200} == {code for code, _ in people.map(status, [*warm, *pages])}

        fail()
        code, took = status(f"{host}/joblog/health")
        assert took < SOON
        # What has lost its connections may have a new one by then.
        assert code == 503 or (way, code) == ("lost", 200)

        crowd = [people.submit(impatient, f"{host}/joblog/jobs") for _ in range(IMPATIENT)]
        for visit in crowd:
            visit.result()
        own = [status(f"{host}/own") for _ in range(10)]
        assert {200} == {code for code, _ in own}
        assert max(took for _, took in own) < 2
        if way != "lost":
            code, took = status(f"{host}/joblog/health")
            assert (503, True) == (code, took < SOON), took
        answers = list(people.map(status, pages))
        assert max(took for _, took in answers) < AT_MOST
        if way not in {"lost", "locked"}:
            assert {503} == {code for code, _ in answers}

        mend()
        eventually(lambda: status(f"{host}/joblog/health")[0] == 200, 60)
        eventually(lambda: {200} == {code for code, _ in people.map(status, pages)}, 60)
    made = [thread.name for thread in set(threading.enumerate()) - before]
    assert sum("dramatiq_joblog page" in name for name in made) <= THREADS


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["frozen", "silent"])
def test_an_open_page_says_that_it_gets_no_answer(host, proxy, frozen, way):
    """An open page reports within ten seconds that updates stopped; it resumes by itself."""
    fail, mend = frozen if way == "frozen" else (proxy.hang, proxy.resume)
    with chromium() as browser:
        page = browser.new_page()
        page.goto(f"{host}/joblog/jobs")
        word = page.locator("#live-word")
        expect(word).to_have_text("Live")
        fail()
        began = time.monotonic()
        expect(word).not_to_have_text("Live", timeout=60_000)
        took = time.monotonic() - began
        mend()
        expect(word).to_have_text("Live", timeout=60_000)
    assert took < AT_MOST + 0.5
