"""The pages of a job type, a user and a queue; periods and time zones."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from html import unescape
from urllib.parse import quote

import pytest
from pages import opened
from starlette.testclient import TestClient

from dramatiq_joblog.web import dashboard

HOUR = 3_600_000
ODD = [
    *("a b/c", 'x"><script>', "..", "q?x=1#y"),
    *(pytest.param(name, marks=pytest.mark.full) for name in ("Ünï.json", "100%", "a+b", "'; --")),
]


@pytest.fixture
def page(joblog):
    """Return a client of a dashboard."""
    with TestClient(opened(joblog), base_url="http://localhost") as asking:
        yield asking


@pytest.fixture
def lived(joblog, job_factory):
    """Return a log with a type that is worse than a week ago, and one that is not."""
    now = datetime.now(timezone.utc)
    for days, duration in ((0, 9_000), (7, 1_000)):
        for n in range(30):
            at = now - timedelta(days=days, minutes=10 + n)
            times = {"created_at": at, "enqueued_at": at, "started_at": at, "finished_at": at}
            job_factory(actor="load", job_type="import", duration=duration, user_id="anna", **times)
            job_factory(actor="mail", job_type="mail", duration=300, user_id="7", **times)
    job_factory(
        actor="load",
        job_type="import",
        jid="dead-1",
        user_id="anna",
        state="dead",
        error_type="FeedError",
        error_message="feed 7 has no rows",
        duration=1,
    )
    return joblog


def text_of(answer):
    """Return the text of a page, without markup."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", answer.text)))


def test_a_type_against_its_past(page, lived):
    """A job type's page compares it with a week ago, and shows its jobs."""
    answer = page.get("/types/import")
    assert answer.status_code == 200
    said = text_of(answer)
    assert "Slower than usual: p95 is 9.0 \u00d7 as long" in said
    assert "FeedError" in said
    assert "was 1.0 s" in said
    assert "anna" in said
    assert 'href="/users/anna"' in answer.text
    assert "Slower" not in text_of(page.get("/types/mail"))


def test_worse_types_come_first(page, lived):
    """Overview and Types begin with the worst change against the type's own past."""
    for path in ("/", "/types"):
        answer = page.get(path).text
        assert answer.index("/types/import") < answer.index("/types/mail")
        assert "slower" in answer
        assert "as usual" in answer


def test_jobs_without_a_type(page, joblog, job_factory):
    """An actor whose jobs have no type has its own page, by name."""
    job_factory(actor="plain", duration=50)
    assert 'href="/types/plain"' in page.get("/").text
    answer = page.get("/types/plain")
    assert answer.status_code == 200
    assert "/jobs?q=actor%3Aplain" in answer.text


def test_what_is_not_there(page, joblog, job_factory):
    """An unknown type or queue is not found, and the page of a user without jobs says so."""
    assert page.get("/types/none").status_code == 404
    assert "The log has no job of this user." in page.get("/users/none").text
    assert page.get("/queues/none").status_code == 200
    old = datetime.now(timezone.utc) - timedelta(days=40)
    job_factory(user_id="anna", created_at=old, enqueued_at=old, finished_at=old)
    assert "The last one was" in text_of(page.get("/users/anna"))


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ODD)
def test_odd_names(page, joblog, job_factory, name):
    """With any names of types, users and queues, their pages work and are safe."""
    job_factory(jid="odd", actor="load", job_type=name, user_id=name, queue=name, duration=5)
    job_factory(jid="odder", job_type=name, user_id=name, queue=name, state="enqueued")
    for path in ("/", "/types", "/queues", "/jobs", "/jobs/odd"):
        answer = page.get(path)
        assert answer.status_code == 200
        assert "<script>" not in answer.text.replace('<script src="', "")
        for href in re.findall(r'href="(/(?:types|users|queues)/[^"]*)"', answer.text):
            assert page.get(unescape(href)).status_code == 200
    if name != "..":
        for place in ("types", "users", "queues"):
            answer = page.get(f"/{place}/{quote(name, safe='')}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.few(2)
@pytest.mark.parametrize("path", ["/types", "/types/import", "/users/anna", "/queues"])
def test_the_same_as_data(page, lived, path):
    """Each of these pages is available as JSON."""
    answer = page.get(f"{path}.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()


def test_nothing_as_data(page, joblog, job_factory):
    """A user or a queue without jobs is available as JSON too, if nothing has the whole name."""
    assert page.get("/users/nobody.json").json() == {"user": "nobody", "jobs": []}
    assert [queue["name"] for queue in page.get("/queues/idle.json").json()["queues"]] == ["idle"]
    job_factory(user_id="x.json", created_at=datetime.now(timezone.utc) - timedelta(days=30))
    assert page.get("/users/x.json").headers["content-type"].startswith("text/html")


def test_a_user(page, lived, job_factory):
    """A user's page reports what is missing, and lists dead and unfinished jobs first."""
    job_factory(jid="going", user_id="anna", state="enqueued", finished_at=None, job_type="import")
    answer = page.get("/users/anna")
    said = text_of(answer)
    assert "1 job of this user did not finish: import dead-1 failed with FeedError" in said
    assert "1 has not ended yet, 30 ended normally" in said.lower()
    table = answer.text[answer.text.index("<table") :]
    assert table.index("dead-1") < table.index("going")
    assert page.get("/users/7").text.count('class="wf lane"') == 1


def test_a_user_who_may_not_be(page, lived):
    """The id of a user that is not an id of this log's users is refused with a sentence."""
    assert page.get("/users/" + "9" * 400).status_code in {200, 400}


def test_queues(page, joblog, job_factory):
    """A queue without a worker comes first, with its due jobs and since when."""
    past = datetime.now(timezone.utc) - timedelta(minutes=5)
    waits = {"state": "enqueued", "created_at": past, "enqueued_at": past, "queue_time": None}
    waits |= {"started_at": None, "finished_at": None, "duration": None}
    job_factory(queue="mail", **waits)
    job_factory(queue="late", **waits | {"state": "retrying", "eta": past, "queue_time": 1})
    job_factory(queue="default")
    now = datetime.now(timezone.utc)
    joblog.Worker.create(
        process="p", host="app", pid=1, threads=4, queues=["default", "default.DQ"],
        timeout=60_000, started_at=now, heartbeat_at=now,
    )  # fmt: skip
    said = text_of(page.get("/queues"))
    assert "No worker 1 5:0" in said
    assert said.index(" mail ") < said.index(" default ")
    found = {queue["name"]: queue for queue in page.get("/queues.json").json()["queues"]}
    assert found["mail"]["state"] == "nobody"
    assert found["mail"]["due"] == 1
    assert found["default"]["threads"] == 4
    assert sum(found["mail"]["depth"]) >= 4
    assert found["late"]["due"] == 1
    assert sum(found["late"]["depth"]) >= 4
    assert "Due, oldest first" in page.get("/queues/mail").text


def test_a_picked_time(page, lived):
    """A period selected on a chart is in the URL, and the page shows it."""
    now = datetime.now(timezone.utc)
    since, until = (f"{now - timedelta(minutes=m):%Y-%m-%dT%H:%MZ}" for m in (30, 20))
    for path in ("/", "/types", "/types/import", "/users/anna"):
        answer = page.get(path, params={"since": since, "until": until})
        assert answer.status_code == 200
    answer = page.get("/", params={"since": since, "until": until})
    assert f"ended:{since}..{until}" in unescape(answer.text).replace("%3A", ":")


@pytest.mark.parametrize(
    "query",
    [
        {"until": "1h"},
        {"since": "soon"},
        {"since": "1h", "until": "2h"},
        {"since": "1900-01-01"},
        {"since": "now"},
        {"range": "5h"},
        {"since": "9999-12-31T23:59Z"},
    ],
)
def test_times_that_make_no_sense(page, joblog, query):
    """An invalid time is answered with a sentence and 400."""
    for path in ("/", "/types", "/users/7"):
        answer = page.get(path, params=query)
        assert answer.status_code == 400
        assert "Not understood" in answer.text


def test_bars_lead_to_jobs(page, lived):
    """A bar of a chart links to a search for the jobs that it counts."""
    answer = page.get("/", params={"range": "1h"})
    bars = re.findall(r'<a class="bar-a" href="([^"]+)"[^>]*data-v="(\d+)\|', answer.text)
    full = [(unescape(href), int(count)) for href, count in bars if int(count)]
    assert full
    for href, count in full[:5]:
        found = page.get(href, headers={"accept": "application/json"}).json()["jobs"]
        assert len([job for job in found if job["state"] == "finished"]) == count


def test_a_time_zone_is_named_and_kept(page, joblog, job_factory):
    """Times are in UTC unless a zone is chosen, which a cookie stores and the footer names."""
    job_factory()
    assert "Times in UTC" in page.get("/").text
    token = next(c.value for c in page.cookies.jar if c.name == "joblog_csrf")
    form = {"csrf": token, "zone": "Asia/Kolkata", "next": "/jobs"}
    name = re.search(r'name="(\w*csrf\w*)"', page.get("/zone").text)[1]
    form[name] = form.pop("csrf")
    answer = page.post("/zone", data=form, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs")
    assert "Times in IST (UTC+5:30)" in page.get("/").text
    assert page.post("/zone", data=form | {"zone": "Mars/Base"}).status_code == 400
    assert page.post("/zone", data=form | {name: "x"}).status_code == 403
    page.cookies.set("joblog_zone", "../../etc/passwd")
    assert page.get("/").status_code == 200


def test_who_may_not_see_arguments_cannot_search_them(joblog, job_factory):
    """A search by arguments or lines is refused to users who may not see them."""
    job_factory(kwargs={"token": "abc"})
    app = dashboard(joblog, authorize=lambda request: "without-arguments")
    with TestClient(app, base_url="http://localhost") as asking:
        for words in ("args:abc", "args.token:abc", "lines:abc", "-args:abc"):
            assert asking.get("/jobs", params={"q": words}).status_code == 400
