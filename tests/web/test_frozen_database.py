"""A mounted dashboard with a frozen database: it says so, and does not affect the application."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import httpx2 as httpx
import pytest
import servers
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from dramatiq_joblog import JobLog
from dramatiq_joblog.asking.threads import BusyError, Threads, UnansweredError
from dramatiq_joblog.web import dashboard

#: Requests that nobody waits for, as those of impatient people.
IMPATIENT = 45


@pytest.fixture
def host(postgres):
    """Return the URL of an application with a mounted dashboard and its own endpoints."""
    log = JobLog(postgres.url)
    log.create_tables()

    def slow(request):
        # In the threads that Starlette has for everybody.
        return PlainTextResponse("the host's own")

    page = dashboard(log, authorize=lambda request: "all")
    app = Starlette(routes=[Route("/own", slow), Mount("/joblog", page)])
    port = servers.free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 15
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield address
    server.should_exit = True
    thread.join()
    log.close()


def impatient(address):
    """Request a page, and disconnect."""
    # Without verify=False each request would first read the certificates of the whole world.
    with contextlib.suppress(httpx.HTTPError):
        httpx.get(address, timeout=0.2, verify=False)


@pytest.mark.full
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX freeze the server")
def test_a_frozen_database_does_not_take_the_host_along(postgres, host, eventually):
    """The application's endpoints respond as before, health soon returns 503, and all recovers."""
    assert httpx.get(f"{host}/joblog/health", verify=False).status_code == 200
    postgres.freeze()
    visits = [
        threading.Thread(target=impatient, args=(f"{host}/joblog/jobs",)) for _ in range(IMPATIENT)
    ]
    for visit in visits:
        visit.start()
    for visit in visits:
        visit.join()

    own = [httpx.get(f"{host}/own", timeout=15, verify=False).text for _ in range(5)]
    health = httpx.get(f"{host}/joblog/health", timeout=30, verify=False)
    page = httpx.get(f"{host}/joblog/jobs", timeout=30, verify=False)
    assert ["the host's own"] * 5 == own
    assert health.status_code == page.status_code == 503

    postgres.thaw()
    eventually(
        lambda: httpx.get(f"{host}/joblog/health", timeout=15, verify=False).status_code == 200, 60
    )
    assert httpx.get(f"{host}/joblog/jobs", timeout=30, verify=False).status_code == 200


@pytest.fixture
def gate():
    """Return an event that is set at the end, so that no thread waits forever."""
    event = threading.Event()
    yield event
    event.set()


def run(function):
    """Run a coroutine function in a loop of its own."""
    import asyncio

    return asyncio.run(function())


def test_threads_are_bounded(gate):
    """Requests while all threads are busy and the queue is full are refused at once."""
    import asyncio

    threads = Threads(threads=1, waiting=1)

    async def ask():
        waiting = [asyncio.ensure_future(threads.run(gate.wait, within=30)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await threads.run(gate.wait, within=30)
        gate.set()
        return await asyncio.gather(*waiting)

    assert [True, True] == run(ask)


def test_an_answer_that_is_late_is_not_waited_for(gate):
    """A request that waits too long gets an error; its thread is busy until it has ended."""
    threads = Threads(threads=1, waiting=0)

    async def ask():
        with pytest.raises(UnansweredError):
            await threads.run(gate.wait, within=0.05)
        with pytest.raises(BusyError):
            await threads.run(gate.wait, within=0.05)

    run(ask)
