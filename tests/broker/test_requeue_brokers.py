"""Running jobs again with more than one broker, and when a broker fails in the middle."""

from __future__ import annotations

import dramatiq
import pytest
from click.testing import CliRunner
from dramatiq.brokers.stub import StubBroker

from dramatiq_joblog import (
    JobLog,
    JobLogMiddleware,
    RequeueError,
    RequeueInterruptedError,
)
from dramatiq_joblog.cli.main import program


@pytest.fixture
def log(sqlite_database):
    """Return a log."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


def broker_of(log, kind=StubBroker):
    broker = kind(middleware=[])
    broker.add_middleware(JobLogMiddleware(log))
    return broker


def declare(broker, name, queue="default"):
    return dramatiq.actor(lambda *args: None, actor_name=name, queue_name=queue, broker=broker)


class Failing(StubBroker):
    """Accepts a number of messages, and is then unavailable."""

    left = 1_000

    def enqueue(self, message, *, delay=None):
        if self.left == 0:
            raise ConnectionError("redis://ada:hunter2@cache is unavailable")
        self.left -= 1
        return super().enqueue(message, delay=delay)


def run(worker, *brokers):
    for broker in brokers:
        with worker(broker):
            for queue in broker.get_declared_queues():
                broker.join(queue, fail_fast=False)


def test_each_broker_is_asked(log, worker):
    """A job is sent to the broker of its actor, whichever was set up last."""
    brokers = [broker_of(log) for _ in range(3)]
    actors = [declare(broker, f"work{at}") for at, broker in enumerate(brokers)]
    jids = [actor.send(at).message_id for at, actor in enumerate(actors)]
    run(worker, *brokers)

    for at, jid in enumerate(jids):
        assert f"work{at}" == log.requeue(jid).actor_name
        assert 1 == brokers[at].queues["default"].qsize()


def test_the_queue_decides_between_brokers(log, worker):
    """If two brokers have an actor of the same name, the one with the job's queue is used."""
    one, two = broker_of(log), broker_of(log)
    jid = declare(one, "work", "imports").send().message_id
    run(worker, one)
    declare(two, "work", "exports")

    log.requeue(jid)

    assert 1 == one.queues["imports"].qsize()


def test_a_broker_with_actors_from_before(log, worker):
    """A broker is known too if the middleware is added after its actors."""
    broker = StubBroker(middleware=[])
    actor = declare(broker, "work")
    broker.add_middleware(JobLogMiddleware(log))
    jid = actor.send().message_id
    run(worker, broker)

    assert "work" == log.requeue(jid).actor_name


def test_no_broker_has_the_actor(log, job_row):
    """The error says how many brokers were checked."""
    for _ in range(2):
        declare(broker_of(log), "other")

    with pytest.raises(RequeueError, match="'work' is declared in any of the 2 brokers here"):
        log.requeue(job_row("j1"))


@pytest.fixture
def job_row(log):
    """Return a function that makes a dead job."""

    def make(jid, **columns):
        row = {"actor": "work", "queue": "default", "state": "dead", "attempt": 1}
        times = dict.fromkeys(("enqueued_at", "created_at", "updated_at"), 1_700_000_000_000)
        log.Job.create(jid=jid, args=[], kwargs={}, **row | times | columns)
        return jid

    return make


def test_what_was_sent_is_known_when_the_broker_fails(log, job_row):
    """A failure in the middle has what was sent, what was refused, and where it broke off."""
    broker = broker_of(log, Failing)
    declare(broker, "work")
    for at in range(5):
        job_row(f"j{at}", **({"actor": "gone"} if at == 1 else {}))
    broker.left = 2

    with pytest.raises(RequeueInterruptedError) as broken:
        log.requeue_all(log.jobs)

    assert ["j0", "j2"] == [m.options["joblog_replay_of"] for m in broken.value.sent]
    assert ["j1"] == list(broken.value.refused)
    assert "j3" == broken.value.jid
    assert isinstance(broken.value.__cause__, ConnectionError)
    assert "hunter2" not in str(broken.value)
    assert ["j0", "j2"] == [j.jid for j in log.jobs.where(log.Job.replayed_by.is_null(False))][::-1]
    broker.left = 100
    assert ["j3", "j4"] == [m.options["joblog_replay_of"] for m in log.requeue_all(log.jobs).sent]


APP = """
import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq_joblog import JobLog, JobLogMiddleware

joblog = JobLog({url!r})
"""
ACTORS = """
class Failing(StubBroker):
    left = {left}

    def enqueue(self, message, *, delay=None):
        if self.left == 0:
            raise ConnectionError("the cache is unavailable")
        self.left -= 1
        return super().enqueue(message, delay=delay)

broker = Failing(middleware=[JobLogMiddleware(joblog)])
dramatiq.set_broker(broker)
"""
WORK = """
@dramatiq.actor
def work(): ...
"""


@pytest.fixture
def ask(log, sqlite_url, tmp_path, monkeypatch):
    """Return a function that runs the command line for an application with this source."""
    monkeypatch.chdir(tmp_path)

    def run(source, *arguments, left=100):
        name = f"app{abs(hash((source, left, tmp_path)))}"
        text = APP.format(url=sqlite_url) + source.replace("{left}", str(left))
        (tmp_path / f"{name}.py").write_text(text)
        return CliRunner().invoke(program, ["--app", f"{name}:joblog", "requeue", *arguments])

    return run


def test_both_are_told_on_the_command_line(ask, job_row):
    """Of two named jobs, one is sent, and the other refused with its reason."""
    job_row("aa1")
    job_row("bb2", state="started")

    done = ask(ACTORS + WORK, "bb2", "aa1", "--yes")

    assert "runs aa1 again" in done.stdout
    assert "bb2  not again: it is started" in done.stdout
    assert "not all could run again: 1 job: it is started" in done.stderr
    assert 1 == done.exit_code


@pytest.mark.parametrize("words", [["aa1", "bb2"], ["state:dead"]])
def test_what_was_sent_is_shown_when_the_broker_fails(ask, job_row, words):
    """The command says which job was sent before the broker failed."""
    job_row("aa1")
    job_row("bb2")

    done = ask(ACTORS + WORK, *words, "--yes", left=1)

    assert "runs aa1 again" in done.stdout
    assert "the cache is unavailable" in done.stderr
    assert 3 == done.exit_code


@pytest.mark.parametrize("source", ["", ACTORS])
def test_a_module_without_actors(ask, job_row, source):
    """If the named module has no actors, the error says so."""
    job_row("aa1")

    done = ask(source, "aa1")

    assert "this module declares no actors; name one that imports them" in done.stderr
    assert 2 == done.exit_code


def test_more_match_than_are_taken(ask, job_row):
    """The command reports that more jobs match than its limit."""
    for at in range(3):
        job_row(f"aa{at}")

    assert (
        "More match: these are the oldest 2"
        in ask(ACTORS + WORK, "state:dead", "--limit", "2", "--dry-run").stderr
    )
    assert "More match" not in ask(ACTORS + WORK, "state:dead", "--limit", "3", "--dry-run").stderr
