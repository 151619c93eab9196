"""Muting known problems: by whom, why, until a time or until they get worse."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime, timedelta, timezone

import pytest
from pages import opened
from starlette.testclient import TestClient

from dramatiq_joblog import Alert, JobLog
from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.states import ProblemKind

#: Times of a job that has waited for long.
WAITS = dict.fromkeys(("created_at", "enqueued_at", "updated_at"), 1_700_000_000_000)
DAY = timedelta(days=1)

#: The tests' PostgreSQL has ``fsync`` off, which is a problem of its own.
where_all_else_is_well = pytest.mark.parametrize("database_url", ["sqlite", "mysql"], indirect=True)


def tomorrow():
    return datetime.now(timezone.utc) + DAY


def of_queues(joblog, **options):
    """Return the problems of queues without a worker."""
    joblog.release()
    return [p for p in joblog.problems(**options) if p.kind == ProblemKind.QUEUES]


@pytest.fixture
def waiting(job_factory):
    """Return a function that adds waiting jobs to a queue without a worker."""

    def make(queue="mail", number=1):
        for _ in range(number):
            job_factory(state="enqueued", queue=queue, **WAITS)

    return make


@pytest.mark.every_database
def test_a_known_problem(joblog, waiting):
    """It is left out until it is unmuted, with a record of who muted it and why; others stay."""
    waiting("mail")
    waiting("reports")
    mail = next(p for p in of_queues(joblog) if p.subject == "mail")

    row = joblog.mute(mail, until=tomorrow(), reason=" ticket 12 ", who="ada")

    assert ["reports"] == [p.subject for p in of_queues(joblog)]
    muted = {p.subject: p.muted for p in of_queues(joblog, muted=True)}
    assert muted == {"mail": row, "reports": None}
    assert ("ada", "ticket 12", 1) == (row.who, row.reason, row.count)
    assert [row] == list(joblog.mutes)
    assert "mute" == joblog.actions.get().what
    assert "ticket 12" in joblog.actions.get().detail

    assert joblog.unmute(mail, who="ada")
    assert not joblog.unmute(mail)
    assert 2 == len(of_queues(joblog))
    assert ["unmute", "mute"] == [action.what for action in joblog.actions]


def test_a_secret_in_a_reason(joblog, waiting):
    """A secret in the reason is stored neither with the mute nor with the action."""
    waiting("mail")
    [mail] = of_queues(joblog)

    row = joblog.mute(mail, until=tomorrow(), reason="smtp://joe:hunter2@mail is down", who="ada")

    assert "smtp://joe:[redacted]@mail is down" == row.reason
    assert "hunter2" not in joblog.actions.get().detail


def test_it_gets_worse(joblog, waiting):
    """It returns once there are more than twice as many jobs."""
    waiting(number=2)
    joblog.mute(of_queues(joblog)[0], until=tomorrow(), reason="known", who="ada")

    waiting(number=2)
    assert [] == of_queues(joblog)
    waiting()
    assert [5] == [p.count for p in of_queues(joblog)]
    assert of_queues(joblog)[0].muted is None


@pytest.mark.every_database
def test_its_time_is_over(joblog, waiting):
    """It returns when the time is over, and can be muted again, with another reason."""
    waiting()
    joblog.mute(of_queues(joblog)[0], until=tomorrow(), reason="known", who="ada")
    model = joblog.core.tables.mute
    model.update(until=int(time.time() * 1000) - 1).execute()

    assert 1 == len(of_queues(joblog))
    assert not joblog.mutes.exists()
    for reason in ("still known", "known for long"):
        joblog.mute(of_queues(joblog, muted=True)[0], until=tomorrow(), reason=reason)
    assert ["known for long"] == [row.reason for row in joblog.mutes]
    assert 1 == model.select().count()


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"until": datetime.now(timezone.utc) - DAY}, "within the next 31 days"),
        ({"until": datetime.now(timezone.utc) + 40 * DAY}, "within the next 31 days"),
        ({"reason": " "}, "reason="),
        ({"who": 7}, "who=7"),
        ({"problem": "queues"}, "'queues' is not a problem"),
        ({"until": "x"}, "until='x' is not an instant"),
        ({"until": tomorrow().replace(tzinfo=None)}, "until=datetime.datetime("),
    ],
)
def test_what_makes_no_sense(joblog, waiting, values, text):
    """An invalid value is refused by its name, and nothing is muted."""
    waiting()
    given = {"problem": of_queues(joblog)[0], "until": tomorrow(), "reason": "known"} | values

    with pytest.raises((ConfigurationError, TypeError, ValueError), match=re.escape(text)):
        joblog.mute(given.pop("problem"), **given)
    assert 1 == len(of_queues(joblog))


def test_the_database_is_never_muted(tmp_path):
    """A problem of the database cannot be muted."""
    log = JobLog(f"sqlite:///{tmp_path / 'none' / 'jobs.db'}")
    [problem] = [p for p in log.problems() if p.kind == ProblemKind.DATABASE]

    with pytest.raises(ConfigurationError, match="of the database cannot be muted"):
        log.mute(problem, until=tomorrow(), reason="known")
    log.close()


@pytest.mark.new_database
def test_tables_of_an_earlier_version(joblog, job_factory, waiting):
    """Without the table, nothing is muted, and the check of the tables reports it."""
    waiting()
    joblog.database.drop_tables([joblog.core.tables.mute])

    assert 1 == len(of_queues(joblog))


def test_alerts(joblog, database_url, waiting):
    """Nobody is notified of it or of its end; once it gets worse it is opened again."""
    notices = []
    log = JobLog(
        database_url,
        alerts=[Alert.problems("queues")],
        alerts_every=1_000,
        notify=lambda notice: notices.append((notice.event, notice.count)),
    )
    waiting()
    assert log.core.alerting.round()
    log.mute(of_queues(log)[0], until=tomorrow(), reason="known", who="ada")
    assert log.core.alerting.round()
    assert [("opened", 1)] == notices
    assert not log.alerts.get().is_open

    waiting(number=2)
    assert log.core.alerting.round()
    log.close()
    assert [("opened", 1), ("opened", 3)] == notices


@where_all_else_is_well
def test_the_page(joblog, waiting):
    """Overview asks for a duration and a reason, shows it in grey, and does not count it."""
    waiting("odd <b>&'mail")
    with TestClient(opened(joblog), base_url="http://localhost") as page:
        html = page.get("/").text
        assert "1 thing needs attention" in html
        asked = page.get(
            re.search(r'href="([^"]+)" aria-label="Mute', html)[1].replace("&amp;", "&")
        )
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked.text))
        fields["subject"] = "odd <b>&'mail"
        for lacking in ({"span": "1d"}, {"reason": "ticket 12"}, {"reason": "x", "span": "9y"}):
            assert 400 == page.post("/do/mute", data=fields | lacking).status_code

        done = page.post("/do/mute", data=fields | {"span": "1d", "reason": "ticket <12>"}).text
        assert "The problem is muted." in done
        assert "All is well" in done
        assert "muted by local until" in done
        assert "ticket &lt;12&gt;" in done
        assert "<b>&" not in done
        assert [] == page.get("/health").json()["problems"]
        assert 'joblog_problems{kind="queues"} 0' in page.get("/metrics").text

        href = re.search(r'href="([^"]+)" aria-label="Unmute', done)[1].replace("&amp;", "&")
        assert "Unmute" in page.get(href).text
        assert "1 thing needs attention" in page.post("/do/unmute", data=fields).text
        assert 409 == page.get("/confirm/mute?kind=queues&subject=none").status_code


@pytest.mark.every_database
def test_a_problem_that_is_gone(joblog, waiting, ask):
    """A mute of a problem that is gone can be removed in code, on Alerts and in the terminal."""
    names = ("mail", "reports", "x" * 400)
    for queue in names:
        waiting(queue)
    for problem in of_queues(joblog):
        joblog.mute(problem, until=tomorrow(), reason="known <1>", who="ada")
    joblog.Job.delete().execute()
    assert [] == of_queues(joblog, muted=True)

    first = joblog.mutes.get()
    assert joblog.unmute(first, who="ada")
    assert not joblog.unmute(first)
    with TestClient(opened(joblog), base_url="http://localhost") as page:
        html = page.get("/alerts").text
        assert 2 == html.count("muted by ada until")
        assert "known &lt;1&gt;" in html
        assert ["known <1>"] * 2 == [
            row["reason"] for row in page.get("/alerts.json").json()["muted"]
        ]
        for href in re.findall(r'href="([^"]+)" aria-label="Unmute', html):
            asked = page.get(href.replace("&amp;", "&"))
            assert "Unmute" in asked.text
            fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked.text))
            assert "The problem is no longer muted." in page.post("/do/unmute", data=fields).text
        assert "Muted problems" not in page.get("/alerts").text
    assert not joblog.mutes.exists()


def test_who_may_only_look(joblog, waiting):
    """Read-only users see mutes, but can neither mute nor unmute."""
    waiting()
    joblog.mute(of_queues(joblog)[0], until=tomorrow(), reason="known", who="ada")
    with TestClient(opened(joblog, read_only=True), base_url="http://localhost") as page:
        html = page.get("/").text
        assert "muted by ada until" in html
        assert 'aria-label="Unmute' not in html + page.get("/alerts").text
        assert 403 == page.get("/confirm/unmute?kind=queues&subject=mail").status_code


@where_all_else_is_well
def test_the_terminal(joblog, ask, waiting):
    """``mute`` mutes a problem, lists mutes, and ends one; ``status`` is 0 meanwhile."""
    waiting("mail")
    waiting("reports")
    joblog.release()
    why = ("--until", "2h", "--reason", "ticket 12")
    assert "name one of 'mail', 'reports'" in ask("mute", "queues", *why, code=2).stderr
    assert "say until when" in ask("mute", "queues", "mail", code=2).stderr
    for queue in ("mail", "reports"):
        ask("mute", "queues", queue, *why)

    found = json.loads(ask("status", "--json").stdout)
    assert (True, 2) == (found["well"], len(found["muted"]))
    assert "ticket 12" == found["muted"][0]["muted"]["reason"]
    assert ["mail", "reports"] == [
        row["subject"] for row in json.loads(ask("mute", "--json").stdout)
    ]
    assert "ticket 12" in ask("mute").stdout

    assert "name one of 'mail', 'reports'" in ask("mute", "queues", "--off", code=2).stderr
    ask("mute", "queues", "mail", "--off")
    ask("mute", "queues", "mail", "--off", code=1)
    ask("mute", "lost", "--off", code=1)
    assert "queues" in ask("status", code=1).stdout
