"""A long wait queue of a key costs each job no more than a short one."""

from __future__ import annotations

import time

import pytest
from peewee import chunked

from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.locking.leases import Claim
from dramatiq_joblog.locking.waiters import Place
from dramatiq_joblog.schema.migrations import migrate

MANY = 3_000


@pytest.fixture
def line(joblog):
    """Return the queries on a wait queue of many jobs; the first has already begun."""
    now = int(time.time() * 1000)
    job = joblog.core.locks.waiters.job
    common = {"actor": "a", "queue": "q", "attempt": 1, "state": "waiting", "section": "key"}
    common |= {"eta": now + 200_000, "created_at": now, "updated_at": now, "started_at": None}
    rows = [common | {"jid": f"{n}", "waiting_since": now - n} for n in range(MANY)]
    rows.append(common | {"jid": "begun", "waiting_since": now, "started_at": now - 500})
    with joblog.database.connection_context(), joblog.database.atomic():
        for some in chunked(rows, 300):
            job.insert_many(some).execute()
    table = f"{'TABLE ' if dialect_of(joblog.database).kind == 'mysql' else ''}joblog_job"
    joblog.database.execute_sql(f"ANALYZE {table}")
    return joblog.core.locks.waiters


def test_who_is_next(line):
    """Jobs that have already begun come first, then those that have waited longest."""
    assert ["begun", f"{MANY - 1}", f"{MANY - 2}"] == line.line("key", 3)
    assert {"key"} == line.disputed(["key"]) == line.disputed(["key", "other"])
    assert set() == line.disputed(["other"])
    since = line.job.get(jid=f"{MANY - 1}").waiting_since
    first = Place(since=int(since.timestamp() * 1000))
    assert 1 == line.count_ahead("key", f"{MANY - 1}", first, most=5)
    assert "begun" == line.first_ahead("key", "new", Place()).owner
    assert f"{MANY - 1}" == line.first_ahead("key", "begun", Place()).owner
    assert 5 == line.count_ahead("key", "new", Place(), most=5)


def test_a_block_in_a_long_line(joblog, line):
    """A block that waits for a lock has its queue position by its waiting time."""
    since = line.job.get(jid="1500").waiting_since
    claim = Claim("section", "key", "block", "a" * 28, 60_000, by_hand=True)
    joblog.core.locks.hands.enter(claim, int(since.timestamp() * 1000) + 1)
    names = line.line("key", MANY)
    assert ["1499", "block", "1498"] == names[names.index("block") - 1 : names.index("block") + 2]
    assert {"key"} == line.disputed(["key"])
    place = Place(since=int(since.timestamp() * 1000) + 2)
    assert MANY - 1499 + 2 == line.count_ahead("key", "new", place, most=MANY)
    joblog.core.locks.hands.leave(claim)
    assert "block" not in line.line("key", MANY)


def test_no_line_is_read_whole(line):
    """The index returns the first ones in order: the others are neither read nor sorted."""
    database = line.job._meta.database
    text, values = line._selecting_line(["key", 1], begun=False).sql()
    explain = "EXPLAIN QUERY PLAN" if dialect_of(database).kind == "sqlite" else "EXPLAIN"
    plan = str(database.execute_sql(f"{explain} {text}", values).fetchall())
    assert "joblog_job_line" in plan
    for sorts in ("TEMP B-TREE", "filesort", "->  Sort"):
        assert sorts not in plan


def test_a_log_from_before(joblog):
    """The index of earlier versions is dropped, whatever its name."""
    database, job = joblog.database, joblog.core.tables.job
    quote = database.quote[0]
    for name in ("joblog_job_waiting", "joblog_job_waiting_2"):
        database.execute_sql(f"CREATE INDEX {name} ON joblog_job (section, waiting_since)")
    database.execute_sql(f"DELETE FROM joblog_job_migration WHERE {quote}name{quote} = '0008_line'")
    migrate(joblog.core.tables)
    names = {index.name for index in database.get_indexes(job._meta.table_name)}
    assert "joblog_job_line" in names
    assert not {name for name in names if "waiting" in name}
