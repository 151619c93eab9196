"""Saved searches: the same in code, on the dashboard and in the terminal."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from pages import opened
from starlette.testclient import TestClient

from dramatiq_joblog.cli.confirm import myself
from dramatiq_joblog.cli.main import program
from dramatiq_joblog.errors import SearchError
from dramatiq_joblog.web import dashboard


@pytest.fixture
def ask(joblog, database_url):
    """Return a function that runs the command line, and returns its exit code and output."""

    def run(*arguments):
        joblog.release()
        result = CliRunner().invoke(program, ["--database", database_url, *arguments])
        return result.exit_code, result.output

    return run


@pytest.fixture
def page(joblog):
    """Return a client of a dashboard with full access."""
    with TestClient(opened(joblog), base_url="http://localhost") as asking:
        yield asking


def deeds(joblog):
    """Return the recorded actions, oldest first."""
    return [(row.what, row.who, row.detail) for row in joblog.actions][::-1]


def post(page, what, **fields):
    """Send a form as the page does."""
    html = page.get("/jobs", params={"q": fields["q"]}).text
    token = re.search(r'name="csrf" value="([^"]+)"', html)[1]
    return page.post(f"/do/{what}", data=fields | {"csrf": token}, follow_redirects=False)


@pytest.mark.every_database
def test_a_name_for_words(joblog, job_factory):
    """A saved search stands for its words, beside others, until it is replaced or deleted."""
    for kind in ("import", "mail"):
        job_factory(state="dead", job_type=kind, dead_reason="throws")
    joblog.save_search("dead  imports", "state:dead type:import", who="ada")

    assert ["import"] == [job.job_type for job in joblog.search('saved:"dead imports"')]
    assert 0 == joblog.search('saved:"dead imports" actor:other').count()
    assert [("dead imports", "ada")] == [(row.name, row.who) for row in joblog.searches]

    joblog.save_search("dead imports", "type:mail")
    assert ["mail"] == [job.job_type for job in joblog.search('saved:"dead imports"')]
    assert 1 == joblog.searches.count()

    assert joblog.delete_search("dead  imports", who="ada")
    assert not joblog.delete_search("dead imports", who="ada")
    assert deeds(joblog) == [
        ("save_search", "ada", "dead imports"),
        ("save_search", "unknown", "dead imports"),
        ("delete_search", "ada", "dead imports"),
    ]
    with pytest.raises(SearchError, match="none is saved yet"):
        joblog.search('saved:"dead imports"')


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "state:dead"),
        ("   ", "state:dead"),
        ('a "b"', "state:dead"),
        ("x" * 81, "state:dead"),
        (7, "state:dead"),
        ("fine", ""),
        ("fine", "state:nonsense"),
        ("fine", "since:never"),
        ("fine", "saved:other"),
    ],
)
def test_what_is_refused(joblog, name, words):
    """An invalid name, or an invalid search, is not saved."""
    with pytest.raises(SearchError):
        joblog.save_search(name, words)
    assert 0 == joblog.searches.count()


@pytest.mark.parametrize("name", ["名前", "مستورد", "a\u202eb\x00c", "x" * 80, "-since:1d", "a:b"])
def test_odd_names(joblog, job_factory, name):
    """A saved search is found under its name, whatever the name."""
    job_factory(job_type="mail")
    joblog.save_search(name, "type:mail")

    assert 1 == joblog.search(f'saved:"{name}"').count()
    assert joblog.delete_search(name)


def test_not_left_out(joblog):
    """A saved search cannot be negated, because its words have different meanings."""
    joblog.save_search("mail", "type:mail")
    with pytest.raises(SearchError, match="-saved:mail"):
        joblog.search("-saved:mail")


def test_on_the_page(joblog, page, job_factory):
    """The page saves the search that it shows, offers it to everyone, and deletes it again."""
    job_factory(job_type="mail")
    job_factory(job_type="import")

    assert 303 == post(page, "save", q="type:mail", name="Mail <b>").status_code

    html = page.get("/jobs").text
    assert 'href="/jobs?q=type%3Amail"' in html
    assert "Mail &lt;b&gt;</a>" in html
    assert 1 == len(page.get("/jobs.json", params={"q": 'saved:"Mail <b>"'}).json()["jobs"])
    words = page.get("/complete", params={"word": "saved:Ma"}).json()["words"]
    assert ['saved:"Mail <b>"'] == [one["word"] for one in words]
    assert 303 == post(page, "forget", q="type:mail", name="Mail <b>").status_code
    assert 0 == joblog.searches.count()
    assert deeds(joblog) == [
        ("save_search", "local", "Mail <b>"),
        ("delete_search", "local", "Mail <b>"),
    ]
    assert "deleted a saved search</span>" in page.get("/actions").text


def test_who_may_only_look(joblog):
    """Read-only users see saved searches, but cannot save or delete any."""
    joblog.save_search("mail", "type:mail")
    with TestClient(
        dashboard(joblog, authorize=lambda request: "read-only"), base_url="http://localhost"
    ) as page:
        html = page.get("/jobs", params={"q": "type:mail"}).text
        assert ">mail</a>" in html
        assert "Save this search" not in html
        assert "Delete this saved search" not in html
        assert 403 == page.post("/do/save", data={"q": "type:mail", "name": "x"}).status_code


def test_hidden_arguments(joblog, job_factory):
    """A saved search does not reveal hidden arguments."""
    job_factory(args=["secret"])
    joblog.save_search("peek", "args:secret")
    with TestClient(
        dashboard(joblog, authorize=lambda request: "without-arguments"),
        base_url="http://localhost",
    ) as page:
        answer = page.get("/jobs.json", params={"q": "saved:peek"})
        html = page.get("/jobs").text
    assert "jobs" not in answer.json()
    assert "peek" not in html


def test_in_the_terminal(joblog, ask, job_factory):
    """The terminal saves, shows, uses and deletes saved searches."""
    job_factory(job_type="mail", jid="the-mail")
    job_factory(job_type="import", jid="the-import")
    assert 1 == ask("searches")[0]

    assert 0 == ask("searches", "--save", "post", "type:mail")[0]

    code, shown = ask("searches")
    assert (0, True) == (code, "type:mail" in shown)
    assert ["the-mail"] == [
        row["jid"] for row in json.loads(ask("--json", "list", "saved:post")[1])
    ]
    assert "the-mail" in ask("list", "--saved", "post")[1]
    assert 0 == ask("searches", "--delete", "post")[0]
    assert [(what, myself(), "post") for what in ("save_search", "delete_search")] == deeds(joblog)
    code, said = ask("searches", "--delete", "post")
    assert code
    assert "no saved search 'post'" in said
    assert ask("searches", "--save", "x", "--delete", "y")[0]
    assert ask("searches", "type:mail")[0]
