"""Queries: scopes, instants, users, and indexes."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from peewee import MySQLDatabase, SqliteDatabase

from dramatiq_joblog import State
from dramatiq_joblog.admin.retention import Rule


def test_scopes(joblog, job_factory):
    """Each scope narrows to its own, and they chain with each other and with peewee."""
    rows = {
        state: job_factory(state=state, jid=state, actor=f"do_{state}", queue=state)
        for state in map(str, State)
    }
    for state in rows:
        assert [state] == [job.jid for job in getattr(joblog.jobs, state)()]
    assert ["retrying", "started"] == [job.jid for job in joblog.jobs.in_progress()]
    assert ["lost", "dead"] == [
        job.jid for job in joblog.jobs.in_state("dead", "lost").order_by(joblog.Job.id)
    ]
    assert [] == list(joblog.jobs.in_state())
    assert ["started"] == [job.jid for job in joblog.jobs.in_progress().excluding("retrying")]
    assert ["dead"] == [job.jid for job in joblog.jobs.of_actor("do_dead", "x")]
    assert ["dead"] == [job.jid for job in joblog.jobs.in_queue("dead").limit(3)]
    assert 1 == joblog.jobs.dead().where(joblog.Job.queue == "dead").count()


def test_an_unknown_state(joblog):
    """An unknown state is refused, instead of finding nothing."""
    with pytest.raises(ValueError, match="'done' is not a state"):
        joblog.jobs.in_state("done")


def test_jobs_of_a_user(joblog, job_factory):
    """A user is found by the original id or as text, and returned unchanged."""
    job_factory(user_id=7, job_type="import")
    job_factory(user_id="ada", job_type="import")
    job_factory(job_type="import")

    assert [7] == [job.user_id for job in joblog.jobs.for_user(7)]
    assert [7] == [job.user_id for job in joblog.jobs.for_user("7").of_type("import", "x")]
    assert ["ada"] == [job.user_id for job in joblog.jobs.for_user("ada")]


def test_since_and_until(joblog, job_factory):
    """``since`` includes its instant and ``until`` does not; both require a time zone."""
    noon = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
    for minutes in range(3):
        job_factory(jid=str(minutes), created_at=noon + timedelta(minutes=minutes))

    later = joblog.jobs.since(noon + timedelta(minutes=1))
    assert ["2", "1"] == [job.jid for job in later]
    assert ["1"] == [job.jid for job in later.until(noon + timedelta(minutes=2))]
    elsewhere = noon.astimezone(timezone(timedelta(hours=5)))
    assert ["0"] == [job.jid for job in joblog.jobs.until(elsewhere + timedelta(seconds=1))]
    with pytest.raises(ValueError, match="has no time zone: use an aware datetime"):
        joblog.jobs.since(datetime(2030, 1, 1)).count()  # noqa: DTZ001


def test_instants_are_aware_and_exact(joblog, job_factory):
    """Instants are returned aware, in UTC, with milliseconds."""
    instant = datetime(2030, 1, 1, 12, 0, 0, 123_000, tzinfo=timezone(timedelta(hours=2)))
    job = job_factory(created_at=instant)
    assert instant == job.created_at
    assert timezone.utc is job.created_at.tzinfo


def test_a_state_of_a_newer_version(joblog, job_factory):
    """A state unknown to this version is read as text."""
    assert "paused" == job_factory(state="paused").state


def test_newest_first(joblog, job_factory):
    """Jobs come newest first, and a fresh query each time."""
    for name in "abc":
        job_factory(jid=name)
    assert ["c", "b", "a"] == [job.jid for job in joblog.jobs]
    assert joblog.jobs is not joblog.jobs


def test_a_question_that_is_asked_often_uses_its_index(joblog):
    """Queries use the indexes made for them."""
    rule = Rule(State.FINISHED, until=50, job_type=None)
    queries = {
        "actor": joblog.search("actor:unknown").limit(10),
        "error": joblog.search("error:KeyError").limit(10),
        "newest": joblog.jobs.limit(10),
        "old": joblog.core.chores.retention._select(rule, (0, 0)).limit(10),
        "type": joblog.search("type:unknown").limit(10),
        "types": joblog.search("type:unknown type:unheard").limit(10),
        "user": joblog.search("user:nobody").limit(10),
        "in_progress": joblog.jobs.in_progress().of_type("a", "b").for_user(7).order_by(),
        "newest_dead": joblog.jobs.dead().order_by(joblog.Job.created_at.desc()).limit(10),
        "jid": joblog.jobs.where(joblog.Job.jid == "j7").order_by(),
        "family": joblog.jobs.where(
            (joblog.Job.jid == "j7") | (joblog.Job.root_jid == "j7")
        ).order_by(joblog.Job.id),
    }
    indexes = {
        "actor": "joblog_job_actor",
        "error": "joblog_job_error",
        "newest": "joblog_job_created",
        "old": "joblog_job_ended",
        "type": "joblog_job_type",
        "types": "joblog_job_type",
        "user": "joblog_job_user",
        "family": "joblog_job_family",
        "in_progress": "joblog_job_active",
        "newest_dead": "joblog_job_state",
        "jid": "jid",
    }
    rows = [
        {
            "jid": f"j{n}",
            "actor": "work",
            "queue": "default",
            "state": "finished" if n % 50 else "dead",
            "attempt": 1,
            "created_at": n,
            "updated_at": n,
            "finished_at": n,
            "error_type": None if n % 50 else "KeyError",
            "user_id": n % 100,
            "job_type": "a",
        }
        for n in range(3000)
    ]
    with joblog.database.atomic():
        for start in range(0, 3000, 500):
            joblog.Job.insert_many(rows[start : start + 500]).execute()
    sqlite = isinstance(joblog.database, SqliteDatabase)
    if isinstance(joblog.database, MySQLDatabase):
        joblog.database.execute_sql("ANALYZE TABLE joblog_job").fetchall()
    elif not sqlite:
        joblog.database.execute_sql("ANALYZE")
    explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
    plans = {}
    for question, query in queries.items():
        sql, params = query.sql()
        lines = joblog.database.execute_sql(explain + sql, params).fetchall()
        plans[question] = " ".join(map(str, lines))

    assert set(queries) == set(indexes)
    assert {} == {q: plan for q, plan in plans.items() if indexes[q] not in plan}
