"""First runs in separate sections: one statement on PostgreSQL, the same result elsewhere."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, replace

import psycopg
import pytest
from peewee import SQL

from dramatiq_joblog import Exclusive, JobLog
from dramatiq_joblog.recording.events import UNANSWERED, Ended, Started, withdrawn

pytestmark = pytest.mark.every_database


@pytest.fixture
def begin(joblog):
    """Return a function that writes starts in sections, and returns the answers."""

    def write(*starts):
        answers = joblog.core.sections.write(starts)
        # Another thread may look next.
        joblog.release()
        return [answers[start.jid] for start in starts]

    return write


def start(jid, key, **row):
    """Return the first start of a job."""
    now = time.time_ns() // 1_000_000
    values = dict.fromkeys(("enqueued_at", "started_at", "created_at", "updated_at"), now)
    values |= {"jid": jid, "actor": "work", "queue": "default", "attempt": 1, "state": "started"}
    values |= {"token": f"run of {jid}", "process": None, "worker": "here"}
    return Started(values | row, section=asdict(Exclusive(key, on_conflict="wait")))


def test_several_begin_together(joblog, begin):
    """Each gets a fence and a lease, and its row is begun."""
    answers = begin(*(start(f"job {n}", f"key {n}") for n in range(3)))
    assert [(True, 1, False)] * 3 == [(a.granted, a.lease.fence, a.lease.lost) for a in answers]
    assert {"started"} == {job.state for job in joblog.jobs}
    held = {lock.key: (lock.owner, lock.token) for lock in joblog.locks}
    assert held == {f"key {n}": (f"job {n}", f"run of job {n}") for n in range(3)}
    assert 3 == len(joblog.core.locks.leases)


def test_two_of_one_key(joblog, begin):
    """Of two in one batch, the first begins; the other waits, like behind any other."""
    first, second = begin(start("a", "key"), start("b", "key"))
    assert (True, False) == (first.granted, second.granted)
    assert ["started", "waiting"] == [joblog.get(jid).state for jid in "ab"]


def test_a_key_that_is_held(joblog, begin):
    """Others begin in a batch with a refused job, and the key's fence keeps growing."""
    begin(start("a", "key"))
    blocked, other = begin(start("b", "key"), start("c", "other"))
    assert (False, True) == (blocked.granted, other.granted)
    assert "a" in str(blocked.refusal)
    joblog.core.locks.release("section", "key", "a", "run of a")
    # It is first in line now, and newcomers go behind it.
    newcomer, returned = begin(start("d", "key"), start("b", "key", token="another run of b"))
    assert (False, True, 2) == (newcomer.granted, returned.granted, returned.lease.fence)


def test_a_limit_that_was_set(joblog, begin):
    """A paused key admits no job."""
    joblog.set_limit("key", 0)
    [answer] = begin(start("a", "key"))
    assert (False, "waiting") == (answer.granted, joblog.get("a").state)


@pytest.mark.few(8)
@pytest.mark.parametrize(
    ("found", "granted"),
    [
        ({}, True),
        ({"state": "delayed"}, True),
        ({"state": "retrying", "token": "before", "attempt": 1}, True),
        ({"state": "enqueued", "dead_reason": "cancelled"}, False),
        ({"state": "dead", "dead_reason": "cancelled", "token": None}, False),
        ({"state": "finished", "token": "before"}, True),
        ({"state": "enqueued", "attempt": 2}, True),
        ({"state": "waiting", "waiting_since": 1, "eta": 1}, True),
    ],
)
def test_a_row_that_is_there(joblog, begin, job_factory, found, granted):
    """A row with earlier runs is judged like for any other start."""
    columns = {"state": "enqueued", "attempt": 1} | found
    job_factory(jid="a", **columns)
    [answer] = begin(start("a", "key"))
    assert granted == answer.granted
    held = [lock.owner for lock in joblog.locks]
    assert held == (["a"] if answer.granted else [])
    assert ("started" == joblog.get("a").state) == answer.granted
    if answer.granted:
        # A wait is over once its job has begun.
        assert joblog.get("a").waiting_since is None


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_run_that_another_process_begins_meanwhile(joblog, database_url, begin):
    """If its row belongs to another run, the key is released, and the start is judged again."""
    # Its key is made of something else there, so that this one is free.
    rival = start("a", "other key", token="the rival")
    answers = []
    thread = threading.Thread(target=lambda: answers.extend(begin(start("a", "key"))))
    other = JobLog(database_url)
    with other.database.atomic():
        other.Job.insert(rival.row).execute()
        thread.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        with psycopg.connect(database_url, autocommit=True) as watch:
            while not watch.execute(waiting).fetchone()[0]:
                pass
    thread.join(60)
    other.close()

    # The rival holds nothing, so that its run is considered over.
    [answer] = answers
    assert (True, 2) == (answer.granted, answer.lease.fence)
    assert ["interrupted"] == [run.outcome for run in joblog.get("a").failures]
    assert 1 == len(joblog.core.locks.leases)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_no_table_is_read_whole(joblog, database_url, begin, asked):
    """The server's cached plan looks up each row by an index, however many there are."""
    joblog.Job.insert_from(
        SQL(
            "SELECT 'jid ' || n, 'work', 'default', 'finished', 1, n, n "
            "FROM generate_series(1, 5000) AS n"
        ),
        [
            *(joblog.Job.jid, joblog.Job.actor, joblog.Job.queue, joblog.Job.state),
            *(joblog.Job.attempt, joblog.Job.created_at, joblog.Job.updated_at),
        ],
    ).execute()
    with asked() as texts:
        begin(start("a", "key"))
    joblog.database.execute_sql("ANALYZE")
    plan = plan_of(database_url, texts[0])
    assert "Seq Scan on joblog_job" not in plan, plan
    assert "joblog_job_jid" in plan


def plan_of(database_url, text):
    """Return the plan that PostgreSQL keeps of a statement with two parameters."""
    with psycopg.connect(database_url, autocommit=True) as server:
        server.execute("SET plan_cache_mode = force_generic_plan")
        server.execute("PREPARE it AS " + text.replace("%s", "$1", 1).replace("%s", "$2", 1))
        return "\n".join(row for (row,) in server.execute("EXPLAIN EXECUTE it ('[]', '[]')"))


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_no_key_is_read_that_is_not_freed(joblog, database_url, begin, asked):
    """The plan of ends that release keys finds each key by an index."""
    begin(*(start(f"job {n}", f"key {n}") for n in range(500)))
    first = start("a", "key")
    begin(first)
    with asked() as texts:
        finish(joblog, first)
    joblog.database.execute_sql("ANALYZE")
    plan = plan_of(database_url, texts[0])
    assert "Seq Scan on joblog_lock" not in plan, plan
    assert "joblog_lock_kind_key_slot" in plan


def finish(joblog, *starts):
    """Write the ends of runs."""
    ended = {"state": "finished", "finished_at": time.time_ns() // 1_000_000}
    sections = joblog.core.sections
    sections.write([Ended(start.row | ended, section=start.section) for start in starts])


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_plans_follow_the_growth_of_tables(joblog, begin):
    """Statements are planned again after some uses: an empty table's plan would read a full one."""
    joblog.database.execute_sql("ANALYZE")
    uses = 100
    for n in range(uses):
        begun = start(f"job {n}", f"key {n}")
        joblog.core.sections.write([begun])
        finish(joblog, begun)
    select = "SELECT name, generic_plans + custom_plans FROM pg_prepared_statements"
    kept = joblog.database.execute_sql(f"{select} WHERE name LIKE 'joblog_%%'").fetchall()
    assert 2 == len(kept)
    # After 32 and 64.
    assert {uses - 64} == {used for _, used in kept}
    assert uses == joblog.jobs.finished().count()


def test_only_if_it_is_free(joblog, begin):
    """A start that was not to wait writes nothing if its key is held, and begins if it is not."""
    begin(start("a", "key"))
    starts = [replace(start(jid, key), if_free=True) for jid, key in (("b", "key"), ("c", "free"))]
    refused, begun = begin(*starts)
    assert refused == UNANSWERED
    assert begun.granted
    assert {"a", "c"} == {job.jid for job in joblog.jobs}
    assert {"a", "c"} == {lock.owner for lock in joblog.locks}


def test_only_if_it_is_free_twice(joblog, begin):
    """A start whose reply was lost is granted again, with its lease."""
    both = [replace(start(jid, f"key {jid}"), if_free=True) for jid in "ab"]
    first = begin(*both)
    again = begin(*both)
    assert [True] * 4 == [answer.granted for answer in (*first, *again)]
    assert [a.lease.fence for a in first] == [a.lease.fence for a in again]
    assert {"a", "b"} == {lock.owner for lock in joblog.locks}


def test_a_withdrawal(joblog, begin):
    """It frees the key of its own run only, and its lease is no longer renewed."""
    begin(start("a", "key"), start("b", "other"))
    now = time.time_ns() // 1_000_000
    sections = joblog.core.sections
    row = {"jid": "a", "token": "an earlier run", "attempt": 1}
    sections.write([withdrawn(row, now, section=start("a", "key").section)])
    assert ["key", "other"] == sorted(lock.key for lock in joblog.locks)
    assert "started" == joblog.get("a").state

    sections.write([withdrawn(start("a", "key").row, now, section=start("a", "key").section)])
    assert ["other"] == [lock.key for lock in joblog.locks]
    assert ["enqueued", "started"] == [joblog.get(jid).state for jid in "ab"]
    assert ["run of b"] == list(joblog.core.locks.leases.all())
    [answer] = begin(start("c", "key"))
    assert answer.granted
