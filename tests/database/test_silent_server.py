"""A server that does not respond, frozen or without a network: nothing waits forever."""

from __future__ import annotations

import os
import threading
import time

import dramatiq
import pytest
from proxy import Proxy

from dramatiq_joblog import DatabaseAwayError, JobLog
from dramatiq_joblog.database import silence


@pytest.fixture(params=["postgres", "mysql"])
def url(request, database_of):
    """Return the URL of each kind of server."""
    return database_of(request.param)


@pytest.fixture
def network(url):
    """Return a proxy in front of the server, which can stall."""
    found = Proxy(url)
    yield found
    found.close()


@pytest.fixture
def log(url, network, monkeypatch):
    """Return a log behind the proxy, with shorter timeouts."""
    monkeypatch.setattr(silence, "GREETED_WITHIN", 500)
    found = JobLog(f"{network.through(url)}?connect_timeout=2")
    yield found
    network.resume()
    found.close()


CALLS = {
    "a count": lambda log: log.jobs.count(),
    "the limits": lambda log: log.limits,
    "the locks": lambda log: list(log.locks),
    "a limit that is set": lambda log: log.set_limit("key", 3),
    "the waiters": lambda log: list(log.waiters("key")),
    "a job": lambda log: log.get("jid"),
    "a job that is cancelled": lambda log: log.cancel("jid"),
    "a lock": lambda log: log.lock("key", wait=100).__enter__(),
}


#: The others are repetitions.
_FIRST = ("a count", "a lock")


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, id=name, marks=[] if name in _FIRST else pytest.mark.full)
        for name, call in CALLS.items()
    ],
)
def test_a_connection_that_was_good(log, network, call):
    """A call on a stalled connection raises one error; afterwards it works again."""
    log.jobs.count()
    network.hang()

    with silence.patient(500), pytest.raises(DatabaseAwayError):
        call(log)

    network.resume()
    assert log.jobs.count() == 0


def test_who_opens_a_connection_keeps_no_others(log, network):
    """Threads that open connections fail together with the first one, not one after the other."""
    network.hang()
    errors = []

    def ask():
        try:
            log.jobs.count()
        except DatabaseAwayError as e:
            errors.append(e)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(20)]
    for thread in threads:
        thread.start()
    # One try of each would take 20 times as long as one.
    deadline = time.monotonic() + 20
    for thread in threads:
        thread.join(deadline - time.monotonic())
    assert len(errors) == 20


def test_jobs_go_on_meanwhile(log, network, make_broker, worker, url):
    """Jobs run although a thread waits for a connection to a server that does not respond."""
    broker = make_broker("stub", "last", joblog=log)
    ran = threading.Event()

    @dramatiq.actor(broker=broker)
    def ask():
        with pytest.raises(DatabaseAwayError):
            log.jobs.count()

    work = dramatiq.actor(ran.set, actor_name="work", broker=broker)
    with worker(broker):
        log.jobs.count()
        network.hang()
        ask.send()
        work.send()
        assert ran.wait(30)
        network.resume()


def test_what_takes_long_is_not_cut(log):
    """A statement may take as long as its block says, and no longer."""
    kind = type(log.database).__name__
    sleep = "SELECT pg_sleep(2)" if "Postgres" in kind else "SELECT sleep(2)"
    with log.database.connection_context():
        with silence.patient():
            log.database.execute_sql(sleep)
        with silence.patient(500), pytest.raises(DatabaseAwayError, match=r"within 0\.5 s"):
            log.database.execute_sql(sleep)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_leaves_what_the_parent_asks(url):
    """A forked child never closes the connection of a statement running in its parent."""
    log = JobLog(url)
    asked, forked, child_ended = threading.Event(), threading.Event(), threading.Event()
    answers = []

    def ask():
        with log.database.connection_context():
            with log.database.watch.over(log.database.connection(), 1_000):
                asked.set()
                assert forked.wait(30)
            assert child_ended.wait(30)
            answers.extend(log.database.execute_sql("SELECT 1").fetchall())

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(30)
    late = time.monotonic() + 2
    child = os.fork()
    if child == 0:
        # As the child's own thread looks once it asks something.
        while time.monotonic() < late:
            log.database.watch.look()
        os._exit(0)
    forked.set()
    assert os.waitpid(child, 0) == (child, 0)
    child_ended.set()
    thread.join(30)
    log.close()

    assert [(1,)] == answers
