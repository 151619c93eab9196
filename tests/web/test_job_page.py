"""A job's page: its actions in each state, its arguments by name, and its list."""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import parse_qs, urlsplit

import dramatiq
import pytest
from pages import opened
from starlette.testclient import TestClient

from dramatiq_joblog.errors import RequeueError
from dramatiq_joblog.web.formats import stretches

TRACE = """Traceback (most recent call last):
  File "/opt/lib/python3.11/site-packages/dramatiq/worker.py", line 485, in process_message
    res = actor(*message.args, **message.kwargs)
          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/opt/lib/python3.11/site-packages/dramatiq/actor.py", line 182, in __call__
    return self.fn(*args, **kwargs)
  File "/srv/shop/prices.py", line 88, in load
    rows = read(feed)
  File "/opt/lib/python3.11/json/__init__.py", line 346, in loads
    return decode(s)
shop.FeedError: feed 7
has no rows
"""


@pytest.fixture
def page(joblog):
    """Return a client of a dashboard."""
    with TestClient(opened(joblog), base_url="http://localhost") as asking:
        yield asking


def buttons(page, jid):
    """Return the texts of a job's buttons, and of the primary one."""
    html = page.get(f"/jobs/{jid}").text
    acts = html[html.index('id="acts"') : html.index('<dl class="facts"')]
    found = re.findall(r'<a class="(btn[^"]*)"[^>]*>(.*?)</a>', acts)
    texts = [(re.sub(r"<[^>]+>", "", text), " go" in look) for look, text in found]
    return [text for text, _ in texts], [text for text, filled in texts if filled]


@pytest.mark.parametrize(
    ("state", "beside", "filled"),
    [
        ("enqueued", {"Cancel"}, []),
        ("delayed", {"Cancel", "Run now"}, []),
        ("waiting", {"Cancel", "See the section"}, []),
        ("started", set(), []),
        ("retrying", {"Cancel"}, ["Try now"]),
        ("lost", {"Cancel", "See the worker"}, ["Cancel and run again"]),
        ("dead", {"Dismiss", "With other arguments"}, ["Run again"]),
        ("finished", {"Run this job again", "With other arguments"}, []),
        ("skipped", {"Run this job again", "With other arguments"}, []),
    ],
)
def test_what_works_is_offered(page, job_factory, state, beside, filled):
    """A job's page offers the actions that work in its state, with the right primary one."""
    job_factory(jid="j", state=state)
    texts, go = buttons(page, "j")
    assert set(texts) == beside | set(filled)
    assert go == filled


def test_the_dead_children_come_first(page, job_factory):
    """For a job with dead children, running them again is the primary action."""
    job_factory(jid="root")
    for jid in ("a", "b"):
        job_factory(jid=jid, state="dead", parent_jid="root", root_jid="root", error_type="E")
    _, filled = buttons(page, "root")
    assert filled == ["Run the 2 dead children again"]
    html = page.get("/jobs/root").text
    href = unescape(re.search(r'data-do="children" href="([^"]+)"', html)[1])
    assert set(parse_qs(urlsplit(href).query)["jid"]) == {"a", "b"}
    assert "Run 2 jobs again?" in page.get(href).text


def sent_jobs(joblog, make_broker, worker, run):
    """Declare an actor, send what *run* sends, and return the broker."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(max_retries=0)
    def load(user_id, feed, full=False):
        if feed == "bad":
            raise ValueError(feed)

    run(load)
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)
    joblog.core.writer.flush(timeout=10)
    return broker


def form_of(answer):
    """Return the fields of the form of a page."""
    html = answer.text[answer.text.index('id="question"') :]
    fields = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', html)
    return {unescape(name): unescape(value) for name, value in fields}


def test_arguments_by_name(joblog, make_broker, worker):
    """Arguments are shown under the actor's parameter names, with defaults last."""
    sent_jobs(joblog, make_broker, worker, lambda load: load.send(7, feed="good"))
    (job,) = joblog.jobs
    with TestClient(opened(joblog), base_url="http://localhost") as page:
        html = page.get(f"/jobs/{job.jid}").text
    html = html[html.index("<h2>Arguments</h2>") :]
    pairs = re.findall(r"<dt>(\w+)</dt><dd[^>]*>(.*?)</dd>", html)
    assert [(name, unescape(value)) for name, value in pairs][:3] == [
        ("user_id", "7"),
        ("feed", "'good'"),
        ("full", "False default"),
    ]


def test_run_again_with_other_arguments(joblog, make_broker, worker):
    """A job runs again with some arguments changed, by name, and the others as sent."""
    broker = sent_jobs(joblog, make_broker, worker, lambda load: load.send(7, feed="bad"))
    (job,) = joblog.jobs
    with TestClient(opened(joblog, broker=broker), base_url="http://localhost") as page:
        fields = form_of(page.get("/confirm/change", params={"jid": job.jid}))
        for odd in ("no json", "", " ", "NaN", "1e999", "[" * 9_000, "9" * 9_000):
            assert page.post("/do/change", data=fields | {"arg-feed": odd}).status_code == 400, odd
        changed = fields | {"arg-feed": '"good"', "arg-user_id": "8", "arg-full": ""}
        answer = page.post("/do/change", data=changed)
    assert answer.status_code == 200
    joblog.core.writer.flush(timeout=10)
    (new,) = joblog.jobs.where(joblog.Job.replay_of == job.jid)
    assert (new.args, new.kwargs) == ([8], {"feed": "good"})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"feeds": 1}, "its actor takes no argument 'feeds'"),
        ({"feed": 1, "load": 2}, "'load'"),
    ],
)
def test_arguments_are_checked(joblog, make_broker, worker, arguments, text):
    """An argument that the actor does not take is refused with a sentence, and nothing is sent."""
    sent_jobs(joblog, make_broker, worker, lambda load: load.send(7, feed="bad"))
    (job,) = joblog.jobs
    with pytest.raises(RequeueError, match=text):
        joblog.requeue(job.jid, arguments=arguments)
    joblog.core.writer.flush(timeout=10)
    assert joblog.jobs.count() == 1


def test_one_first_and_then_the_rest(joblog, make_broker, worker):
    """Of several jobs one runs first, and its page offers the others."""

    def run(load):
        for number in range(3):
            load.send(number, feed="bad")

    broker = sent_jobs(joblog, make_broker, worker, run)
    with TestClient(opened(joblog, broker=broker), base_url="http://localhost") as page:
        asked = page.get("/confirm/requeue", params={"q": "state:dead"})
        answer = page.post("/do/requeue", data=form_of(asked) | {"first": "1"})
        joblog.core.writer.flush(timeout=10)
        assert joblog.jobs.where(joblog.Job.replay_of.is_null(False)).count() == 1
        assert "run the other 2 again" in answer.text
        then = unescape(re.search(r'data-ask href="([^"]+)">run the other', answer.text)[1])
        asked = page.get(then)
        assert "Run 2 jobs again?" in asked.text
        page.post("/do/requeue", data=form_of(asked))
    joblog.core.writer.flush(timeout=10)
    assert joblog.jobs.where(joblog.Job.replay_of.is_null(False)).count() == 3


def test_lost_jobs_in_one_step(joblog, make_broker, worker):
    """A lost job is cancelled and runs again in one step."""
    broker = sent_jobs(joblog, make_broker, worker, lambda load: load.send(7, feed="good"))
    joblog.Job.update(state="lost", finished_at=None).execute()
    (job,) = joblog.jobs
    with TestClient(opened(joblog, broker=broker), base_url="http://localhost") as page:
        page.post("/do/rerun", data=form_of(page.get(f"/confirm/rerun?jid={job.jid}")))
    joblog.core.writer.flush(timeout=10)
    old = joblog.get(job.jid)
    assert (old.state, old.dead_reason) == ("dead", "cancelled")
    assert joblog.get(old.replayed_by).kwargs == {"feed": "good"}


@pytest.mark.parametrize("state", ["delayed", "retrying"])
def test_not_to_wait_any_longer(joblog, make_broker, eventually, state):
    """A delayed job can run at once as a new job, and its own message does not run."""
    runs = []
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(max_retries=3, min_backoff=60_000)
    def load(feed):
        runs.append(feed)
        if state == "retrying" and len(runs) == 1:
            raise ValueError(feed)

    message = load.send_with_options(args=(7,), delay=60_000 if state == "delayed" else None)
    worker = dramatiq.Worker(broker, worker_timeout=50)
    worker.start()
    try:
        eventually(lambda: joblog.jobs.exists() and joblog.get(message.message_id).state == state)
        with TestClient(opened(joblog, broker=broker), base_url="http://localhost") as page:
            asked = page.get(f"/confirm/now?jid={message.message_id}")
            assert "Run load now?" in asked.text
            answer = page.post("/do/now", data=form_of(asked))
        again = joblog.get(message.message_id).replayed_by
        eventually(lambda: joblog.get(again).state == "finished")
    finally:
        worker.stop()
    old = joblog.get(message.message_id)
    assert (old.state, old.dead_reason) == ("dead", "cancelled")
    assert answer.url.path == f"/jobs/{old.replayed_by}"
    assert runs == [7] * (2 if state == "retrying" else 1)


def test_the_list_one_came_from(page, job_factory):
    """A job opened from a list has links to the previous and next job in it."""
    for number in range(3):
        job_factory(jid=f"d{number}", actor="load", created_at=1_000 * number)
        job_factory(jid=f"o{number}", actor="other", created_at=1_000 * number + 500)
    html = page.get("/jobs", params={"q": "actor:load"}).text
    href = unescape(re.search(r'href="(/jobs/d1[^"]*)"', html)[1])
    html = page.get(href).text
    assert 'rel="prev" href="/jobs/d2?q=actor%3Aload"' in html
    assert 'rel="next" href="/jobs/d0?q=actor%3Aload"' in html
    assert 'rel="prev"' not in page.get("/jobs/d1").text
    assert page.get("/jobs/d1", params={"q": "nonsense:x"}).status_code == 200


def test_the_list_in_another_order(page, job_factory):
    """The list of jobs is sorted by a duration, without jobs that have none."""
    for number in (5, 50, 500):
        job_factory(jid=f"d{number}", duration=number)
    job_factory(jid="none", duration=None, state="enqueued")
    html = page.get("/jobs", params={"sort": "duration"}).text
    assert re.findall(r'data-jid="([^"]+)"', html) == ["d500", "d50", "d5"]
    assert 'aria-sort="descending"' in html
    for sort in ("state", "duration desc", "id"):
        assert page.get("/jobs", params={"sort": sort}).status_code == 400


def test_frames_of_libraries_are_folded():
    """A traceback is split into the application's frames, those of packages, and the error."""
    parts = stretches(TRACE)
    assert [(part.package, len(part.frames)) for part in parts] == [
        ("dramatiq", 2),
        ("", 1),
        ("Python", 1),
        ("", 0),
    ]
    assert parts[0].frames[0].code == "res = actor(*message.args, **message.kwargs)"
    assert (parts[3].error, parts[3].text.split()) == (
        "shop.FeedError",
        ["feed", "7", "has", "no", "rows"],
    )


@pytest.mark.parametrize("text", ["", "nothing of the kind", "  File", "\n\n", "x" * 10_000])
def test_odd_tracebacks(text):
    """Any text in place of a traceback is shown completely."""
    assert "".join(part.error + part.text for part in stretches(text)).strip() == text.strip()


def test_dead_jobs_by_what_they_say(page, job_factory):
    """Dead jobs of one error are grouped by their messages, whatever numbers stand in them."""
    for number in range(4):
        job_factory(state="dead", error_type="E", error_message=f"feed {number} has no rows")
    job_factory(state="dead", error_type="E", error_message='user "anna" is gone')
    html = page.get("/dead").text
    found = re.findall(r'<div class="pat"><b>(\d+)</b><a href="([^"]+)"[^>]*>(.*?)</a>', html)
    assert [(count, text) for count, _, text in found] == [
        ("4", "feed … has no rows"),
        ("1", "user … is gone"),
    ]
    jobs = page.get(unescape(found[0][1]), headers={"accept": "application/json"}).json()["jobs"]
    assert len(jobs) == 4
