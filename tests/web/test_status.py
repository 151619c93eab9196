"""One job's progress, for an application's own front end."""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import re
import threading
import time
from pathlib import Path

import dramatiq
import httpx2 as httpx
import pytest
import servers
import uvicorn
from pages import chromium
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse
from starlette.routing import Mount
from starlette.testclient import TestClient

from dramatiq_joblog.web import status

EVENT = re.compile(r"^id: (.*)\ndata: (.*)$")


@pytest.fixture
def ask(joblog):
    """Return a function that makes requests to an application with the status mounted."""

    def ask(path, *, authorize=None, **options):
        app = Starlette(routes=[Mount("/my/jobs", status(joblog, authorize=authorize))])
        client = TestClient(app, follow_redirects=False)
        return client.get(f"/my/jobs{path}", **options)

    return ask


def events_of(text):
    """Return the ids and data of a stream's events."""
    found = [EVENT.match(event) for event in text.split("\n\n") if event.startswith("id:")]
    return [(event[1], json.loads(event[2])) for event in found]


def test_the_state_of_a_job(ask, job_factory):
    """The response has only the jid, the state, whether it is final, and the progress."""
    progress = {"done": 1, "total": 2, "text": "reading"}
    job = job_factory(state="started", progress=progress, kwargs={"secret": 1})

    answer = ask(f"/{job.jid}")

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    facts = {"jid": job.jid, "state": "started", "final": False, "progress": progress}
    assert facts == answer.json()
    done = job_factory(state="skipped", jid="with/a slash")
    assert ask(f"/{done.jid}").json()["final"] is True


def test_a_job_that_is_not_known(ask, joblog):
    """An unknown jid is not found, on both paths, without calling *authorize*."""
    asked = []

    for path in ("/none", "/none/events"):
        assert ask(path, authorize=lambda *args: asked.append(args)).status_code == 404
    assert asked == []
    assert list(joblog.core.watcher._watch._listeners) == []


def test_a_job_that_was_only_just_sent(ask, job_factory, eventually, joblog, monkeypatch):
    """A job whose row another process writes a moment later is found."""
    # However long the other thread takes on a busy machine.
    module = importlib.import_module("dramatiq_joblog.web.status")
    monkeypatch.setattr(module, "LATE_ROW", 30_000)

    def write():
        eventually(lambda: joblog.core.watcher._watch._listeners)
        job_factory(jid="to-come", state="enqueued")

    thread = threading.Thread(target=write)
    thread.start()
    answer = ask("/to-come")
    thread.join()

    assert answer.json()["state"] == "enqueued"


async def _async_yes(request, job):
    return True


async def _async_no(request, job):
    await asyncio.sleep(0)
    return False


def _raises(request, job):
    raise HTTPException(401, "sign in")


def _raises_as_fastapi(request, job):
    from fastapi import HTTPException

    raise HTTPException(418, {"tea": job.jid}, headers={"x-pot": "yes"})


def _mine(request, job):
    return str(job.user_id) == request.headers["x-user"]


@pytest.mark.few(8)
@pytest.mark.parametrize(
    ("authorize", "code"),
    [
        (_async_no, 403),
        (_async_yes, 200),
        (_mine, 200),
        (_raises, 401),
        (_raises_as_fastapi, 418),
        (lambda request, job: RedirectResponse("/login"), 307),
        (lambda request, job: None, 403),
        (functools.partial(_async_no), 403),
    ],
)
@pytest.mark.parametrize("events", ["", "/events"])
def test_who_may_see_a_job(ask, job_factory, authorize, code, events):
    """*authorize* decides with the request and the job, of any kind, and by a Response too."""
    job = job_factory(user_id=7)

    assert ask(f"/{job.jid}{events}", authorize=authorize, headers={"x-user": "7"}).status_code == (
        code
    )


def test_who_decides_wrongly(ask, job_factory):
    """If *authorize* fails, access is denied."""

    def fails(request, job):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(f"/{job_factory().jid}", authorize=fails)


def test_only_reading(joblog, job_factory):
    """There is nothing to be done there."""
    client = TestClient(status(joblog))

    for path in ("/a", "/a/events"):
        assert client.post(path).status_code == 405
    job = job_factory(state="started")
    assert client.head(f"/{job.jid}/events").status_code == 200


def test_the_events_of_a_job(ask, joblog, job_factory, eventually):
    """The stream has the current state, each change, and ends with the job."""
    job = job_factory(state="started")

    def go_on():
        first = eventually(lambda: next(iter(joblog.core.watcher._watch._listeners), None))
        eventually(lambda: first.seen)
        progress = {"done": 1, "total": 1, "text": "<b>"}
        joblog.Job.update(progress=progress, updated_at=1).execute()
        eventually(lambda: first.seen[1] == 1)
        joblog.Job.update(state="finished", updated_at=2).execute()

    thread = threading.Thread(target=go_on)
    thread.start()
    answer = ask(f"/{job.jid}/events")
    thread.join()

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    events = events_of(answer.text)
    assert [name for name, _ in events] == ["started-1", "started-1", "finished-1"]
    assert [facts["final"] for _, facts in events] == [False, False, True]
    assert events[1][1]["progress"]["text"] == "<b>"


def test_a_browser_that_comes_back(ask, job_factory):
    """A browser that reconnects after the end gets 204, or the end if it missed that."""
    job = job_factory(state="dead", attempt=3)

    assert ask(f"/{job.jid}/events", headers={"last-event-id": "dead-3"}).status_code == 204
    missed = ask(f"/{job.jid}/events", headers={"last-event-id": "started-3"})
    assert [name for name, _ in events_of(missed.text)] == ["dead-3"]


def test_a_stream_that_lasts(ask, job_factory, monkeypatch, joblog):
    """An idle stream sends keep-alives, and ends in time."""
    from importlib import import_module

    module = import_module("dramatiq_joblog.web.status")
    monkeypatch.setattr(module, "ALIVE_EVERY", 0.05)
    monkeypatch.setattr(module, "LASTS", 0.3)
    job = job_factory(state="started")

    answer = ask(f"/{job.jid}/events")

    assert [name for name, _ in events_of(answer.text)] == ["started-1"]
    assert answer.text.count(": alive\n\n") >= 2
    assert list(joblog.core.watcher._watch._listeners) == []


@pytest.fixture
def served(joblog):
    """Return a function that serves an application, and returns its URL."""
    running = []

    def serve(app):
        port = servers.free_port()
        config = uvicorn.Config(app, port=port, log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 15
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return f"http://127.0.0.1:{port}"

    yield serve
    for server, thread in running:
        server.should_exit = server.force_exit = True
        thread.join()


def test_somebody_who_goes_away(joblog, job_factory, served, eventually):
    """After a browser disconnects, its job is no longer followed."""
    job = job_factory(state="started")
    address = served(status(joblog))

    with httpx.stream("GET", f"{address}/{job.jid}/events", timeout=15) as answer:
        # Kept: the stream is closed with what reads it.
        lines = answer.iter_lines()
        assert next(lines) == "id: started-1"
        assert joblog.core.watcher._watch._listeners
    eventually(lambda: not joblog.core.watcher._watch._listeners)


PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "progress.md"
FILE = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def test_the_page_is_short():
    """The page with the progress bar has thirty lines at most."""
    files = dict(FILE.findall(PAGE.read_text()))

    assert len(files["progress.html"].strip().splitlines()) <= 30


@pytest.mark.full
@pytest.mark.process
def test_the_page_in_a_browser(tmp_path, monkeypatch, redis_url, served, worker, eventually):
    """The example of the documentation shows a real job's progress in a real browser."""
    from playwright.sync_api import expect

    files = dict(FILE.findall(PAGE.read_text()))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", redis_url)
    reports = {"__name__": "reports"}
    exec(files["reports.py"], reports)
    steps = threading.Semaphore(0)
    write = Path.write_text

    def write_slowly(path, text):
        assert steps.acquire(timeout=20)
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", write_slowly)
    broker = dramatiq.get_broker()
    broker.emit_after("process_boot")
    address = served(reports["app"])
    with worker(broker), chromium() as browser:
        page = browser.new_page()
        page.goto(f"{address}/?user=7")
        page.get_by_role("button").click()
        bar = page.get_by_role("progressbar")
        steps.release(10)
        expect(page.get_by_role("status")).to_have_text("started: writing", timeout=20_000)
        expect(bar).to_have_js_property("value", 10 / 40, timeout=20_000)
        steps.release(30)
        expect(page.get_by_role("status")).to_have_text("finished: writing", timeout=20_000)
        expect(bar).to_have_js_property("value", 1, timeout=20_000)
        jid = reports["joblog"].jobs.get().jid
        assert httpx.get(f"{address}/reports/status/{jid}").status_code == 401
        assert httpx.get(f"{address}/reports/status/{jid}?user=8").status_code == 403
    reports["joblog"].close()
    broker.close()
    broker.client.connection_pool.disconnect()
