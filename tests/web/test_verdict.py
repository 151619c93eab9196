"""The first line of every page: what needs attention, or that all is well."""

from __future__ import annotations

import re
import time
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest
from pages import opened
from starlette.testclient import TestClient

from dramatiq_joblog import JobLog
from dramatiq_joblog.states import ProblemKind

#: Times of a job that has waited for long.
WAITS = dict.fromkeys(("created_at", "enqueued_at", "updated_at"), 1_700_000_000_000)
PAGES = ("/", "/jobs", "/types", "/queues", "/dead", "/locks", "/workers", "/actions")


@pytest.fixture
def database_url(sqlite_database):
    """Return the URL of a database: queries are tested on each kind elsewhere."""
    return sqlite_database


@pytest.fixture
def page(joblog):
    """Return a client of a dashboard with full access."""
    with TestClient(opened(joblog), base_url="http://localhost") as asking:
        yield asking


def ago(milliseconds):
    return int(time.time() * 1000) - milliseconds


def verdict(text):
    """Return the title of a page, and its first line or section as text."""
    title = text.partition("<title>")[2].partition("</title>")[0]
    begin = text.index('id="needs"')
    end = "</section>" if text.rfind("<section", 0, begin) > text.index("<main") else "</p>"
    return unescape(title), text[begin : text.index(end, begin)]


@pytest.mark.few(3)
@pytest.mark.parametrize("path", PAGES)
def test_all_is_well(page, job_factory, path):
    """A page of a log without problems says so, and the tab's title has none."""
    job_factory()

    title, first = verdict(page.get(path).text)

    assert "All is well" in first
    assert "need" not in title


@pytest.mark.few(3)
@pytest.mark.parametrize("path", PAGES)
def test_what_needs_someone(page, joblog, job_factory, path):
    """Every page, and its tab's title, says how many things need someone; a link finds the jobs."""
    job_factory(state="lost", worker="web1:17:3", updated_at=ago(60_000))
    job_factory(state="enqueued", queue="odd <b>&'mail", **WAITS)

    title, first = verdict(page.get(path).text)

    assert title.startswith("2 need attention · ")
    assert "2 things need attention" in first
    assert "<b>&" not in first
    links = [unescape(link) for link in re.findall('href="(.*?)"', first)]
    found = [parse_qs(urlsplit(link).query)["q"][0] for link in links if "?q=" in link]
    # What runs them again asks for the same jobs.
    searches = list(dict.fromkeys(found))
    assert 2 == len(searches)
    assert [1, 1] == [joblog.search(words).count() for words in searches]


def test_many_things(page, job_factory):
    """Of many problems, the overview shows seven, other pages three, and how many more."""
    for number in range(9):
        job_factory(state="enqueued", queue=f"q{number}", **WAITS)

    title, first = verdict(page.get("/").text)

    assert title.startswith("9 need attention")
    assert (7, 1) == (first.count('class="cure"'), first.count("and 2 more"))
    assert "and 6 more" in verdict(page.get("/jobs").text)[1]


def test_an_empty_log(page):
    """A log without jobs explains how to begin, without a verdict."""
    assert 'id="needs"' not in page.get("/").text


def test_programs(page, job_factory):
    """Programs get the problems as JSON, in /health, and by kind in /metrics, with zeros."""
    job_factory(state="lost", worker="web1:17:3")

    for path in ("/overview.json", "/health"):
        (found,) = page.get(path).json()["problems"]
        assert ("lost", 1, "state:lost") == (found["kind"], found["count"], found["search"])
    metrics = page.get("/metrics").text
    samples = dict(re.findall(r'^joblog_problems\{kind="(\w+)"\} (\S+)$', metrics, re.MULTILINE))
    assert {*map(str, ProblemKind)} == set(samples)
    assert ("1.0", "0.0") == (samples["lost"], samples["threads"])


def test_a_line_is_asked_for_once(joblog, page, job_factory, asked):
    """Many viewers of a page take no more verdict queries than one."""
    job_factory()
    page.get("/jobs")
    site_asks = []
    ask = joblog.problems
    joblog.problems = lambda **options: site_asks.append(options) or ask(**options)

    for _ in range(5):
        page.get("/locks")

    # On a busy machine the verdict of before may be too old by then, once.
    assert len(site_asks) <= 1


def test_a_database_without_tables(sqlite_url, tmp_path):
    """For a log without tables, pages show a sentence instead of an error."""
    log = JobLog(f"{sqlite_url}.other", spool=tmp_path / "spool")
    assert {"schema"} <= {problem.subject for problem in log.problems()}
    log.close()
