"""The Python blocks of the documentation run; those of other tests are counted here."""

from __future__ import annotations

import http.server
import io
import json
import logging
import threading

import documents
import dramatiq
import pytest
from documents import DOCS
from dramatiq import group
from starlette.testclient import TestClient

from dramatiq_joblog import (
    Exclusive,
    JobContextFilter,
    Notice,
    Rate,
    Unique,
)
from dramatiq_joblog.web import dashboard

#: The number of blocks without a title on each page, all of which a test below runs, or one of
#: ``test_integrations.py``.  The pages of ``test_readme.py`` are not here.
UNTITLED = {
    "alerts": 3,
    "asking": 2,
    "inside": 2,
    "integrations/django": 3,
    "integrations/progress": 2,
    "sections": 5,
    "web": 1,
}
#: The pages whose files, the blocks with a title, are run by a test as they are.
FILES = {
    "inside",  # test_testing.py
    "tutorial",
    "web",  # test_web_mounts.py
    *(
        f"integrations/{name}"
        for name in (
            *("abort", "django", "fastapi", "flask", "progress"),
            *("results", "scheduler", "scripts", "traces"),
        )
    ),
}


def blocks(page):
    """Return the Python blocks of a page that have no title."""
    return [block for _, block in documents.blocks(DOCS / f"{page}.md")]


@pytest.fixture
def database_url(sqlite_database):
    """Return the URL of a database: the examples are the same on each kind."""
    return sqlite_database


def test_every_block_is_run():
    """No page has a Python block that no test runs."""
    untitled, files = {}, set()
    elsewhere = {*documents.PAGES, DOCS / "index.md"}
    for path in sorted(DOCS.rglob("*.md")):
        page = path.relative_to(DOCS).with_suffix("").as_posix()
        if path not in elsewhere and blocks(page):
            untitled[page] = len(blocks(page))
        if '```python title="' in path.read_text():
            files.add(page)

    assert UNTITLED == untitled
    assert FILES == files


def test_sections(joblog, make_broker, worker, eventually):
    """Each option of a section, a rate and a unique key is shown with its default."""
    broker = make_broker(joblog=joblog)
    names = {"dramatiq": dramatiq, "Exclusive": Exclusive, "Rate": Rate, "Unique": Unique}
    # Dramatiq before 2.0 needs the module of an actor's function.
    names["__name__"] = __name__
    section, several, rate, unique, last = blocks("sections")

    assert Exclusive("finance:{user_id}") == eval(section, names)
    assert Rate("shopify:{shop}", 40, per=60_000) == eval(rate, names)
    assert Unique("import:{user_id}") == eval(unique, names)
    exec(several, names)
    names["sync"].send(7)
    with worker(broker):
        eventually(lambda: joblog.jobs.of_actor("sync").finished().exists())
        # The newer message replaces the one that the block sent.
        exec(last, names)
        names["index"].send_with_options(args=(7,), delay=30_000)
        assert 1 == joblog.jobs.of_actor("index").skipped().count()


def test_waiting(joblog, make_broker, worker, capsys):
    """Code waits for the jobs that it sends, and follows one."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor
    def make_report(user_id):
        """Do nothing."""

    @dramatiq.actor
    def resize(image):
        """Do nothing."""

    names = {"joblog": joblog, "make_report": make_report}
    wait, several = blocks("asking")
    with worker(broker):
        exec(wait, names)
        exec(several, names | {"group": group, "resize": resize, "images": ["a", "b"]})
    assert ["finished None", "finished None"] == capsys.readouterr().out.splitlines()


SEEN = []


class Pager(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    def do_POST(self):
        """Keep a document."""
        SEEN.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        """Write nothing."""


# What apprise imports is old.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_alerts(database_url, joblog, make_broker, worker, eventually):
    """The rules are valid; a function posts a notice; another hears of a dead job."""
    rules, function, on_dead = (
        block.replace("postgresql://app@db/app", database_url) for block in blocks("alerts")
    )
    names = {}
    exec(rules, names)
    names["joblog"].close()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pager)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    names["requests"] = pytest.importorskip("requests")
    exec(function.replace("https://pager.example/hook", address), names)
    names["page_on_call"](
        Notice(name="dead", event="opened", summary="3 jobs", count=3, since=joblog.now())
    )
    server.shutdown()
    server.server_close()
    assert "3 jobs" in SEEN[0]["text"]

    mails = []
    names["send_mail"] = lambda *mail: mails.append(mail)
    exec(on_dead, names)
    broker = make_broker(joblog=names["joblog"])

    @dramatiq.actor(job_type="import", job_user="user_id", max_retries=0)
    def work(user_id):
        raise ValueError("row 7")

    work.send(7)
    with worker(broker):
        eventually(lambda: mails)
    assert [(7, "Your import failed: row 7")] == mails
    names["joblog"].close()


def test_the_job_on_each_line(monkeypatch):
    """A handler with the filter has the job's fields on each line, and a key can be made."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    names = {"logging": logging, "JobContextFilter": JobContextFilter}
    handler, key = blocks("inside")
    exec(handler, names)
    names["handler"].setStream(io.StringIO())

    logging.getLogger("shop").warning("no job")

    assert "WARNING [- - -] no job\n" == names["handler"].stream.getvalue()
    exec(key, names)
    names["joblog"].close()


def test_authorize(joblog):
    """The dashboard is opened by what the application's own function says."""

    class Person:
        email, is_admin = "ada@shop.example", False

    names = {"people": {"a session": Person}}
    (function,) = blocks("web")
    exec(function, names)
    page = dashboard(joblog, authorize=names["authorize"])
    with TestClient(page, base_url="http://localhost") as client:
        assert client.get("/jobs").status_code == 403
        client.cookies.set("session", "a session")
        assert client.get("/jobs").status_code == 200
        assert client.post("/do/save", data={"q": "state:dead"}).status_code == 403
