"""Events that the database refuses are written partially, down to the outcome."""

from __future__ import annotations

import contextlib
import itertools

import dramatiq
import pytest
from peewee import CharField, Check, ForeignKeyField, IntegerField, Model

from dramatiq_joblog import Job, JobLog
from dramatiq_joblog.recording.events import Ended
from dramatiq_joblog.recording.repair import repairs


class Person(Model):
    """A user of the application."""

    name = CharField()


@pytest.fixture
def joblog(database_url):
    """Return a log with custom columns, any of which the database may refuse."""
    with contextlib.closing(log_of_persons(database_url)) as log:
        yield log
        log.database.close()


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def any_joblog(request):
    """Return such a log on each database."""
    with contextlib.closing(log_of_persons(request.getfixturevalue(f"{request.param}_url"))) as log:
        yield log
        log.database.close()


def log_of_persons(database_url):
    """Return a log of jobs that refer to persons."""

    class PersonsJob(Job):
        user = ForeignKeyField(Person, null=True)
        age = IntegerField(null=True, constraints=[Check("age < 150")])
        tenant = CharField(max_length=5, null=True)
        floor = IntegerField(null=True, constraints=[Check("floor >= 0")])

    log = JobLog(database_url, model=PersonsJob)
    Person.bind(log.database)
    log.database.create_tables([Person])
    log.create_tables()
    return log


@pytest.fixture(params=["postgres", "mysql"])
def database_url(request):
    """Return the URL of an empty database that refuses values that do not fit."""
    return request.getfixturevalue(f"{request.param}_url")


def test_only_the_column_is_left_out(joblog, make_broker, worker):
    """If a row's user is not committed yet, only that column is left out, and written later."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(job_user="user", age=7)
    def work(user, text):
        pass

    message = work.send(1, "x")
    joblog.core.writer.flush()
    early = joblog.get(message.message_id)
    assert (None, [1, "x"], 7) == (early.user_id, early.args, early.age)
    assert "user" in early.note

    Person.create(id=1, name="ada")
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)

    late = joblog.get(message.message_id)
    assert ("finished", 1, None) == (late.state, late.user_id, late.note)


def test_an_outcome_is_kept_whatever_the_columns(joblog, make_broker, worker):
    """A job has its outcome, arguments and failure, whatever its custom columns."""
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
    assert 0 == joblog.core.writer.lost


def test_each_column_by_itself(any_joblog, make_broker, worker):
    """Of several custom columns, only those that the database refuses are left out."""
    joblog = any_joblog
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(age=7, tenant="acme")
    def work():
        raise ValueError

    message = work.send_with_options(age=200, floor=-1, max_retries=0)
    joblog.core.writer.flush()
    row = joblog.get(message.message_id)
    assert (None, None, "acme") == (row.age, row.floor, row.tenant)
    assert all(f"column {name} (" in row.note for name in ("age", "floor"))
    assert "tenant" not in row.note

    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)

    row = joblog.get(message.message_id)
    assert ("dead", None, None, "acme") == (row.state, row.age, row.floor, row.tenant)
    assert ["dead"] == [run.outcome for run in row.failures]
    assert "Failing row" not in row.note
    assert all(f"column {name} (" in row.note for name in ("age", "floor"))


def test_a_column_that_fits_by_now(joblog, make_broker, worker):
    """Of two refused columns, the one that the database accepts later is stored then."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(job_user="user", floor=-1)
    def work(user):
        pass

    message = work.send(1)
    joblog.core.writer.flush()
    assert "column user_id" in joblog.get(message.message_id).note

    Person.create(id=1, name="ada")
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)

    row = joblog.get(message.message_id)
    assert ("finished", 1, None) == (row.state, row.user_id, row.floor)
    assert "column floor" in row.note
    assert "user_id" not in row.note


def test_own_columns_are_kept_on_each_rung(joblog):
    """If another column is refused, no custom column is lost."""
    now = 1_764_000_000_000
    row = {"jid": "j", "actor": "a", "queue": "q", "state": "dead", "attempt": 1, "token": "t"}
    row |= dict.fromkeys(("created_at", "updated_at", "enqueued_at", "finished_at"), now)
    row |= {"error_type": "x" * 999, "age": 7, "tenant": "acme", "user_id": 99}
    joblog.core.writer.write(Ended(row, None))

    job = joblog.get("j")
    assert ("dead", 7, "acme", None) == (job.state, job.age, job.tenant, job.user_id)
    assert "user_id" in job.note
    assert "all but the outcome" in job.note


def test_the_last_rung_is_the_outcome(joblog):
    """Whatever is refused, state, attempt and times of a run are written."""
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
    joblog.core.writer.write(Ended(row, failure, lines=[{"jid": "j", "token": None}]))

    job = joblog.get("j")
    assert ("dead", 1, now) == (job.state, job.attempt, round(job.finished_at.timestamp() * 1000))
    assert ["dead"] == [row.outcome for row in job.failures]
    assert "before" in job.note
    assert 0 == joblog.core.writer.lost


def test_each_rung_leaves_out_more():
    """Later repairs never add what earlier ones left out, and the job's identity stays."""
    row = {"jid": "j", "state": "dead", "args": "[1]", "own": 1, "other": 2, "error_type": "E"}
    event = Ended(row, {"jid": "j", "traceback": "x"}, lines=[{"jid": "j"}], unique={})
    error = ValueError("a\x00b")
    rungs = list(repairs(event, {"own": None, "other": None}, error))
    assert all({"own": 1, "other": 2} == rung.columns for rung in rungs)
    steps = [rung.as_written() for rung in rungs]

    kept = [{n for n, v in step.row.items() if v is not None} - {"note"} for step in steps]
    assert all("\x00" not in step.row["note"] for step in steps)
    assert [{"jid", "state"}] * 2 == kept[-2:]
    assert all(after <= before for before, after in itertools.pairwise(kept))
    assert (None, None, None) == (steps[-1].lines, steps[-1].unique, steps[-1].section)
