"""An export of the dashboard: static files that work from a disk and under any path."""

from __future__ import annotations

import asyncio
import functools
import html
import http.server
import re
import threading

import pytest
import tiers
from click.testing import CliRunner
from crowded import crowd
from pages import chromium
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from dramatiq_joblog import ConfigurationError, JobLog
from dramatiq_joblog.cli.main import program
from dramatiq_joblog.errors import DatabaseAwayError
from dramatiq_joblog.web import export
from dramatiq_joblog.web.export import MISSING, _Copy, name_of


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Return a folder with an export of a crowded log, and the jids of its jobs by state."""
    folder = tmp_path_factory.mktemp("copy")
    log = JobLog(f"sqlite:///{folder / 'jobs.db'}")
    log.create_tables()
    jids = crowd(log, many=120 if tiers.whole() else 40)
    done = export(log, folder / "page", pages=150, title="shop", environment="test")
    log.close()
    return done, jids


def links_of(text):
    """Return the links of a page, with their elements."""
    return [
        (what, html.unescape(link))
        for what, link in re.findall(r'\b(href|src|action|data-complete)="([^"]*)"', text)
    ]


@pytest.mark.full
def test_every_link_leads_to_a_file(copy):
    """Each link of each page is relative, and leads to a file of the export."""
    folder = copy[0].index.parent
    names = {path.name for path in folder.iterdir()}
    assert len(names) == copy[0].files > 60
    seen = 0
    for path in folder.glob("*.html"):
        for what, link in links_of(path.read_text("utf-8")):
            name = link.partition("#")[0]
            assert not name or name in names, (path.name, what, link)
            seen += 1
    assert seen > 1_500


@pytest.mark.full
def test_nothing_of_the_server_is_left(copy):
    """No file contains the internal path prefix, and none polls for updates."""
    for path in copy[0].index.parent.iterdir():
        text = path.read_text("utf-8")
        assert not re.search(r'"/[0-9a-f]{32}', text), path.name
        assert "data-every" not in text, path.name


@pytest.mark.full
def test_what_acts_is_not_there(copy):
    """Actions, searches and sign-in lead to a page that explains that this is a copy."""
    folder = copy[0].index.parent
    jobs = (folder / "jobs.html").read_text("utf-8")
    assert {link for what, link in links_of(jobs) if what == "action"} == {MISSING}
    assert "dramatiq-joblog web" in (folder / MISSING).read_text("utf-8")
    assert not re.search(r"<(?:button|input)[^>]*(?:requeue|dismiss|cancel)", jobs)
    assert copy[0].missing


@pytest.mark.full
@pytest.mark.parametrize("state", ["dead", "started", "waiting", "finished"])
def test_a_job_of_each_state(copy, state):
    """A list links to its jobs, each of which has one file."""
    name = name_of(f"/jobs/{copy[1][state]}")
    page = (copy[0].index.parent / name).read_text("utf-8")
    assert copy[1][state] in page


@pytest.mark.full
def test_a_copy_in_a_browser(copy):
    """A browser can navigate an export, from the disk and under a path."""
    folder = copy[0].index.parent
    root = folder.parent
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root)
    with (
        chromium() as browser,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for begin in (folder.as_uri(), f"http://127.0.0.1:{server.server_port}/{folder.name}"):
            page = browser.new_page()
            errors = []
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.on("requestfailed", lambda request, errors=errors: errors.append(request.url))
            page.goto(f"{begin}/index.html")
            for name in ("types", "dead", "queues", "locks", "workers", "jobs"):
                page.locator(f"#nav-{name}").click()
                expect(page.locator("h1")).to_be_visible()
                expect(page.locator(f"#nav-{name}")).to_have_attribute("aria-current", "page")
            page.wait_for_load_state()
            page.keyboard.press("t")
            expect(page.locator("html")).to_have_attribute("data-theme", re.compile("dark|light"))
            page.keyboard.press("g")
            page.keyboard.press("d")
            page.get_by_label("Search jobs").fill("state:dead")
            page.get_by_label("Search jobs").press("Enter")
            expect(page.locator("h1")).to_have_text("Not in this copy")
            assert errors == []
            page.close()
        server.shutdown()


def test_a_folder_that_is_in_use(joblog, tmp_path):
    """A folder with files in it is refused, and so is a file, before anything is written."""
    (tmp_path / "mine").write_text("mine")
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ConfigurationError, match="is not an empty folder"):
            export(joblog, place)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".db"] == ["mine"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pages": 0}, "pages=0"),
        ({"pages": True}, "pages=True"),
        ({"time_zone": "X"}, "not a time"),
    ],
)
def test_values_that_make_no_sense(joblog, tmp_path, options, text):
    """An invalid value is refused, and no folder is made."""
    with pytest.raises(ConfigurationError, match=text):
        export(joblog, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.full
def test_jids_of_all_kinds(joblog, job_factory, tmp_path):
    """Whatever a jid is, its list links to a file with its job."""
    jids = ["a/b", "a b?c#d", "x.json", "\"<&'", "\u05d9\u05d5\u05de\u05df", "CON", "con", "%2F"]
    for number, jid in enumerate(jids):
        job_factory(jid=jid, state="dead", error_type=f"Error{number}")
    done = export(joblog, tmp_path / "new", pages=120)
    folder = done.index.parent
    leads = {link for _, link in links_of((folder / "jobs.html").read_text("utf-8"))}
    pages = [folder / link for link in leads if link.startswith("jobs-")]
    texts = [path.read_text("utf-8") for path in pages]
    for number in range(len(jids)):
        assert any(f"Error{number}" in text and "job-head" in text for text in texts), number


def test_a_log_that_stops_answering(tmp_path):
    """If the database becomes unavailable, the export stops, without error pages."""
    answer = Response("too late", 503)
    page = Starlette(routes=[Route("/", lambda _: answer)])
    with pytest.raises(DatabaseAwayError, match="the page / could not be exported"):
        asyncio.run(_Copy(page, tmp_path, 10).write())
    assert list(tmp_path.iterdir()) == []


def test_an_empty_log_by_the_command(joblog, database_url, tmp_path):
    """The command exports an empty log too, and prints the first file."""
    call = ["--database", database_url, "web", "--export", str(tmp_path / "new")]
    done = CliRunner().invoke(program, call)
    assert done.exit_code == 0, done.output
    assert "index.html" in done.output.replace("\n", "")
    assert (tmp_path / "new" / "index.html").exists()


@pytest.mark.parametrize(
    ("link", "name"),
    [
        ("/", "index.html"),
        ("/jobs", "jobs.html"),
        ("/jobs.json", "jobs.json"),
        ("/static/ab12/style.css", "static-ab12-style.css"),
        ("/health", "health.txt"),
    ],
)
def test_names_that_can_be_read(link, name):
    """The name of a file is its path, if valid."""
    assert name_of(link) == name


def test_names_that_would_be_the_same():
    """Links that a file system could confuse have different files."""
    links = ["/users/Ada", "/users/ada", "/users/a%2Fda", "/users/%D7%99", "/users/%D9%85", "/u-"]
    links += ["/jobs?q=a", "/jobs?q=A", "/users/" + "x" * 300, "/users/" + "x" * 301, "/not-here"]
    names = []
    for link in links:
        names.append(name_of(link, names))
    assert len({name.lower() for name in names}) == len(links)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,110}", name) for name in names)
    assert MISSING not in names
