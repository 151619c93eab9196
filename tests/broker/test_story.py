"""The table of stories on each broker, database and middleware position."""

from __future__ import annotations

import itertools

import dramatiq
import pytest
import stories
from dramatiq.middleware import MiddlewareError, Retries, default_middleware

from dramatiq_joblog.states import FINAL

POSITIONS = ["first", "last", "before_retries"]


def all_ended(joblog, jids):
    return lambda: joblog.jobs.in_state(*FINAL).count() == len(jids)


def told(joblog, jids):
    return {name: stories.observed(joblog, jid) for name, jid in jids.items()}


def wanted(jids):
    return {name: stories.expected(name) for name in jids}


def faults(joblog, jids):
    found = {name: stories.faults(joblog.get(jid)) for name, jid in jids.items()}
    return {name: texts for name, texts in found.items() if texts}


#: Each broker with each database, each broker at each place, each database at each place.
COMBINATIONS = [
    (broker, database, POSITIONS[(i + j) % len(POSITIONS)])
    for i, broker in enumerate(["stub", "redis", "rabbit"])
    for j, database in enumerate(["sqlite", "postgres", "mysql"])
]
#: Each place in worker processes, on what packages bring.
IN_PROCESSES = [
    ("redis", "sqlite", "first"),
    *(combination for combination in COMBINATIONS if combination[0] != "stub"),
]


def parameters(combinations, broker):
    """Return combinations; those with *broker* are in the first tier."""
    for kind, database, position in combinations:
        in_first = kind == broker and (broker == "stub" or database != "mysql")
        mark = pytest.mark.every_database if in_first else pytest.mark.full
        yield pytest.param(kind, database, position, marks=mark)


@pytest.mark.parametrize(
    ("kind", "database_url", "position"),
    list(parameters(COMBINATIONS, "stub")),
    indirect=["database_url"],
)
def test_each_story_leaves_its_row(joblog, make_broker, worker, eventually, kind, position):
    """Each story leaves the same row at each middleware position, with slow hooks."""
    broker = make_broker(kind, position, joblog=joblog, middleware=stories.middleware())
    actors = stories.declare(broker)

    with worker(broker):
        jids = stories.send_all(broker, actors)
        eventually(all_ended(joblog, jids), timeout=30)

    assert wanted(jids) == told(joblog, jids)
    assert {} == faults(joblog, jids)


@pytest.mark.process
@pytest.mark.parametrize(
    ("kind", "database_url", "position"),
    list(parameters(IN_PROCESSES, "redis")),
    indirect=["database_url"],
)
def test_each_story_in_worker_processes(
    request, joblog, database_url, make_broker, run_worker_process, eventually, kind, position
):
    """Two real worker processes leave the same rows as threads of this process."""
    broker = make_broker(kind, "last", joblog=joblog, middleware=stories.middleware())
    actors = stories.declare(broker)
    environment = {
        "STORY_BROKER": request.getfixturevalue(f"{kind}_url"),
        "STORY_DATABASE": database_url,
        "STORY_NAMESPACE": getattr(broker, "namespace", ""),
        "STORY_POSITION": position,
    }

    with run_worker_process("story_worker", processes=2, env=environment):
        jids = stories.send_all(broker, actors)
        eventually(all_ended(joblog, jids), timeout=40)

    assert wanted(jids) == told(joblog, jids)
    assert {} == faults(joblog, jids)


@pytest.mark.full
@pytest.mark.process
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_each_story_on_gevent(
    joblog, database_url, redis_url, make_broker, run_worker_process, eventually
):
    """Greenlets of ``dramatiq-gevent`` leave the same rows as threads, in each story."""
    broker = make_broker("redis", "last", joblog=joblog, middleware=stories.middleware())
    actors = stories.declare(broker)
    environment = {
        "STORY_BROKER": redis_url,
        "STORY_DATABASE": database_url,
        "STORY_NAMESPACE": broker.namespace,
        "STORY_POSITION": "last",
    }

    with run_worker_process("story_worker", threads=20, env=environment, gevent=True):
        jids = stories.send_all(broker, actors)
        eventually(all_ended(joblog, jids), timeout=40)

    assert wanted(jids) == told(joblog, jids)
    assert {} == faults(joblog, jids)


def states_written(joblog):
    """Record each state of a job's row, by jid."""
    seen = {}
    write = joblog.core.transitions.write

    def noting(events):
        answers = write(events)
        for event in events:
            state = joblog.Job.get(joblog.Job.jid == event.jid).state
            seen.setdefault(event.jid, []).append(str(state))
        return answers

    joblog.core.transitions.write = noting
    return seen


def test_states_in_order(joblog, make_broker, worker):
    """A job's row goes through the expected states, in order."""
    broker = make_broker("stub", "last", joblog=joblog)
    seen = states_written(joblog)

    @dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=10)
    def breaks():
        raise ValueError

    with worker(broker):
        message = breaks.send_with_options(delay=50)
        broker.join("default", fail_fast=False)
    joblog.core.writer.flush()

    once_each = [state for state, _ in itertools.groupby(seen[message.message_id])]
    assert ["delayed", "enqueued", "started", "retrying", "started", "dead"] == once_each


def test_no_retries_middleware(joblog, make_broker, worker):
    """Without ``Retries`` a failed job is acknowledged and gone: dead, as nothing retries it."""
    without = [m() for m in default_middleware if m is not Retries]
    broker = make_broker("stub", "last", joblog=joblog, middleware=without)

    @dramatiq.actor
    def breaks():
        raise ValueError("row 7 is broken")

    with worker(broker):
        message = breaks.send()
        broker.join("default", fail_fast=False)

    job = joblog.get(message.message_id)
    assert ("dead", "no_retries", "ValueError") == (job.state, job.dead_reason, job.error_type)


class RefusesRetries(dramatiq.Middleware):
    """Simulates a broker that accepts no message for a moment."""

    def before_enqueue(self, broker, message, delay):
        if message.options.get("retries"):
            raise MiddlewareError("the broker is full")


@pytest.mark.expects_critical
@pytest.mark.parametrize("position", POSITIONS)
def test_retry_that_could_not_be_enqueued(joblog, make_broker, worker, position):
    """A job whose retry could not be enqueued is dead, with that reason."""
    stack = [*(m() for m in default_middleware), RefusesRetries()]
    broker = make_broker("stub", position, joblog=joblog, middleware=stack)

    @dramatiq.actor(max_retries=3)
    def breaks():
        raise ValueError("row 7 is broken")

    with worker(broker):
        message = breaks.send()
        broker.join("default", fail_fast=False)

    job = joblog.get(message.message_id)
    assert ("dead", "retry_lost", 1) == (job.state, job.dead_reason, job.attempt)
    assert [(1, "dead")] == [(f.attempt, f.outcome) for f in job.failures]


def test_a_finished_job_that_is_sent_again(joblog, make_broker, worker):
    """A message that is enqueued again on purpose runs again, unless it may run once ever."""
    broker = make_broker("stub", "last", joblog=joblog)
    runs = []

    @dramatiq.actor
    def works(name):
        runs.append(name)

    with worker(broker):
        for message in (
            works.message("again"),
            works.message_with_options(args=["once"], rerun=False),
        ):
            broker.enqueue(message)
            broker.join("default")
            broker.enqueue(message)
            broker.join("default")

    assert ["again", "again", "once"] == runs
    again, once = joblog.jobs.order_by(joblog.Job.id)
    assert ["finished", "finished"] == [again.state, once.state]
    assert [["finished"], []] == [[f.outcome for f in job.failures] for job in (again, once)]


def test_rerun(joblog, make_broker, worker):
    """``rerun=True`` runs a message again whose job is finished, under the same jid."""
    broker = make_broker("stub", "last", joblog=joblog)
    runs = []

    @dramatiq.actor(rerun=True)
    def works():
        runs.append(1)

    with worker(broker):
        message = works.send()
        broker.join("default")
        broker.enqueue(message)
        broker.join("default")

    assert [1, 1] == runs
    assert "finished" == joblog.get(message.message_id).state
    assert 1 == joblog.jobs.count()


def test_log_job_off(joblog, make_broker, worker):
    """``log_job=False`` leaves no row; a message's option overrides its actor's."""
    broker = make_broker("stub", "last", joblog=joblog)

    @dramatiq.actor(log_job=False)
    def works():
        pass

    with worker(broker):
        works.send()
        logged = works.send_with_options(log_job=True)
        broker.join("default")

    assert [logged.message_id] == [job.jid for job in joblog.jobs]
