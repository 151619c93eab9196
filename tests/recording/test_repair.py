"""What the database refuses is written in part, down to the outcome."""

from __future__ import annotations

import itertools

import dramatiq
import pytest
from peewee import CharField, ForeignKeyField, IntegerField, Model

from dramatiq_joblog import Job, JobLog
from dramatiq_joblog.recording.repair import repairs
from dramatiq_joblog.recording.transitions import Event


class Person(Model):
    """A user of an application's own."""

    name = CharField()


@pytest.fixture
def joblog(database_url):
    """Return a log of jobs with columns of its own, of which a database may refuse any."""

    class PersonsJob(Job):
        user = ForeignKeyField(Person, null=True)
        age = IntegerField(null=True)
        tenant = CharField(max_length=5, null=True)

    log = JobLog(database_url, model=PersonsJob)
    Person.bind(log.database)
    log.database.create_tables([Person])
    log.create_tables()
    yield log
    log.database.close()
    log.close()


@pytest.fixture(params=["postgres", "mysql"])
def database_url(request):
    """Return the URL of an empty database of those that refuse what does not fit."""
    return request.getfixturevalue(f"{request.param}_url")


def test_only_the_column_is_left_out(joblog, make_broker, worker):
    """Of a row whose user is not committed yet only that is left out, and comes when it is."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(job_user="user", age=7)
    def work(user, text):
        pass

    message = work.send(1, "x")
    joblog.writer.flush()
    early = joblog.get(message.message_id)
    assert (None, [1, "x"], 7) == (early.user_id, early.args, early.age)
    assert "user" in early.note

    Person.create(id=1, name="ada")
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)

    late = joblog.get(message.message_id)
    assert ("finished", 1, None) == (late.state, late.user_id, late.note)


def test_an_outcome_is_kept_whatever_the_columns(joblog, make_broker, worker):
    """A job has its outcome, its arguments and its failure whatever its own columns are."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(job_user="user", max_retries=0)
    def work(user):
        raise ValueError

    message = work.send_with_options(args=(99,), age=2**60, tenant="a" * 99)
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)

    job = joblog.get(message.message_id)
    assert ("dead", [99], "aaaaa") == (job.state, job.args, job.tenant)
    assert "ValueError" in job.failures.get().traceback
    assert 0 == joblog.writer.lost


def test_the_last_rung_is_the_outcome(joblog):
    """Whatever else is refused, state, attempt and times of a run are written."""
    now = 1_764_000_000_000
    row = {
        "jid": "j",
        "actor": "a",
        "queue": "q",
        "state": "dead",
        "attempt": 1,
        "token": "t",
        **dict.fromkeys(("created_at", "updated_at", "enqueued_at", "finished_at"), now),
        "error_type": "x" * 999,
        "max_retries": 2**60,
        "args": "[1]",
        "note": "before",
        "trace_id": "x" * 999,
        "worker": "w",
    }
    failure = {
        "jid": "j",
        "token": "t",
        "attempt": 1,
        "outcome": "dead",
        "finished_at": now,
        "error_type": "x" * 999,
        "duration": 2**70,
    }
    joblog.writer.write(Event("end", row, failure, lines=[{"jid": "j", "token": None}]))

    job = joblog.get("j")
    assert ("dead", 1, now) == (job.state, job.attempt, round(job.finished_at.timestamp() * 1000))
    assert ["dead"] == [row.outcome for row in job.failures]
    assert "before" in job.note
    assert 0 == joblog.writer.lost


def test_each_rung_leaves_out_more():
    """Nothing that was left out comes back further down, and the names of the job stay."""
    row = {"jid": "j", "state": "dead", "args": "[1]", "own": 1, "other": 2, "error_type": "E"}
    event = Event("end", row, {"jid": "j", "traceback": "x"}, lines=[{"jid": "j"}], unique={})
    steps = list(repairs(event, {"own": None, "other": None}, ValueError("a\x00b")))

    kept = [{n for n, v in step.row.items() if v is not None} - {"note"} for step in steps]
    assert all("\x00" not in step.row["note"] for step in steps)
    assert [{"jid", "state"}] * 2 == kept[-2:]
    assert all(after <= before for before, after in itertools.pairwise(kept[2:]))
    assert (None, None, None) == (steps[-1].lines, steps[-1].unique, steps[-1].section)
