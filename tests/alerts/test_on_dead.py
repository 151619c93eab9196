"""A function of the application is called for each dead job."""

from __future__ import annotations

import threading

import dramatiq
import pytest

from dramatiq_joblog import Exclusive, JobLog
from dramatiq_joblog.alerts import on_dead


@pytest.fixture
def deaths():
    """Return a list that takes dead jobs."""
    return []


@pytest.fixture
def log(database_url, joblog, deaths):
    """Return a log that calls a function for dead jobs."""
    log = JobLog(database_url, on_dead=deaths.append)
    yield log
    log.close()


@pytest.mark.every_database
def test_each_way_to_die(log, make_broker, worker, deaths):
    """The function gets the committed row of each job that becomes dead, once."""
    broker = make_broker("stub", "last", joblog=log)
    broker.fail_fast_default = False

    @dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=2)
    def fails_twice():
        raise ValueError("no")

    @dramatiq.actor(throws=KeyError)
    def throws():
        raise KeyError

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="fail"))
    def conflicts():
        pass

    @dramatiq.actor
    def works():
        pass

    with log.lock("key"), worker(broker):
        wanted = [fails_twice.send(), throws.send(), conflicts.send()]
        others = [works.send() for _ in range(3)]
        log.wait_all([m.message_id for m in (*wanted, *others)], timeout=20_000)
    log.close()

    assert sorted(job.jid for job in deaths) == sorted(m.message_id for m in wanted)
    assert {str(job.state) for job in deaths} == {"dead"}
    reasons = {"retries_exhausted", "throws", "conflict"}
    assert {job.dead_reason for job in deaths} == reasons
    assert all(job.finished_at for job in deaths)


def test_a_message_that_no_actor_takes(log, make_broker, worker, deaths, eventually):
    """A message of an unknown actor is dead too."""
    broker = make_broker("stub", "last", joblog=log)
    broker.declare_queue("default")

    with worker(broker):
        broker.enqueue(dramatiq.Message("default", "unknown", (), {}, {}))
        eventually(lambda: deaths)

    assert [job.dead_reason for job in deaths] == ["unknown_actor"]


def test_a_function_that_fails(make_log, let_die, caplog):
    """An error of the function is logged, and the next job is reported; nothing waits."""
    calls, gate = [], threading.Event()

    def fails(job):
        assert threading.current_thread().name == "dramatiq_joblog on_dead"
        assert gate.wait(20)
        calls.append(job)
        raise ZeroDivisionError

    log = make_log(on_dead=fails)
    jids = let_die(log, 3)
    assert calls == []
    gate.set()
    log.close()

    assert sorted(job.jid for job in calls) == sorted(jids)
    assert caplog.text.count("on_dead failed for job") == 3


def test_it_costs_nothing_where_it_is_not_set(joblog):
    """A log without the function has no listener on its writer, and no thread."""
    assert joblog.core.writer._batches._on_written is None


def test_an_end_that_is_written_twice(log, job_factory, deaths, eventually):
    """A repeated end causes one call, and the end of a job that continues causes none."""
    from dramatiq_joblog.recording.events import Ended

    caller = log.core._dead_caller
    job = job_factory(state="dead", token="a")
    end = Ended({"jid": job.jid, "token": "a", "state": "dead", "updated_at": 1})
    stale = Ended({"jid": job.jid, "token": "b", "state": "dead", "updated_at": 1})
    caller.written([end, stale], {})
    caller.written([end], {})
    caller.close()

    assert [found.jid for found in deaths] == [job.jid]


def test_too_many(log, job_factory, deaths, monkeypatch, caplog):
    """If the function is too slow, the excess is logged, and the backlog is bounded."""
    from dramatiq_joblog.recording.events import Ended

    monkeypatch.setattr(on_dead, "MOST", 0)
    row = {"jid": "a", "token": "a", "state": "dead", "updated_at": 1}
    log.core._dead_caller.written([Ended(row)], {})

    assert "too slow" in caplog.text
