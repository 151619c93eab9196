"""The page of alerts: open ones, notices sent and not sent, and suggested rules."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from dramatiq_joblog import Alert, Expect, JobLog
from dramatiq_joblog.alerts.ledger import MOST_TRIES
from dramatiq_joblog.statistics.cells import DAY
from dramatiq_joblog.web import dashboard


@pytest.fixture
def page(database_url, joblog):
    """Return a function that makes a log check its rules, and returns a client."""
    logs = []

    def make(*rules, notify=None, rounds=1):
        log = JobLog(database_url, alerts=rules, notify=notify, alerts_every=1_000)
        logs.append(log)
        for _ in range(rounds):
            log.core.alerting.round()
        return TestClient(dashboard(log, authorize=lambda request: "read-only"))

    yield make
    for log in logs:
        log.close()


def test_what_is_open_comes_first(page, job_factory):
    """An open alert has its number of jobs, links to them, and comes before the others."""
    job_factory(state="dead", job_type="import", error_type="ValueError")
    client = page(
        Alert("all is well", "state:dead type:other"), Alert("<dead>", "state:dead type:import")
    )

    html = client.get("/alerts").text
    found = client.get("/alerts.json").json()["alerts"]

    assert "1 of 2 open" in html
    assert html.index("&lt;dead&gt;") < html.index("all is well")
    assert 'href="/jobs?q=' in html
    assert [True, False] == [each["is_open"] for each in found]
    assert [1, 0] == [each["count"] for each in found]


def test_a_notice_that_was_not_sent(page, job_factory):
    """A notice that could not be sent is shown with the reason."""

    def fail(notice):
        raise OSError("the <door> is shut")

    job_factory(state="dead", job_type="import")
    client = page(Alert("dead", "state:dead"), notify=fail)

    html = client.get("/alerts").text

    assert "opened was not sent" in html
    assert "the &lt;door&gt; is shut" in html


def test_a_notice_that_was_given_up(page, joblog, job_factory):
    """After the last try, the notice is given up, and not shown as one without a name."""

    def fail(notice):
        raise OSError("the door is shut")

    job_factory(state="dead", job_type="import")
    page(Alert("dead", "state:dead"), notify=fail)
    joblog.core.tables.alert.update(tries=MOST_TRIES - 1, next_try_at=0).execute()
    client = page(Alert("dead", "state:dead"), notify=fail)

    html = client.get("/alerts").text

    assert "given up" in html
    assert "None" not in html
    assert "the notice was not sent: OSError: the door is shut" in html


def test_without_alerts(page):
    """For a log without rules, the page explains how to add some."""
    html = page().get("/alerts").text

    assert "No worker has checked any alert yet." in html
    assert 'href="/alerts"' in page().get("/workers").text


def test_what_runs_regularly_is_offered(page, joblog, job_factory):
    """A type that finishes regularly is suggested, unless it is already expected."""
    now = joblog.core.locks.now()
    for days in range(1, 12):
        at = now - days * DAY
        job_factory(job_type="tidy", finished_at=at, created_at=at)
    joblog.core.totals.catch_up(now)

    def offered(*rules):
        return [each["job_type"] for each in page(*rules).get("/alerts.json").json()["offered"]]

    assert ["tidy"] == offered()
    html = page().get("/alerts").text
    assert "tidy</a></td>" in html
    assert "about every 24" in html
    assert "h, usually after " in html
    assert "Expect(&#39;tidy&#39;, every=86_400_000, grace=" in html
    assert "Not expected" in html
    assert [] == offered(Expect("tidy", every=DAY))


def test_what_is_expected(page, joblog, job_factory):
    """For an expected type, it shows on which days one finished, and whether one is missing."""
    now = joblog.core.locks.now()
    for days in (3, 4, 5, 5, 60):
        at = now - days * DAY
        job_factory(job_type="tidy", finished_at=at, created_at=at)
    joblog.core.totals.catch_up(now)
    rule = Expect("tidy", every=DAY)
    assert "On time" in page(rule).get("/alerts").text
    state = joblog.core.tables.alert
    state.update(first_seen_at=now - 9 * DAY).execute()
    joblog.core.tables.mark.delete().execute()

    html = page(rule).get("/alerts").text

    assert "Missing" in html
    assert "not regular so far" in html
    assert "finished on 3 of the last 28 days" in html
    # The last day is today.
    drawn = html[html.index('id="expected-') :]
    assert drawn.index("M225 3V17M235 3V17M245 3V17") < drawn.index("M255 10h.01")
    assert "Copy its rule" not in html
