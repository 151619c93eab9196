"""Notices: opened once, repeated at most hourly, resolved once, whichever process dies."""

from __future__ import annotations

import itertools
import logging
import threading

import pytest

from dramatiq_joblog import Alert, Expect
from dramatiq_joblog.alerts import alerting, ledger, notifiers
from dramatiq_joblog.alerts.ledger import Known, next_notice

HOUR = 3_600_000


@pytest.fixture
def notices():
    """Return a list that takes notices."""
    return []


@pytest.fixture
def log(make_log, notices):
    """Return a log with one alert, whose notices are listed."""
    return make_log(Alert("dead", "state:dead"), notify=notices.append)


def pass_time(joblog, milliseconds):
    """Age the state of alerts, as if time had passed."""
    state = joblog.core.tables.alert
    columns = (state.sent_at, state.next_try_at, state.counted_since, state.since)
    earlier = {column: column - milliseconds for column in columns}
    state.update(earlier).execute()


def events(notices):
    return [notice.event for notice in notices]


@pytest.mark.every_database
def test_the_life_of_an_alert(log, job_factory, notices):
    """It is opened once, repeated after an hour, and resolved once, however often it is seen."""
    assert log.core.alerting.round()
    job = job_factory(state="dead")
    for _ in range(3):
        assert log.core.alerting.round()
    assert events(notices) == ["opened"]
    assert notices[0].jids == [job.jid]
    assert notices[0].count == 1

    pass_time(log, HOUR - 60_000)
    log.core.alerting.round()
    assert events(notices) == ["opened"]
    pass_time(log, 60_000)
    for _ in range(2):
        log.core.alerting.round()
    assert events(notices) == ["opened", "repeated"]
    assert notices[0].since > notices[1].since

    log.dismiss(job.jid, who="ada")
    for _ in range(3):
        log.core.alerting.round()
    assert events(notices) == ["opened", "repeated", "resolved"]
    [state] = log.alerts
    assert (state.is_open, state.sent, state.pending) == (False, "resolved", None)

    job_factory(state="dead")
    log.core.alerting.round()
    assert events(notices)[3:] == ["opened"]


def test_a_rule_that_comes_and_goes(log, job_factory, notices):
    """A flapping alert sends a limited number of notices per hour."""
    job = job_factory(state="dead")
    for _ in range(20):
        log.core.alerting.round()
        log.dismiss(job.jid, who="ada")
        log.core.alerting.round()
        log.Job.update(dismissed_at=None).execute()
    assert len(notices) == ledger.MOST_NOTICES

    pass_time(log, HOUR)
    log.core.alerting.round()
    assert len(notices) == ledger.MOST_NOTICES + 1


def test_who_hears_of_a_rule(make_log, job_factory, notices):
    """A rule's *to* is notified instead of the default receivers."""
    mine = []
    log = make_log(
        Alert("mine", "state:dead", to=mine.append),
        Alert("ours", "state:lost"),
        notify=notices.append,
    )
    job_factory(state="dead")
    job_factory(state="lost", finished_at=None)
    log.core.alerting.round()

    assert [notice.name for notice in mine] == ["mine"]
    assert [notice.name for notice in notices] == ["ours"]


def test_nobody_is_named(make_log, job_factory, caplog):
    """Without receivers, the process's log has the notice, and the state is stored."""
    log = make_log(Alert("dead", "state:dead"))
    job_factory(state="dead")
    with caplog.at_level(logging.WARNING):
        log.core.alerting.round()

    assert "Alert opened: dead" in caplog.text
    assert log.alerts.get().sent == "opened"


def test_a_notifier_that_fails(make_log, job_factory, notices):
    """A failed notice is retried with increasing delays, and later hourly."""

    def fails(notice):
        notices.append(notice)
        raise ConnectionError("https://hooks.example/T0/B0?token=s3cret-s3cret")

    log = make_log(Alert("dead", "state:dead"), notify=fails)
    job_factory(state="dead")
    log.core.alerting.round()
    log.core.alerting.round()
    assert events(notices) == ["opened"]
    state = log.alerts.get()
    assert "ConnectionError" in state.error
    assert "s3cret" not in state.error
    for _ in range(20):
        pass_time(log, ledger.AGAIN_AT_MOST)
        log.core.alerting.round()
    assert events(notices)[: ledger.MOST_TRIES] == ["opened"] * ledger.MOST_TRIES
    assert len(notices) < 2 * ledger.MOST_TRIES + 5


def test_a_notifier_that_recovers(make_log, job_factory, notices):
    """Once the receiver responds again, the notice is sent exactly once."""
    broken = [True]

    def notify(notice):
        if broken:
            raise ConnectionError
        notices.append(notice)

    log = make_log(Alert("dead", "state:dead"), notify=notify)
    job_factory(state="dead")
    log.core.alerting.round()
    broken.clear()
    log.core.alerting.round()
    assert notices == []
    pass_time(log, ledger.AGAIN)
    for _ in range(3):
        log.core.alerting.round()
    assert events(notices) == ["opened"]


def test_a_notifier_that_hangs(make_log, job_factory, notices, monkeypatch):
    """A notifier that hangs is not called again until it ends, and does not block others."""
    monkeypatch.setattr(notifiers, "NOTIFY_WITHIN", 100)
    freed, calls = threading.Event(), []

    def hangs(notice):
        calls.append(notice)
        assert freed.wait(20)

    log = make_log(
        Alert("a", "state:dead", to=hangs), Alert("b", "state:dead"), notify=notices.append
    )
    log.core.alerting._bounded = notifiers.Bounded(100)
    job_factory(state="dead")
    log.core.alerting.round()
    assert events(notices) == ["opened"]
    for _ in range(3):
        pass_time(log, ledger.AGAIN_AT_MOST)
        log.core.alerting.round()
    assert len(calls) == 1
    assert log.alerts.where(log.core.tables.alert.name == "a").get().error == (
        "an earlier call of this notifier has not ended"
    )
    freed.set()


@pytest.mark.parametrize(
    ("known", "is_open", "notice"),
    [
        (Known(), True, "opened"),
        (Known(), False, None),
        (Known(is_open=True, pending="opened"), True, "opened"),
        (Known(is_open=True, pending="opened", tries=1), True, "opened"),
        # Nobody has heard of it.
        (Known(is_open=True, pending="opened"), False, None),
        # Somebody may have.
        (Known(is_open=True, pending="opened", tries=1), False, "resolved"),
        (Known(is_open=True, sent_at=0), False, "resolved"),
        (Known(is_open=True, sent_at=0), True, "repeated"),
        (Known(is_open=True, sent_at=9 * HOUR), True, None),
        (Known(is_open=True, sent_at=9 * HOUR, has_news=True), True, "repeated"),
        (Known(pending="resolved"), True, None),
        (Known(pending="resolved", tries=1), True, "opened"),
        (Known(pending="resolved", tries=1), False, "resolved"),
    ],
)
def test_the_next_notice(known, is_open, notice):
    """The next notice depends only on the last notice and on the current state."""
    assert next_notice(known, is_open=is_open, now=9 * HOUR + 1) == notice


def test_a_missed_job_is_a_problem(make_log, notices, joblog):
    """A missed job is also a problem, and is not alerted twice."""
    rules = Alert.problems(), Expect("nightly", every=1_000, grace=0)
    log = make_log(*rules, notify=notices.append)
    log.core.alerting.round()
    state = log.core.tables.alert
    state.update(first_seen_at=0).where(state.name == "expected: nightly").execute()
    log.core.alerting.round()
    log.core.alerting.round()

    # The tests' PostgreSQL does not sync its disk, which is a problem of its own.
    mine = [(notice.name, notice.event) for notice in notices if notice.name != "settings"]
    assert mine == [("expected: nightly", "opened")]
    [problem] = [found for found in joblog.problems() if found.kind != "settings"]
    assert (problem.kind, problem.subject, problem.search) == (
        "missed",
        "nightly",
        'type:"nightly"',
    )
    assert "a job of type 'nightly' is missing" in problem.text
    assert {finding.name for finding in joblog.doctor() if not finding.ok} <= {"durability"}


@pytest.mark.every_database
def test_twenty_at_once(make_log, job_factory, notices):
    """Of twenty processes that check at the same moment, one sends, once."""
    guard = threading.Lock()

    def notify(notice):
        with guard:
            notices.append(notice)

    logs = [make_log(Alert("dead", "state:dead"), notify=notify) for _ in range(20)]
    job_factory(state="dead")
    start = threading.Barrier(20)
    done = []

    def look(log):
        start.wait()
        done.extend(log.core.alerting.round() for _ in range(3))

    threads = [threading.Thread(target=look, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert events(notices) == ["opened"]
    assert any(done)


def test_a_test_of_the_notifiers(make_log, notices):
    """A test notice is sent once to each receiver, and reports which could not be reached."""

    def fails(notice):
        raise ValueError("no")

    log = make_log(
        Alert("a", "state:dead", to=fails), Alert("b", "state:dead"), notify=notices.append
    )

    assert log.core.alerting.test() == {"notify=": None, "a": "ValueError: no"}
    assert events(notices) == ["test"]
    assert log.alerts.count() == 0


def test_a_rule_that_cannot_be_asked(log, job_factory, notices, monkeypatch, caplog):
    """A rule whose query times out changes nothing, and is logged."""
    job_factory(state="dead")
    log.core.alerting.round()
    monkeypatch.setattr(alerting, "RULE_WITHIN", 1)
    real = Alert.look

    def slow(self, asked, now, first_seen):
        for _ in itertools.count():
            real(self, asked, now, first_seen)

    monkeypatch.setattr(Alert, "look", slow)
    assert log.core.alerting.round()

    assert events(notices) == ["opened"]
    assert "could not be checked" in caplog.text
