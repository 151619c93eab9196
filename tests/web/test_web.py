"""The dashboard over HTTP: content, access and actions."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta, timezone
from html import unescape
from urllib.parse import quote

import dramatiq
import psycopg
import pytest
from dramatiq.middleware import SkipMessage
from pages import opened
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from dramatiq_joblog import ConfigurationError, JobLog
from dramatiq_joblog.web import dashboard
from dramatiq_joblog.web.access import POLICY

PAGES = ("/", "/jobs", "/dead", "/locks", "/workers", "/actions")
ROUTES = (*PAGES, "/jobs.json", "/jobs/x", "/confirm/requeue", "/complete", "/metrics", "/health")
HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}"


def client(app, *, host="127.0.0.1", base_url="http://localhost", **kwargs):
    """Return a client with the address *host*."""
    return TestClient(app, base_url=base_url, client=(host, 50_000), **kwargs)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request, database_of):
    """Return the URL of an empty database of two kinds; the third is tested page by page."""
    return database_of(request.param)


@pytest.fixture
def page(joblog):
    """Return a client of a dashboard, on this machine."""
    with client(opened(joblog)) as asking:
        yield asking


@pytest.fixture
def nothing(sqlite_database):
    """Return a log without jobs, for tests that do not depend on the database."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


@pytest.fixture
def local(nothing):
    """Return a client of a dashboard without jobs, on this machine."""
    with client(opened(nothing)) as asking:
        yield asking


def csrf(asking, path="/jobs"):
    """Return the CSRF token in the forms of a page."""
    asking.get(path)
    return next(c.value for c in asking.cookies.jar if c.name == "joblog_csrf")


@pytest.fixture
def lived(joblog, make_broker, worker):
    """Return jobs that really ran: finished, dead with hostile texts, and skipped."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(job_type="import", job_user="user", max_retries=1, min_backoff=10)
    def load(user, token=None):
        if user == 2:
            raise ValueError(HOSTILE)
        if user == 3:
            raise SkipMessage(HOSTILE)

    sent = {"finished": load.send(1), "dead": load.send(2, token="s3cr3t"), "skipped": load.send(3)}
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)
    joblog.core.writer.flush(timeout=10)
    return {name: message.message_id for name, message in sent.items()}


# What it shows


def test_a_page_of_an_empty_log_teaches(page):
    """Each page of an empty log works, and says what to do or that there is nothing."""
    for path in PAGES:
        answer = page.get(path)

        assert answer.status_code == 200
        assert '<main class="page" id="main"' in answer.text


def test_every_page_answers_on_mysql(mysql_url):
    """The queries of the pages work on MySQL and MariaDB too."""
    log = JobLog(mysql_url)
    log.create_tables()
    now = int(time.time() * 1000)
    facts = {"actor": "a", "queue": "q", "attempt": 1, "created_at": now, "updated_at": now}
    states = ("delayed", "waiting", "started", "retrying", "finished", "dead")
    for state in states:
        log.Job.create(jid=state, state=state, section="k", finished_at=now, eta=now, **facts)
    with client(opened(log)) as asking:
        paths = (*PAGES, *(f"/jobs/{state}" for state in states), "/metrics", "/health")
        for path in (*paths, "/jobs?q=state:dead+a", "/confirm/dismiss?jid=dead"):
            answer = asking.get(path)

            assert answer.status_code == 200, path
            assert "The database took longer" not in answer.text
    log.close()


def test_the_list_tells_jobs_that_ran(page, lived):
    """The list has a row for each job, with its state, its user and a link to it."""
    html = page.get("/jobs").text

    for jid in lived.values():
        assert f'href="/jobs/{jid}?list=1"' in html
    assert html.count('<tr id="job-') == 3


def test_a_search_narrows_the_list(page, lived):
    """The search words filter, and tabs keep them."""
    html = page.get("/jobs", params={"q": "type:import state:dead"}).text

    assert lived["dead"] in html
    assert lived["finished"] not in html
    assert 'value="type:import state:dead"' in html
    assert "/jobs?q=type%3Aimport+state%3Afinished" in html


def test_a_whole_jid_leads_to_its_job(page, lived):
    """A search for a full jid redirects to its page."""
    answer = page.get("/jobs", params={"q": lived["dead"]})

    assert answer.url.path == f"/jobs/{lived['dead']}"


def test_a_search_that_is_not_understood_says_what_to_write(page):
    """A bad search is answered with 400 and one sentence, on the page and as data."""
    answer = page.get("/jobs", params={"q": "stat:dead"})

    assert answer.status_code == 400
    assert "did you mean state:" in answer.text
    assert page.get("/jobs.json", params={"q": "stat:dead"}).json()["error"]


def test_pages_of_the_list_hang_together(page, job_factory):
    """The links for older and newer jobs cover all jobs once."""
    jids = [job_factory().jid for _ in range(120)]
    seen, path = [], "/jobs"
    while path:
        html = page.get(path).text
        seen += re.findall(r'data-jid="([^"]+)"', html)
        older = re.search(r'rel="next" href="([^"]+)"', html)
        path = older and older[1].replace("&amp;", "&")

    assert sorted(seen) == sorted(jids)


def test_a_job_tells_its_runs(page, lived):
    """A job's page has each failed run with its traceback, and marks what is redacted."""
    html = page.get(f"/jobs/{lived['dead']}").text

    assert html.count('<details class="run"') == 2
    assert "raise <b>" not in html
    assert '<b class="s-dead">ValueError</b>' in html
    assert '<span class="redact"' in html
    assert "s3cr3t" not in html
    assert "Run 2, dead" in html


def test_hostile_text_is_shown_as_text(page, lived):
    """Text of a job is never interpreted as markup or a template."""
    for path in ("/jobs", "/dead", f"/jobs/{lived['dead']}", f"/jobs/{lived['skipped']}", "/"):
        html = page.get(path).text

        assert "<script>alert" not in html
    assert "{{ 7*7 }}" in page.get(f"/jobs/{lived['dead']}").text


TEXTS = (
    *("actor", "dead_reason", "error_message", "error_type", "job_type", "jid", "note", "queue"),
    *("parent_jid", "replay_of", "section", "skip_reason", "user_id", "worker"),
)


@pytest.mark.few(2)
@pytest.mark.parametrize("state", ["dead", "skipped", "started", "waiting"])
def test_every_column_is_shown_as_text(page, joblog, job_factory, state):
    """No column can bring markup into a page, whatever the state."""
    texts = {name: HOSTILE for name in TEXTS if name != "dead_reason"}
    documents = {
        "args": [HOSTILE, [HOSTILE]],
        "kwargs": {HOSTILE: {HOSTILE: HOSTILE}},
        "meta": {HOSTILE: HOSTILE},
        "progress": {"done": HOSTILE, "total": HOSTILE, "text": HOSTILE},
    }
    job = job_factory(**texts, **documents, state=state)
    joblog.record(HOSTILE, who=HOSTILE, jid=job.jid, key=HOSTILE, detail=HOSTILE)
    paths = [*PAGES, "/jobs/" + quote(job.jid, safe=""), "/jobs?q=" + quote(f'actor:"{HOSTILE}"')]
    for path in paths:
        answer = page.get(path)

        assert answer.status_code in {200, 400}, path
        assert "<script>alert" not in answer.text


def test_a_jid_of_any_form_has_a_page(page, job_factory):
    """A job whose id has slashes, spaces and percent signs is found by its link."""
    job = job_factory(jid="a/b c?d#e 5% ö.json")
    html = page.get("/jobs").text
    (href,) = set(re.findall(r'href="(/jobs/a[^"]+)"', html))

    assert job.jid in page.get(href).text.replace("&#34;", '"')


def test_locks_have_the_limits_that_were_set(page, joblog):
    """The locks' page says which key is paused, by whom and until when."""
    joblog.set_limit("erp", 0, who="ada")
    joblog.release()
    text = " ".join(page.get("/locks").text.split())
    assert "is paused: no job with it starts. Its limit was set to 0 by ada." in text
    [limit] = page.get("/locks.json").json()["limits"]
    assert ("erp", 0, "ada", None) == tuple(limit[n] for n in ("key", "limit", "who", "until"))


def test_locks_tell_holder_and_line(page, joblog, job_factory):
    """The locks' page has the holder, its fence, and the waiters in order."""
    now = datetime.now(timezone.utc)
    line = [
        job_factory(
            state="waiting",
            section="finance:42",
            finished_at=None,
            started_at=None,
            waiting_since=now - timedelta(seconds=passed),
        )
        for passed in (5, 50)
    ]
    with joblog.lock("finance:42") as lease:
        html = page.get("/locks").text
        data = page.get("/locks.json").json()["locks"]

    assert "finance:42" in html
    assert f'data-l="fence">{lease.fence}<' in html
    assert html.index(line[1].jid) < html.index(line[0].jid)
    assert data[0]["waiters"] == [line[1].jid, line[0].jid]


# Data


def test_workers_that_ended_are_not_busy(page, joblog):
    """An ended worker is shown without threads."""
    now = joblog.now()
    for pid, ended in ((1, now), (2, None)):
        joblog.Worker.create(
            process=f"p{pid}",
            host="here",
            pid=pid,
            threads=4,
            queues=["default", "default.DQ"],
            timeout=60_000,
            started_at=now - timedelta(minutes=5),
            heartbeat_at=now,
            ended_at=ended,
        )
    html = page.get("/workers").text

    assert "1 alive on 1 host, 0 of 4 threads busy" in html
    assert ("4 threads", 1) == (
        re.findall(r"4 threads(?=</span></td>)", html)[0],
        html.count("slots"),
    )
    assert "default.DQ" not in html
    joblog.Worker.update(ended_at=now).execute()
    assert ">none alive<" in page.get("/workers").text


def test_each_page_is_data_too(page, lived):
    """A page's path with .json, or a header, returns JSON."""
    keys = {
        "/overview.json": "states",
        "/jobs.json": "jobs",
        "/dead.json": "groups",
        "/locks.json": "locks",
        "/workers.json": "workers",
        "/actions.json": "actions",
    }
    for path, key in keys.items():
        html = path.removesuffix(".json").replace("/overview", "/")
        plain = page.get(path).json()

        assert key in plain
        assert set(plain) == set(page.get(html, headers={"accept": "application/json"}).json())


def test_a_job_is_data_too(page, lived):
    """A job's data has its row, its failures and its lines."""
    data = page.get(f"/jobs/{lived['dead']}.json").json()

    assert data["job"]["state"] == "dead"
    assert [run["outcome"] for run in data["failures"]] == ["retried", "dead"]


def test_health_and_metrics(page, lived):
    """Health reports that the database responds; metrics have Prometheus's format."""
    health, metrics = page.get("/health").json(), page.get("/metrics")

    assert health["ok"] is True
    assert health["schema"] == "current"
    assert 'joblog_jobs{state="dead"} 1' in metrics.text
    assert 'joblog_duration_seconds_count{job_type="import"} 3' in metrics.text
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")


# What is not there


@pytest.mark.parametrize("path", ["/nope", "/jobs/nobody", "/static/1/nope.js", "/confirm/nope"])
def test_what_is_not_there_is_404(local, path):
    """An unknown path or job is answered with 404, as a page and as data."""
    assert local.get(path).status_code == 404
    assert local.get(path, headers={"accept": "application/json"}).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/jobs"), ("GET", "/do/requeue"), ("DELETE", "/jobs/x")]
)
def test_another_method_is_405(local, method, path):
    """Reads are GET and actions POST; anything else is answered with 405."""
    answer = local.request(method, path)

    assert answer.status_code == 405
    assert "allow" in answer.headers


# Who may see it


@pytest.mark.parametrize("level", [None, "none"])
def test_authorize_may_refuse(nothing, level):
    """A user to whom authorize gives no level sees nothing, whatever the route."""
    asking = client(dashboard(nothing, authorize=lambda request: level))

    assert {asking.get(path).status_code for path in ROUTES} == {403}


@pytest.mark.parametrize("told", ["read-only", ("read-only", "mira")])
def test_read_only_may_look_and_not_act(joblog, lived, told):
    """Read-only users get no buttons, and the server refuses their actions."""
    asking = client(dashboard(joblog, authorize=lambda request: told), host="192.0.2.7")
    html = asking.get("/jobs").text
    token = csrf(asking)

    assert lived["dead"] in html
    assert "data-ask" not in html
    for what in ("requeue", "dismiss", "cancel", "unlock"):
        data = {"csrf": token, "jid": lived["dead"]}
        assert asking.post(f"/do/{what}", data=data).status_code == 403
        assert asking.get(f"/confirm/{what}", params=data).status_code == 403
    assert joblog.get(lived["dead"]).dismissed_at is None


def test_read_only_holds_for_everyone(joblog, lived):
    """With read_only=True, no user may act, whatever authorize returns."""
    app = dashboard(joblog, authorize=lambda request: "all", read_only=True)
    asking = client(app)

    data = {"csrf": csrf(asking), "jid": lived["dead"]}
    assert asking.post("/do/dismiss", data=data).status_code == 403


def test_authorize_may_be_a_coroutine(nothing):
    """An async authorize is awaited."""

    async def authorize(request):
        return "all", "ada"

    assert ">ada</span>" in client(dashboard(nothing, authorize=authorize)).get("/jobs").text


@pytest.mark.parametrize("told", [True, "admin", 1])
def test_authorize_must_say_a_level(nothing, told):
    """Anything other than a level is an error, and never grants access."""
    asking = client(dashboard(nothing, authorize=lambda request: told))

    with pytest.raises(TypeError, match="authorize returned"):
        asking.get("/jobs")


def test_settings_that_make_no_sense_are_refused(nothing):
    """Invalid settings of a dashboard are refused when it is created."""
    with pytest.raises(ConfigurationError, match="give one"):
        dashboard(nothing, authorize=lambda request: "all", login=("a", "b"))
    with pytest.raises(ConfigurationError, match="neither of them empty"):
        dashboard(nothing, login=("ada", ""))
    with pytest.raises(ConfigurationError, match="every=0"):
        dashboard(nothing, every=0)


# What every answer has


def test_every_answer_has_the_headers(nothing):
    """The policy allows nothing inline and nothing from elsewhere, and nothing is cached."""
    asking = client(opened(nothing))
    for path in (*ROUTES, "/nope"):
        headers = asking.get(path).headers

        assert headers["content-security-policy"] == POLICY
        assert "unsafe" not in POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


def test_nothing_stands_inline(page, lived):
    """No page has inline styles or scripts, or URLs of other sites."""
    for path in (*PAGES, f"/jobs/{lived['dead']}", f"/confirm/dismiss?jid={lived['dead']}"):
        html = page.get(path).text

        assert not re.search(r"<style|<[^>]*\s(style|on[a-z]+)=|href=.javascript:", html)
        assert not re.search(r"<script(?![^>]*\ssrc=)", html)
        assert not re.search(r'(?:src|href)="(?:https?:)?//', html)


def test_assets_are_kept_for_a_year(page):
    """Files have their version in the path, and browsers keep them."""
    html = page.get("/jobs").text
    paths = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', html))

    assert len(paths) == 4
    for path in paths:
        answer = page.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    assert page.get("/static/old/style.css").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/static/1/../app.py", "/static/1/%2e%2e/app.py"])
def test_only_assets_are_served(local, path):
    """No path leads out of the folder of assets."""
    assert local.get(path).status_code == 404


# What may be done


@pytest.mark.parametrize("what", ["requeue", "dismiss", "cancel", "unlock"])
def test_an_action_needs_the_token(page, lived, joblog, what):
    """A form without the browser's token, or from another site, does nothing."""
    token = csrf(page)
    form = {"jid": lived["dead"], "key": "k", "reason": "r", "slot": "0", "fence": "1"}
    refused = [
        page.post(f"/do/{what}", data=form),
        page.post(f"/do/{what}", data=form | {"csrf": "0" * 43}),
        page.post(
            f"/do/{what}", data=form | {"csrf": token}, headers={"origin": "http://evil.example"}
        ),
        page.post(
            f"/do/{what}", data=form | {"csrf": token}, headers={"sec-fetch-site": "cross-site"}
        ),
    ]

    assert [answer.status_code for answer in refused] == [403] * 4
    assert joblog.actions.count() == 0


def test_dismissing_is_asked_done_and_written_down(joblog, lived):
    """A dismissed job leaves the dead, and its author is recorded."""
    asking = client(dashboard(joblog, authorize=lambda request: ("all", "mira")))
    question = asking.get("/confirm/dismiss", params={"jid": lived["dead"], "back": "/dead"})
    done = asking.post(
        "/do/dismiss", data={"csrf": csrf(asking), "jid": lived["dead"], "back": "/dead"}
    )

    assert "Dismiss import?" in question.text
    assert done.url.path == "/dead"
    assert "1 job is dismissed." in done.text
    assert "Nothing is dead." in done.text
    (action,) = joblog.actions
    assert (action.who, action.what, action.jid) == ("mira", "dismiss", lived["dead"])


def test_all_that_match_are_dismissed(page, joblog, job_factory):
    """A group is dismissed by its search, which takes only dead jobs."""
    dead = [job_factory(state="dead", error_type="E", actor="a b") for _ in range(3)]
    other = job_factory(state="dead", error_type="F", actor="a b")
    q = 'state:dead actor:"a b" error:E'
    assert "Dismiss 3 jobs?" in page.get("/confirm/dismiss", params={"q": q}).text

    page.post("/do/dismiss", data={"csrf": csrf(page), "q": q, "back": "/dead"})

    assert all(joblog.get(job.jid).dismissed_at is not None for job in dead)
    assert joblog.get(other.jid).dismissed_at is None


def test_a_group_is_what_its_row_says(page, joblog, job_factory):
    """Each row of the dead acts on its own jobs, even if they have no error."""
    plain = [job_factory(state="dead", dead_reason="age_limit") for _ in range(2)]
    failed = job_factory(state="dead", error_type='Odd "Error*')
    html = unescape(page.get("/dead").text)
    groups = re.findall(r'name="q" value="(state:dead actor:work .*?)" aria-label', html)
    counts = [page.get("/jobs.json", params={"q": q}).json().get("jobs", []) for q in groups]

    assert sorted(len(jobs) for jobs in counts) == [1, 2]
    page.post("/do/dismiss", data={"csrf": csrf(page), "q": groups, "back": "/dead"})
    assert all(joblog.get(job.jid).dismissed_at is not None for job in (*plain, failed))


def test_errors_are_drawn_over_time(page, joblog, job_factory):
    """Each error has a sparkline of its times, with the peak."""
    now = datetime.now(timezone.utc)
    ages = {"first": 10, "second": 5, "third": 5}
    died = {jid: now - timedelta(hours=hours) for jid, hours in ages.items()}
    for jid, at in died.items():
        job_factory(jid=jid, state="dead", error_type="KeyError", finished_at=at)

    for path in ("/", "/dead"):
        # On the overview job types are drawn above them.
        drawn = re.findall(r'<svg class="spark".*?</svg>', page.get(path).text)[-1]
        assert 'aria-label="most 2, ' in drawn
        assert 2 == drawn.split('class="f-ink"')[1].count("M"), path
    (error,) = page.get("/overview.json").json()["stats"]["errors"]
    assert [1, 2] == [number for number in error["series"] if number]
    (group,) = page.get("/dead.json").json()["groups"]
    assert [1, 2] == [number for number in group["series"] if number]

    joblog.dismiss("first", who="ada")
    joblog.Job.update(finished_at=now - timedelta(days=2)).execute()
    later = page.get("/dead.json?window=3d").json()["groups"][0]["series"]
    assert [2] == [number for number in later if number]
    assert "spark" not in page.get("/dead?window=1h").text


def test_giving_up_is_asked_done_and_written_down(page, joblog, job_factory):
    """A job that is not running has the button, and is then dead with a recorded reason."""
    lost = job_factory(state="lost", job_type="import", finished_at=None)
    html = page.get(f"/jobs/{lost.jid}").text
    question = page.get("/confirm/cancel", params={"jid": lost.jid})
    form = {"csrf": csrf(page), "jid": lost.jid, "reason": "flushed", "back": f"/jobs/{lost.jid}"}
    done = page.post("/do/cancel", data=form)

    assert f'data-do="cancel" href="/confirm/cancel?jid={lost.jid}"' in html
    assert "Cancel import?" in question.text
    assert "Running code that the log does not know of is not stopped." in question.text
    assert "1 job is cancelled." in done.text
    assert "local cancelled it, which was lost: flushed" in done.text
    assert 'data-do="cancel"' not in done.text
    (action,) = joblog.actions
    assert ("cancel", lost.jid, "was lost: flushed") == (action.what, action.jid, action.detail)
    assert "dead" == joblog.get(lost.jid).state


def test_what_runs_is_not_given_up(page, joblog, job_factory):
    """A job that began meanwhile is refused with a sentence; the others are cancelled."""
    started, waiting = (job_factory(state=s, finished_at=None) for s in ("started", "waiting"))
    form = {"csrf": csrf(page), "jid": started.jid}
    refused = page.post("/do/cancel", data=form)
    both = page.post("/do/cancel", data=form | {"jid": [started.jid, waiting.jid, "gone"]})

    assert 'data-do="cancel"' not in page.get(f"/jobs/{started.jid}").text
    assert "None of them can be" in page.get("/confirm/cancel", params={"jid": started.jid}).text
    assert refused.status_code == 409
    assert "it is started, and the log cannot stop code that runs" in refused.text
    assert "1 job is cancelled. 2 could not be; Actions says why." in both.text
    assert ["started", "dead"] == [joblog.get(job.jid).state for job in (started, waiting)]


def test_all_that_are_lost_are_given_up(page, joblog, job_factory):
    """All jobs of a state that is not running can be taken."""
    lost = [job_factory(state="lost", finished_at=None) for _ in range(3)]
    html = page.get("/jobs", params={"q": "state:lost"}).text
    assert "Select all 3 lost" in html
    assert 'formaction="/confirm/cancel"' in html
    assert 'formaction="/confirm/cancel"' not in page.get("/jobs", params={"q": "state:dead"}).text
    assert "Cancel 3 jobs?" in page.get("/confirm/cancel", params={"q": "state:lost"}).text

    page.post("/do/cancel", data={"csrf": csrf(page), "q": "state:lost"})

    assert {"cancelled"} == {joblog.get(job.jid).dead_reason for job in lost}


def test_running_again_leads_to_the_new_job(page, joblog, lived):
    """A job that is run again is a new one with the same arguments; both are linked."""
    answer = page.post("/do/requeue", data={"csrf": csrf(page), "jid": lived["skipped"]})

    new = joblog.get(answer.url.path.removeprefix("/jobs/"))
    assert new.replay_of == lived["skipped"]
    assert joblog.get(lived["skipped"]).replayed_by == new.jid


def test_what_cannot_run_again_says_why(page, joblog, lived):
    """A job whose arguments are not stored is refused with a sentence, and nothing is sent."""
    answer = page.post("/do/requeue", data={"csrf": csrf(page), "jid": lived["dead"]})

    assert answer.status_code == 409
    assert "cannot be run again" in answer.text
    both = [lived["dead"], lived["finished"]]
    asked = page.get("/confirm/requeue", params={"jid": both}).text
    assert "Run import again?" in asked
    assert "1 more cannot be included: their arguments are not stored as they were sent." in asked
    assert "disabled" not in asked.split("<form method")[1]
    alone = page.get("/confirm/requeue", params={"jid": lived["dead"]}).text
    assert (
        "None of them can be included: their arguments are not stored as they were sent." in alone
    )
    assert joblog.jobs.count() == 3


def test_unlocking_needs_a_reason_and_the_fence(page, joblog):
    """A key is unlocked with a reason, if the given holder still holds it."""
    with joblog.lock("nightly") as lease:
        form = {"csrf": csrf(page), "key": "nightly", "slot": "0", "fence": str(lease.fence)}
        question = page.get("/confirm/unlock", params=form).text
        assert "Its holder is alive" in question
        assert page.post("/do/unlock", data=form).status_code == 400
        late = page.post("/do/unlock", data=form | {"fence": "999", "reason": "hung"})
        assert "the key has another holder by now" in late.text
        assert joblog.locks.count() == 1

        done = page.post("/do/unlock", data=form | {"reason": "checked by hand"})

        assert "The key is unlocked." in done.text
        assert joblog.locks.count() == 0
    (action,) = joblog.actions
    assert "checked by hand" in action.detail


def test_going_back_leads_nowhere_else(page, lived):
    """An action redirects to a page of the dashboard, whatever the form says."""
    form = {"csrf": csrf(page), "jid": lived["dead"], "back": "//evil.example/"}
    answer = page.post("/do/dismiss", data=form, follow_redirects=False)

    assert answer.headers["location"].startswith("/?done=dismiss")


# Where it is


@pytest.mark.full
def test_it_lives_under_a_prefix(joblog, lived):
    """Mounted under a prefix, every link begins with it, and cookies have that path."""
    app = Starlette(routes=[Mount("/ops/jobs", opened(joblog))])
    asking = client(app)
    html = asking.get("/ops/jobs/jobs").text
    links = re.findall(r'(?:href|src|action)="([^"#]+)"', html)

    assert links
    assert all(link.startswith("/ops/jobs/") for link in links)
    for link in set(links):
        if "/do/" not in link:
            assert asking.get(link.replace("&amp;", "&")).status_code == 200, link
    assert asking.get(f"/ops/jobs/jobs/{lived['dead']}").status_code == 200
    assert {c.path for c in asking.cookies.jar} == {"/ops/jobs"}


def test_two_dashboards_do_not_meet(joblog, tmp_path):
    """Two logs in one process each have their own dashboard."""
    other = JobLog(f"sqlite:///{tmp_path / 'other.db'}")
    other.create_tables()
    app = Starlette(
        routes=[
            Mount("/one", opened(joblog, title="one")),
            Mount("/two", opened(other, title="two")),
        ]
    )
    asking = client(app)

    assert "Jobs · one" in asking.get("/one/jobs").text
    assert "Jobs · two" in asking.get("/two/jobs").text
    other.close()


# When the database is slow or away


def test_a_database_that_is_away_is_a_banner(tmp_path):
    """Without its database, a page returns 503 and says that jobs go on."""
    log = JobLog(f"sqlite:///{tmp_path / 'no-such-folder' / 'jobs.db'}")
    answer = client(opened(log)).get("/jobs")

    assert answer.status_code == 503
    assert "does not respond" in answer.text
    assert client(opened(log)).get("/health").status_code == 503


def test_a_connection_is_given_back(joblog, lived):
    """No request keeps a connection, even with more requests than the pool's size."""
    app = opened(joblog)
    with client(app) as asking:
        for _ in range(120):
            assert asking.get("/actions.json").status_code == 200


def test_a_slow_database_is_a_banner(postgres_url):
    """Parts that time out are missing; the page says so and shows the rest."""
    log = JobLog(postgres_url)
    log.create_tables()
    with psycopg.connect(postgres_url) as other, client(opened(log, timeout=200)) as asking:
        other.execute("LOCK TABLE joblog_lock IN ACCESS EXCLUSIVE MODE")
        locks, jobs = asking.get("/locks"), asking.get("/jobs")
        other.rollback()

    assert (locks.status_code, jobs.status_code) == (200, 200)
    assert "The database took longer than 0.2 s for the locks" in locks.text
    assert "No section is held" not in locks.text
    assert "No jobs here." in jobs.text
    log.close()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_what_is_not_known_is_not_told_as_nothing(joblog, job_factory, database_url, monkeypatch):
    """A page whose figures time out says so, and never that there is nothing."""
    monkeypatch.setattr("dramatiq_joblog.web.state.FRESH_FOR", 0)
    job_factory()
    nothings = "No run failed|No job ended|Nothing is dead|No jobs here|No worker has|been logged"
    with psycopg.connect(database_url) as other, client(opened(joblog, timeout=100)) as asking:
        other.execute("LOCK TABLE joblog_total IN ACCESS EXCLUSIVE MODE")
        charts = asking.get("/").text
        told = asking.get("/overview.json").json()
        other.rollback()
        other.execute("LOCK TABLE joblog_job, joblog_worker IN ACCESS EXCLUSIVE MODE")
        others = [asking.get(path).text for path in ("/", "/jobs", "/dead", "/workers")]
        other.rollback()

    assert re.search(
        r'id="total-finished" [^>]*data-missing.*?<span class="v">\u2013</span>', charts
    )
    assert (None, ["the charts"]) == (told["stats"], told["missing"])
    for html in (charts, *others):
        assert "The database took longer than 0.1 s" in html
        assert not re.search(nothings, html)
        assert "Not known right now" in html


def test_rows_further_down_are_looked_after(page, job_factory):
    """A live page removes rows beyond its length when newer ones arrive."""
    first = job_factory(state="started", finished_at=None)
    for _ in range(50):
        job_factory()

    html = page.get("/jobs", params={"watch": f"{first.id},x,{10**30}"}).text

    assert f'<table hidden><tbody><tr id="job-{first.id}"' in html


def test_links_of_the_application_stand_on_a_job(joblog, job_factory):
    """job_links leads to pages of the application, and cannot run scripts."""

    def links(job):
        return [("Ada", f"https://shop.example/{job.user_id}"), ("x", "javascript:alert(1)")]

    job = job_factory(user_id=7)
    html = client(opened(joblog, job_links=links)).get(f"/jobs/{job.jid}").text
    broken = client(opened(joblog, job_links=lambda job: 1 / 0)).get(f"/jobs/{job.jid}")

    assert 'href="https://shop.example/7"' in html
    assert "javascript:" not in html
    assert "job_links failed" in broken.text


def test_keys_that_are_free_and_waited_for(joblog, page, job_factory):
    """A free key with waiting jobs is on the page of locks."""
    with joblog.lock("held"):
        for number, key in enumerate(("held", "free", "free")):
            waits = {"state": "waiting", "section": key, "waiting_since": 1_000 + number}
            job_factory(jid=f"j{number}", **waits)
        text = page.get("/locks").text
        data = page.get("/locks.json").json()

    (free,) = data["free"]
    assert ("free", ["j1", "j2"]) == (free["key"], free["waiters"])
    assert "2 jobs, next is" in text
    assert "1 section held, 3 jobs waiting" in text


@pytest.mark.parametrize("word", [":", "::", ":x", "-:", "x:", "args.:", "state:\x00", "args.\x00"])
def test_odd_words_are_completed_by_nothing(local, word):
    """A word without completions is not an error."""
    answer = local.get("/complete", params={"word": word})

    assert (200, []) == (answer.status_code, answer.json()["words"])
