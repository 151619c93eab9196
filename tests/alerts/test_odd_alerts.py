"""Alerts with unusual functions, names and rules."""

from __future__ import annotations

import asyncio
import functools
import logging
import time

import dramatiq
import pytest

from dramatiq_joblog import Alert, ConfigurationError, Exclusive, Expect, JobLog
from dramatiq_joblog.alerts import alerting, ledger
from dramatiq_joblog.reading import search
from dramatiq_joblog.states import ProblemKind

HOUR = 3_600_000


class Heard:
    """What takes things, in several forms."""

    def __init__(self):
        self.all = []

    async def later(self, thing):
        """Take it in a coroutine."""
        await asyncio.sleep(0)
        self.all.append(thing)

    def __call__(self, thing, *, loud=False):
        """Take it."""
        self.all.append(thing)


class Later(Heard):
    """An object that is called asynchronously."""

    async def __call__(self, thing):
        """Take it in a coroutine."""
        await self.later(thing)


FORMS = {
    "coroutine": lambda heard: heard.later,
    "partial of a coroutine": lambda heard: functools.partial(Heard.later, heard),
    "one that returns a coroutine": lambda heard: functools.partial(lambda f, x: f(x), heard.later),
    "object": lambda heard: heard,
    "written in C": lambda heard: heard.all.append,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_who_is_notified(make_log, job_factory, form):
    """A notifier may be anything that can be called, and a coroutine is run to its end."""
    heard = Heard()
    log = make_log(Alert("dead", "state:dead"), notify=form(heard))
    job_factory(state="dead")
    log.core.alerting.round()

    assert [notice.event for notice in heard.all] == ["opened"]
    assert log.alerts.get().sent == "opened"


def test_an_object_that_is_asynchronous(make_log, job_factory):
    """An object with an asynchronous call notifies, too."""
    heard = Later()
    log = make_log(Alert("dead", "state:dead"), notify=heard)
    job_factory(state="dead")
    log.core.alerting.round()

    assert [notice.event for notice in heard.all] == ["opened"]


def test_a_coroutine_that_fails(make_log, job_factory):
    """What a coroutine raises is why the notice was not sent."""

    async def fails(notice):
        raise ValueError("no")

    log = make_log(Alert("dead", "state:dead"), notify=fails)
    job_factory(state="dead")
    log.core.alerting.round()

    assert log.alerts.get().error == "ValueError: no"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_function_that_wants_to_end_the_process(make_log, let_die, caplog, error):
    """Even SystemExit in a function of the application only fails that call."""
    calls = []

    def leaves(thing):
        calls.append(thing)
        raise error

    log = make_log(Alert("dead", "state:dead"), notify=leaves, on_dead=leaves)
    let_die(log, 2)
    log.core.alerting.round()
    assert type(error).__name__ in log.alerts.get().error
    log.close()

    assert len(calls) == 3
    assert caplog.text.count("on_dead failed for job") == 2


def test_an_asynchronous_on_dead(make_log, let_die):
    """An asynchronous on_dead is run to its end, for each job."""
    heard = Heard()
    log = make_log(on_dead=heard.later)
    jids = let_die(log, 3)
    log.close()

    assert sorted(job.jid for job in heard.all) == sorted(jids)


def test_each_end_is_one_call(make_log, make_broker, worker, eventually):
    """on_dead is called once for each dead job, whatever the reason, but not for cancelled ones."""
    heard = Heard()
    log = make_log(on_dead=heard)
    broker = make_broker("stub", "last", joblog=log)
    broker.fail_fast_default = False

    @dramatiq.actor(max_retries=0, time_limit=100)
    def hangs():
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(0.01)

    @dramatiq.actor(max_age=1)
    def is_old():
        pass

    @dramatiq.actor(max_retries=0)
    def dies():
        raise ValueError

    waits = Exclusive("held", on_conflict="wait", wait_for=100)

    @dramatiq.actor(exclusive=waits)
    def waits_too_long():
        pass

    @dramatiq.actor(exclusive=Exclusive("held"))
    def is_skipped():
        pass

    @dramatiq.actor
    def is_cancelled():
        pass

    cancelled = is_cancelled.send_with_options(delay=60_000)
    log.cancel(cancelled.message_id, who="ada")
    old = is_old.send()
    eventually(lambda: time.time() * 1000 > old.message_timestamp + 2)
    with log.lock("held"), worker(broker):
        dead = [old, hangs.send(), dies.send(), waits_too_long.send()]
        skipped = is_skipped.send()
        log.wait_all([m.message_id for m in (*dead, skipped)], timeout=30_000)
        # Of a job that goes on meanwhile nobody would hear.
        eventually(lambda: len(heard.all) == 4)
        again = [log.requeue(dead[2].message_id), broker.enqueue(dead[2])]
        log.wait(again[0].message_id, timeout=20_000)
        eventually(lambda: len(heard.all) == 6)
    log.close()

    reasons = sorted(str(job.dead_reason) for job in heard.all)
    assert reasons == ["age_limit", *["no_retries"] * 4, "wait_timeout"]
    ends = [job.jid for job in heard.all]
    assert ends.count(dead[2].message_id) == 2


def test_a_job_that_lost_too_many_workers(make_log, make_broker, worker, job_factory, eventually):
    """on_dead is called once for a job that is dead because of lost workers, not for copies."""
    heard = Heard()
    log = make_log(on_dead=heard)
    broker = make_broker("stub", "last", joblog=log)

    @dramatiq.actor(max_interruptions=1)
    def is_poison():
        raise AssertionError

    @dramatiq.actor
    def works():
        pass

    message = is_poison.message()
    run = {"token": "former", "process": "gone", "worker": "gone:1:1"}
    job_factory(jid=message.message_id, actor="is_poison", state="started", **run)
    broker.enqueue(message)
    with worker(broker, worker_threads=1):
        eventually(lambda: heard.all)
        broker.enqueue(message)
        # What comes after the copy has come after it.
        log.wait(works.send().message_id, timeout=20_000)
    log.close()

    assert [(job.jid, str(job.dead_reason)) for job in heard.all] == [
        (message.message_id, "interrupted")
    ]


def takes_nothing():
    """Take no notice."""


def takes_two(one, other):
    """Take too much."""


def yields(notice):
    """Do nothing when it is called."""
    yield notice


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"notify": takes_nothing}, r"notify= is takes_nothing\(\), which cannot be called"),
        ({"notify": takes_two}, "let it take exactly one argument"),
        ({"notify": yields}, "remove the yield"),
        ({"on_dead": takes_nothing}, r"on_dead= is takes_nothing\(\)"),
        ({"on_dead": "print"}, "on_dead= is 'print', which cannot be called"),
        ({"alerts": [Alert("a", "state:dead", to=takes_two)]}, "to= of the alert 'a' is takes_two"),
        ({"alerts": [Alert("a", "state:dead", to=[print])]}, "to= of the alert 'a' is a list with"),
        ({"alerts": [Alert("a", "state:dead", to=[])]}, "to= of the alert 'a' is list"),
        ({"alerts": Alert("a", "state:dead")}, "give a list of rules"),
        ({"alerts": None}, "alerts= is None"),
        ({"alerts": "state:dead"}, "give a list of rules"),
        ({"page_url": "shop.example/joblog"}, "page_url='shop.example/joblog' is not an address"),
        ({"page_url": 7}, "page_url=7"),
    ],
)
def test_what_could_never_work(sqlite_url, options, text):
    """An unusable notifier is refused with its name when the log is created."""
    with pytest.raises(ConfigurationError, match=text):
        JobLog(sqlite_url, **options)


@pytest.mark.parametrize(
    "rules",
    [
        [Alert.problems(), Alert("problems:lost", "state:lost")],
        [Alert("problems:lost", "state:lost"), Alert.problems("lost")],
        [Alert.problems(), Alert.problems()],
        [Expect("a", every=HOUR), Alert("expected: a", "state:dead")],
        [Alert("a\x00", "state:dead"), Alert("a\ufffd", "state:dead")],
    ],
)
def test_names_that_mean_the_same(sqlite_url, rules):
    """Two rules that would overwrite each other's state are refused."""
    with pytest.raises(ConfigurationError, match="two alerts have the name"):
        JobLog(sqlite_url, alerts=rules)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ["a", "a:b", "n" * 200, "Ünïcödé 💥", "%_'\"\\"])
@pytest.mark.parametrize("kinds", [("retries_lost", "retries_lost"), (ProblemKind.RETRIES_LOST,)])
def test_names_of_problems(make_log, job_factory, name, kinds):
    """A rule with any name is notified and resolved."""
    heard = Heard()
    log = make_log(Alert.problems(*kinds, name=name), notify=heard)
    job = job_factory(state="dead", dead_reason="retry_lost", error_type="ConnectionError")
    log.core.alerting.round()
    log.dismiss(job.jid, who="ada")
    log.core.alerting.round()

    assert [notice.event for notice in heard.all] == ["opened", "resolved"]


def test_a_name_that_begins_as_another(make_log, job_factory):
    """The pending notice of a removed rule is not sent by a rule whose name is its prefix."""
    former, heard = Heard(), Heard()
    job_factory(state="dead")

    def fails(notice):
        former(notice)
        raise ConnectionError

    make_log(Alert("a:b", "state:dead"), notify=fails).core.alerting.round()
    log = make_log(Alert("a", "state:lost"), notify=heard)
    log.core.tables.alert.update(next_try_at=1).execute()
    log.core.alerting.round()

    assert len(former.all) == 1
    assert heard.all == []


@pytest.mark.every_database
def test_services_with_rules_of_their_own(make_log, job_factory):
    """Two services that share a log each check their own rules, however quick the other is."""
    ours, theirs = Heard(), Heard()
    one = make_log(Alert("ours", "state:dead"), notify=ours, alerts_every=HOUR)
    other = make_log(Alert("theirs", "state:dead"), notify=theirs, alerts_every=HOUR)
    again = make_log(Alert("ours", "state:dead"), notify=ours, alerts_every=HOUR)
    job_factory(state="dead")

    assert [log.core.alerting.round() for log in (one, other, again)] == [True, True, False]
    assert [notice.name for notice in (*ours.all, *theirs.all)] == ["ours", "theirs"]


def test_rules_that_nobody_has_any_more(make_log, joblog):
    """The record of the last check of removed rules is deleted after a day."""
    make_log(Alert("former", "state:dead")).core.alerting.round()
    mark = joblog.core.tables.mark
    mark.update(value=mark.value - alerting.FORGET_AFTER - 1_000).execute()
    make_log(Alert("now", "state:dead")).core.alerting.round()

    assert mark.select().where(mark.name.startswith(alerting.LOOKED)).count() == 1


def test_a_clock_that_went_back(make_log, job_factory):
    """Times in the future, from before the database's clock was set back, are ignored."""
    heard, broken = Heard(), [True]

    def notify(notice):
        if broken:
            raise ConnectionError
        heard(notice)

    log = make_log(Alert("dead", "state:dead"), notify=notify)
    job_factory(state="dead")
    log.core.alerting.round()
    broken.clear()
    state = log.core.tables.alert
    state.update(next_try_at=state.next_try_at + 24 * HOUR).execute()
    log.core.alerting.round()
    assert [notice.event for notice in heard.all] == ["opened"]

    later = {state.sent_at: state.sent_at + 24 * HOUR, state.notices: ledger.MOST_NOTICES}
    state.update({**later, state.counted_since: state.counted_since + 24 * HOUR}).execute()
    log.core.alerting.round()
    row = log.alerts.get()
    assert row.pending == "repeated"
    assert (row.next_try_at - row.seen_at).total_seconds() <= 3_600


#: A value for each word of a search that needs one of a kind.
VALUES = {
    "attempt": ">1",
    "dismissed": "no",
    "duration": ">5s",
    "ended": "2h",
    "overdue": "5m",
    "queue_time": "<1h",
    "since": "2d",
    "state": "dead",
    "until": "1m",
    "user": "7",
}


@pytest.mark.every_database
def test_every_word_of_a_search(joblog, job_factory):
    """A rule may use each word of a search, and finds what the search finds."""
    jobs = [job_factory(state="dead", attempt=2), job_factory(state="lost", finished_at=None)]
    keys = [key for key in search.KEYS if key not in {"saved", "args"}]
    words = [f"{key}:{VALUES.get(key, 'x*')}" for key in keys]
    words += [f"-{word}" for word in words if not word.startswith(("since:", "until:"))]
    seen = set()
    for word in words:
        rule = Alert("a", f"state:dead,lost {word}")
        rule.check(joblog.Job)
        [sight] = rule.look(joblog.core, joblog.core.locks.now(), 0)
        found = {job.jid for job in joblog.search(rule.search)}
        assert {*sight.jids} == found, word
        seen |= found

    assert seen == {job.jid for job in jobs}


def test_a_positional_argument(make_log, make_broker, worker):
    """``args.name`` finds a positional argument by its name, as the search does."""
    heard = Heard()
    log = make_log(Alert("a", "state:dead args.account:closed"), notify=heard)
    broker = make_broker("stub", "last", joblog=log)
    broker.fail_fast_default = False
    dramatiq.set_broker(broker)

    @dramatiq.actor(max_retries=0)
    def reconcile(account):
        raise ValueError

    with worker(broker):
        jids = [reconcile.send(account).message_id for account in ("closed", "open")]
        log.wait_all(jids, timeout=20_000)
    log.core.alerting.round()

    assert [notice.jids for notice in heard.all] == [[jids[0]]]


def test_a_saved_search():
    """A saved search is refused in a rule, because others may change it."""
    with pytest.raises(ConfigurationError, match="names the saved search 'mine', which anyone"):
        Alert("a", "saved:mine")


@pytest.mark.every_database
def test_an_expected_type_that_nobody_knows(make_log, joblog):
    """A type without any job is missed only after it was watched long enough."""
    heard = Heard()
    rules = Expect("nobody's", every=1_000, grace=0), Expect("t" * 300, every=HOUR, name="long")
    log = make_log(*rules, notify=heard)
    log.core.alerting.round()
    assert heard.all == []
    log.core.tables.alert.update(first_seen_at=0).execute()
    log.core.alerting.round()
    log.core.alerting.round()

    assert {notice.name for notice in heard.all} == {"expected: nobody's", "long"}
    assert all("None was sent." in notice.text for notice in heard.all)
    assert len([p for p in joblog.problems() if p.kind == "missed"]) == 2


def test_a_log_without_tables(sqlite_url, caplog):
    """Rules of a log without tables are deferred, with a log line."""
    log = JobLog(sqlite_url, alerts=[Alert("a", "state:dead")], alerts_every=1_000)
    with caplog.at_level(logging.WARNING):
        assert not log.core.alerting.round()
    log.close()

    assert "postponed" in caplog.text
