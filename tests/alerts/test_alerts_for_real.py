"""Alerts with real worker processes, a real HTTP receiver, and deaths at every step."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
import urllib.request

import brokers
import dramatiq
import pytest
from peewee import Database
from receiver import receiving

from dramatiq_joblog import Alert, JobLog
from dramatiq_joblog.alerts import alerting, ledger

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
]

#: More statements than a round has.
MANY = 60


@pytest.fixture
def receiver():
    """Return a receiver of notices."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def send(redis_url):
    """Return a function that sends a job to the worker."""
    broker = brokers.connect(redis_url, namespace="alerts")
    broker.declare_queue("default")
    broker.declare_queue("victims")

    def send(actor, queue="default"):
        message = dramatiq.Message(queue, actor, (), {}, {})
        broker.enqueue(message)
        return message.message_id

    yield send
    brokers.disconnect(broker)


@pytest.fixture
def run_worker(database_url, redis_url, run_worker_process, receiver):
    """Return a function that runs the worker."""
    environment = {
        "ALERT_BROKER": redis_url,
        "ALERT_DATABASE": database_url,
        "ALERT_URL": receiver.url,
    }

    def run(**options):
        options = {"expects_critical": "Unexpected failure"} | options
        return run_worker_process("alert_worker", env=environment, **options)

    return run


@pytest.mark.process
def test_what_people_hear_of(joblog, run_worker, send, receiver, eventually):
    """A dead job, a lost retry, a lost job and a missed one are each opened once and resolved."""
    default, victims = ("--queues", "default"), ("--queues", "victims")
    with run_worker(processes=2, args=default) as workers:
        lost = send("loses_its_retry")
        died = send("dies")
        eventually(lambda: receiver.of("retries lost") == ["opened"], 40)
        eventually(lambda: receiver.of("dead") == ["opened"], 40)
        eventually(lambda: receiver.of("on_dead") and len(receiver.of("on_dead")) == 2, 40)
        eventually(lambda: receiver.of("expected: nightly") == ["opened"], 40)
        send("nightly")
        eventually(lambda: receiver.of("expected: nightly")[:2] == ["opened", "resolved"], 40)

        with run_worker(args=victims) as victim:
            lasting = send("lasts", "victims")
            eventually(lambda: joblog.Job.get_or_none(state="started", jid=lasting), 20)
            os.killpg(victim.pid, signal.SIGKILL)
            eventually(lambda: receiver.of("lost") == ["opened"], 60)

        joblog.dismiss(lost, died, who="ada")
        eventually(lambda: receiver.of("dead") == ["opened", "resolved"], 60)
        eventually(lambda: receiver.of("retries lost") == ["opened", "resolved"], 60)
        assert workers.output.count("on_dead failed") == 1

    [opened] = [n for n in receiver.notices if n["name"] == "dead" and n["event"] == "opened"]
    assert opened["jids"] == [died]
    assert "https://shop.example/joblog/jobs?q=" in opened["text"]
    deaths = {n["jids"][0]: n["event"] for n in receiver.notices if n["name"] == "on_dead"}
    assert deaths == {lost: "retry_lost", died: "no_retries"}


def child(work):
    """Run a function in its own process, which ends by itself or is killed."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            work()
        os._exit(0)
    return pid


def is_killed(pid):
    """Wait for a process; return whether it was killed."""
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def look(url, address, *, kill_at=None, rounds=1):
    """Check the rules like a separate process, and perhaps die at a statement."""
    counted = 0
    execute = Database.execute_sql

    def step():
        nonlocal counted
        counted += 1
        if counted == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counting(self, *args, **kwargs):
        step()
        result = execute(self, *args, **kwargs)
        step()
        return result

    def notify(notice):
        step()
        facts = {"name": notice.name, "event": notice.event}
        request = urllib.request.Request(address, json.dumps(facts).encode())
        urllib.request.urlopen(request, timeout=5).close()
        step()

    alerting.TURN, ledger.AGAIN = 300, 200
    log = JobLog(url, alerts=[Alert("dead", "state:dead")], notify=notify, alerts_every=1_000)
    Database.execute_sql = counting
    try:
        for number in range(rounds):
            if number:
                time.sleep(0.05)
            log.core.alerting.round()
    finally:
        Database.execute_sql = execute
        log.close()


def settle(url, address, log, wanted, eventually):
    """Check from new processes until all notices are sent."""

    def said():
        is_killed(child(lambda: look(url, address)))
        state = log.alerts.first()
        log.release()
        return state is not None and state.pending is None and state.sent == wanted

    eventually(said, timeout=30)


@pytest.mark.process
@pytest.mark.full
@pytest.mark.timeout(400)
def test_a_death_between_any_two_steps(joblog, database_url, job_factory, receiver, eventually):
    """Whichever process is killed before or after a statement, the notice comes once or twice."""
    at = 0
    # The steps are the same on each database.
    stride = 1 if database_url.startswith("sqlite") else 3
    killed = True
    while killed:
        at += stride
        assert at < MANY * 2
        job = job_factory(state="dead")
        joblog.close()
        receiver.notices.clear()
        died = at
        killed = is_killed(child(lambda died=died: look(database_url, receiver.url, kill_at=died)))
        settle(database_url, receiver.url, joblog, "opened", eventually)
        assert receiver.of("dead") in (["opened"], ["opened", "opened"]), at
        receiver.notices.clear()
        joblog.dismiss(job.jid, who="ada")
        joblog.close()
        is_killed(child(lambda died=died: look(database_url, receiver.url, kill_at=died)))
        settle(database_url, receiver.url, joblog, "resolved", eventually)
        assert receiver.of("dead") in (["resolved"], ["resolved", "resolved"]), at
        joblog.core.tables.alert.update(counted_since=None, notices=0).execute()
        joblog.close()
    assert at > 10


@pytest.mark.process
@pytest.mark.full
def test_twenty_processes_that_are_killed(joblog, database_url, job_factory, receiver, eventually):
    """Of twenty processes, some of which are repeatedly killed, few send; a notice arrives."""
    job_factory(state="dead")
    joblog.close()

    def begin():
        return child(lambda: look(database_url, receiver.url, rounds=10_000))

    pids = [begin() for _ in range(20)]
    try:
        for _ in range(40):
            time.sleep(0.1)
            victim = pids.pop(random.randrange(len(pids)))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            pids.append(begin())
        eventually(lambda: receiver.of("dead"), 30)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    # One more for each that is killed between sending and noting it; twenty without a lease.
    assert 1 <= len(receiver.notices) <= 6
