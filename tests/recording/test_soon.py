"""``start="soon"``: a start that is written only if its run lasts, or if the job queries."""

from __future__ import annotations

import sqlite3
import threading

import dramatiq
import pytest
import stories

from dramatiq_joblog import JobLogMiddleware, current_job
from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.recording.events import Ended, Started
from dramatiq_joblog.recording.tokens import new_token
from dramatiq_joblog.states import FINAL

NOW = 1_800_000_000_000


def kinds(batches):
    """Return the kinds of events of jobs that were written, in order."""
    return [event.kind for batch in batches for event in batch if event.kind != "enqueue"]


def row(state, token, attempt=1, **columns):
    times = dict.fromkeys(("created_at", "updated_at", "enqueued_at", "started_at"), NOW)
    job = {"jid": "job", "actor": "work", "queue": "default", "state": state, "attempt": attempt}
    return {**job, "token": token, **times, **columns}


def start(token, attempt=1, **flags):
    return Started(row("started", token, attempt), **flags)


def whole(token, attempt=1, state="finished", **flags):
    """Return an end whose start was not written."""
    begun = start(token, attempt, **flags)
    return Ended(row(state, token, attempt, finished_at=NOW + 5), start=begun)


def told(joblog):
    job = joblog.Job.get()
    return str(job.state), job.token, [f.outcome for f in joblog.Failure.select()]


def test_a_short_job_is_one_event(joblog, make_broker, worker, eventually, batches):
    """The outcome of a short job includes the columns of its start."""
    broker = make_broker("redis", joblog=joblog, start="soon")

    @dramatiq.actor
    def work():
        """Do nothing."""

    message = work.send()
    with worker(broker, worker_threads=1):
        eventually(lambda: joblog.jobs.finished().count())

    job = joblog.get(message.message_id)
    assert kinds(batches) in (["end"], ["start", "end"])  # the latter where 50 ms passed by
    assert None not in (job.started_at, job.finished_at, job.duration, job.queue_time, job.worker)
    assert 1 == job.attempt


def test_a_job_that_lasts_is_seen(joblog, make_broker, worker, eventually):
    """A longer job is started in the log while it runs."""
    broker = make_broker("stub", joblog=joblog, start="soon")
    ended = threading.Event()

    @dramatiq.actor
    def work():
        ended.wait(60)

    with worker(broker, worker_threads=1):
        work.send()
        eventually(lambda: joblog.jobs.started().count())
        ended.set()
        eventually(lambda: joblog.jobs.finished().count())


@pytest.mark.parametrize("ask", ["jobs", "get", "model"])
def test_a_job_that_asks_is_seen(joblog, make_broker, worker, eventually, ask):
    """A job that queries the log finds itself in it, started."""
    broker = make_broker("stub", joblog=joblog, start="soon")
    answers = []

    @dramatiq.actor
    def work():
        jid = current_job().jid
        if ask == "jobs":
            answers.append([job.jid == jid for job in joblog.jobs.in_progress()])
        elif ask == "get":
            answers.append([joblog.get(jid).state == "started"])
        else:
            started = joblog.Job.select().where(joblog.Job.state == "started")
            answers.append([job.jid == jid for job in started])

    with worker(broker, worker_threads=1):
        work.send()
        eventually(lambda: joblog.jobs.finished().count())
    assert [[True]] == answers


@pytest.mark.parametrize("options", [{"exclusive": "key"}, {"unique": "key"}, {"start": "before"}])
def test_jobs_that_decide_by_it(joblog, make_broker, worker, eventually, options):
    """A job with a section, a unique key or ``start="before"`` has its start written before."""
    broker = make_broker("stub", joblog=joblog, start="soon")
    states = []

    @dramatiq.actor(**options)
    def work():
        # Not by the log's own model, which would write it now.
        states.extend(joblog.database.execute_sql("SELECT state FROM joblog_job").fetchall())

    with worker(broker, worker_threads=1):
        work.send()
        eventually(lambda: joblog.jobs.finished().count())
    assert [("started",)] == states


@pytest.mark.few(1)
@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("position", ["first", "last"])
def test_each_story_leaves_its_row(joblog, make_broker, worker, eventually, position):
    """Each story leaves the same row as with ``start="before"``."""
    kwargs = {"joblog": joblog, "middleware": stories.middleware(), "start": "soon"}
    broker = make_broker("redis", position, **kwargs)
    actors = stories.declare(broker)

    with worker(broker):
        jids = stories.send_all(broker, actors)
        eventually(lambda: joblog.jobs.in_state(*FINAL).count() == len(jids), timeout=40)

    observed = {name: stories.observed(joblog, jid) for name, jid in jids.items()}
    assert {name: stories.expected(name) for name in jids} == observed


def test_an_unknown_time(joblog, make_broker):
    """An unknown *start* is refused, for an actor too."""
    with pytest.raises(ConfigurationError, match="start='late' is not known"):
        JobLogMiddleware(joblog, start="late")
    make_broker("stub", joblog=joblog)
    with pytest.raises(ConfigurationError, match="actor 'work' has start='late'"):
        dramatiq.actor(lambda: None, actor_name="work", start="late")


def test_an_end_on_a_job_that_was_put_back(joblog):
    """A job that was requeued unchanged, with a short next run, has that run's outcome."""
    joblog.core.transitions.write([start("a")])
    joblog.core.transitions.write([Ended(row("delayed", "a"))])
    joblog.core.transitions.write([whole("b")])

    assert ("finished", "b", []) == told(joblog)


def test_an_end_of_a_redelivered_run(joblog):
    """A short run of a redelivered message closes the open one as interrupted."""
    first, again = new_token("one"), new_token("one")
    joblog.core.transitions.write([start(first)])
    joblog.core.transitions.write([whole(again)])
    joblog.core.transitions.write([whole(again)])

    assert ("finished", again, ["interrupted"]) == told(joblog)


def test_an_end_on_a_finished_job(joblog):
    """A redelivered run of a job that has ended changes nothing, unless it may run again."""
    first, again, more = (new_token("one") for _ in range(3))
    joblog.core.transitions.write([whole(first)])
    joblog.core.transitions.write([whole(again, state="dead")])
    kept = told(joblog)
    joblog.core.transitions.write([whole(more, rerun=True)])

    assert ("finished", first, []) == kept
    assert ("finished", more, ["finished"]) == told(joblog)


def test_an_end_whose_start_was_written(joblog):
    """An end with a start that was already written counts once."""
    end = whole("a")
    joblog.core.transitions.write([end.start])
    joblog.core.transitions.write([end])
    joblog.core.transitions.write([end])

    assert ("finished", "a", []) == told(joblog)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_short_jobs_while_the_database_is_away(joblog, make_broker, worker, eventually):
    """Events of short jobs during an outage of the database are replayed unchanged."""
    broker = make_broker("stub", joblog=joblog, start="soon")
    done = threading.Semaphore(0)
    joblog.core.writer.flush()

    @dramatiq.actor
    def work():
        done.release()

    blocker = sqlite3.connect(joblog.database.database, isolation_level=None)
    with worker(broker, worker_threads=2):
        blocker.execute("BEGIN IMMEDIATE")
        for _ in range(20):
            work.send()
        for _ in range(20):
            assert done.acquire(timeout=60)
        blocker.execute("COMMIT")
        blocker.close()
        eventually(lambda: 20 == joblog.jobs.finished().count(), timeout=60)
    assert 0 == joblog.Failure.select().count()
