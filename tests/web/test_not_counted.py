"""A log without totals: pages count a part of the rows, and say which."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
from pages import opened
from starlette.testclient import TestClient

MINUTE = 60_000
#: More than a page counts by itself.
MANY = 12_000


@pytest.fixture
def database_url(sqlite_database):
    """Return the URL of a database: queries are tested on each kind elsewhere."""
    return sqlite_database


@pytest.fixture
def many(joblog):
    """Fill a log with jobs that ended in the last hours, one per second, without totals."""
    now = int(time.time() * 1000)
    table, when = joblog.Job._meta.table_name, f"({now} - n * 1000)"
    names = "jid, actor, queue, state, attempt, created_at, updated_at, finished_at, duration"
    values = f"'job-' || n, 'work', 'default', 'finished', 1, {when}, {when}, {when}, 40"
    joblog.database.execute_sql(
        f"WITH RECURSIVE nth(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM nth WHERE n < {MANY}) "
        f"INSERT INTO {table} ({names}) SELECT {values} FROM nth"
    )
    return now


def ago(**spans):
    return datetime.now(timezone.utc) - timedelta(**spans)


def test_some_rows(joblog, job_factory):
    """The newest rows are counted, and the result says since when it is complete."""
    now = int(time.time() * 1000)
    for minute in range(30):
        at = now - minute * MINUTE
        job_factory(created_at=at, started_at=at, finished_at=at, job_type="import")

    part = joblog.stats(since=ago(hours=1), at_most=10)
    profile = joblog.profile("import", since=ago(hours=1), at_most=10)

    for figures in (part, profile):
        assert 10 == figures.counts["finished"]
        assert figures.known_since.timestamp() * 1000 == pytest.approx(now - 10 * MINUTE, abs=9)
    assert 30 == joblog.stats(since=ago(hours=1)).counts["finished"]
    assert joblog.stats(since=ago(hours=1), at_most=30).known_since is None


def test_what_was_counted(joblog, job_factory):
    """Totals are complete, however many jobs there are."""
    for minute in range(30):
        at = int(time.time() * 1000) - minute * MINUTE
        job_factory(created_at=at, started_at=at, finished_at=at)
    joblog.core.totals.catch_up(int(time.time() * 1000))

    counted = joblog.stats(since=ago(hours=1), at_most=1)

    assert (30, None) == (counted.counts["finished"], counted.known_since)


@pytest.mark.few(1)
@pytest.mark.parametrize("path", ["/?range=24h", "/types", "/types/work", "/compare"])
def test_a_page(joblog, many, path):
    """A page of such a log says since when its figures are complete, and counts no more of it."""
    with TestClient(opened(joblog), base_url="http://localhost") as page:
        answer = page.get(path)

    assert 200 == answer.status_code
    assert "are not counted yet" in answer.text
    assert f"{MANY:,}" not in answer.text.replace("\u202f", ",")


def test_metrics(joblog, many):
    """No counter is incomplete: it could decrease later."""
    with TestClient(opened(joblog), base_url="http://localhost") as page:
        before = page.get("/metrics").text
        joblog.core.totals.catch_up(int(time.time() * 1000))

    with TestClient(opened(joblog), base_url="http://localhost") as page:
        after = page.get("/metrics").text

    assert "joblog_ended_total{" not in before
    assert "are not counted yet" in before
    assert f'joblog_ended_total{{job_type="",outcome="finished"}} {MANY}.0' in after
