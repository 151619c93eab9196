"""Alert rules: validated when the log is created, and evaluated on current rows."""

from __future__ import annotations

import time
from enum import Enum

import pytest

from dramatiq_joblog import Alert, ConfigurationError, Expect, JobLog

SECOND, HOUR, DAY = 1_000, 3_600_000, 86_400_000


class Kind(str, Enum):
    """Types of jobs."""

    NIGHTLY = "nightly"


@pytest.fixture
def seen(joblog):
    """Return a function that checks one rule, and returns its open alerts."""

    def look(rule, *, first_seen=0):
        now = joblog.core.locks.now()
        return [sight for sight in rule.look(joblog.core, now, first_seen) if sight.is_open]

    return look


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Alert("", "state:dead"), "needs a name"),
        (lambda: Alert("a" * 300, "state:dead"), "needs a name"),
        (lambda: Alert("a", ""), "needs the words of a search"),
        (lambda: Alert("a", "stat:dead"), "did you mean state:"),
        (lambda: Alert("a", "state:dead", more_than=-1), "more_than=-1"),
        (lambda: Alert("a", "state:dead", more_than=True), "more_than=True"),
        (lambda: Alert("a", "state:dead", within=1.5), "within=1.5"),
        (lambda: Alert.problems("losst"), "unknown kind of problem 'losst'"),
        (lambda: Expect("", every=DAY), "needs a job type"),
        (lambda: Expect("a", every=0), "every=0"),
        (lambda: Expect("a", every=DAY, grace=-1), "grace=-1"),
    ],
)
def test_a_rule_that_makes_no_sense(make, text):
    """An invalid rule is refused as it is made, with the cure."""
    with pytest.raises(ConfigurationError, match=text):
        make()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"alerts": [Alert("a", "state:ded")]}, "did you mean dead"),
        ({"alerts": ["state:dead"]}, "use Alert"),
        ({"alerts": [Alert("a", "state:dead"), Alert("a", "state:lost")]}, "two alerts"),
        ({"alerts": [Alert("a", "state:dead", to=7)]}, "to= of the alert 'a' is int"),
        ({"notify": 7}, "notify= is int"),
        ({"notify": []}, "notify= is list"),
        ({"alerts_every": 10}, "alerts_every=10"),
        ({"on_dead": 7}, "on_dead= is 7"),
    ],
)
def test_a_log_whose_alerts_make_no_sense(sqlite_url, options, text):
    """Errors that only the log can detect are refused when it is created."""
    with pytest.raises(ConfigurationError, match=text):
        JobLog(sqlite_url, **options)


@pytest.mark.every_database
def test_counting_what_a_search_finds(seen, job_factory, joblog):
    """Ended jobs count by their end, others by their current state; dismissed ones do not count."""
    now = joblog.core.locks.now()
    job_factory(state="dead", job_type="import", finished_at=now - 2 * HOUR)
    assert seen(Alert("a", "state:dead")) == []

    dead = [job_factory(state="dead", job_type="import") for _ in range(3)]
    job_factory(state="dead", job_type="reconcile", error_type="ValueError", error_message="no")
    job_factory(state="dead", job_type="other")
    [sight] = seen(Alert("a", "state:dead type:import,reconcile"))
    assert sight.count == 4
    assert "4 jobs within 1 hour" in sight.summary
    assert "work: ValueError: no" in sight.summary
    assert {*sight.jids} >= {job.jid for job in dead}
    assert seen(Alert("a", "state:dead type:import", more_than=3)) == []
    [sight] = seen(Alert("a", "state:dead type:import", more_than=3, within=DAY))
    assert sight.count == 4

    joblog.dismiss(*(job.jid for job in dead), who="ada")
    assert seen(Alert("a", "state:dead type:import")) == []

    job_factory(state="lost", created_at=now - 9 * HOUR, finished_at=None)
    [sight] = seen(Alert("a", "state:lost,retrying"))
    assert sight.count == 1


def test_counting_stops(seen, job_factory, monkeypatch):
    """Counting is capped, and the notice shows it."""
    monkeypatch.setattr("dramatiq_joblog.alerts.rules.MOST", 3)
    for _ in range(5):
        job_factory(state="dead")

    [sight] = seen(Alert("a", "state:dead"))
    assert sight.summary.startswith("3 or more jobs")


def test_problems(seen, job_factory, joblog):
    """Each kind of problem is an alert of its own, with its cure."""
    job_factory(state="dead", dead_reason="retry_lost", error_type="ConnectionError")

    kinds = {sight.key: sight for sight in seen(Alert.problems())}
    assert "problems:retries_lost" in kinds
    [sight] = seen(Alert.problems("retries_lost", name="mine"))
    assert sight.name == "mine: retries_lost"
    assert sight.count == 1
    assert "requeue" in sight.summary


@pytest.mark.every_database
def test_expecting_a_job(seen, job_factory, joblog):
    """A job of the type must have finished in time; nothing is missed before it was watched."""
    rule = Expect(Kind.NIGHTLY, every=HOUR, grace=60_000)
    now = joblog.core.locks.now()
    assert seen(rule, first_seen=now) == []
    [sight] = seen(rule)
    assert "No job of type 'nightly' has finished for 61 minutes" in sight.summary
    assert "None was sent." in sight.summary

    job_factory(job_type="nightly", state="dead", error_type="KeyError")
    job_factory(job_type="nightly", state="finished", finished_at=now - 2 * HOUR)
    [sight] = seen(rule)
    assert "The newest one is" in sight.summary
    assert "work: KeyError" in sight.summary

    job_factory(job_type="nightly", state="finished", finished_at=now - HOUR)
    assert seen(rule) == []


def test_expecting_a_job_that_was_pruned(seen, job_factory, joblog):
    """A finished job counts even if its row is deleted: the totals have it."""
    now = int(time.time() * 1000)
    job_factory(job_type="nightly", finished_at=now - 600_000)
    joblog.prune({"finished": SECOND})

    assert joblog.jobs.count() == 0
    assert seen(Expect("nightly", every=HOUR)) == []
    assert len(seen(Expect("other", every=HOUR))) == 1
