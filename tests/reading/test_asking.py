"""Pages, counts, statistics and time limits: the queries of the dashboard and command line."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from peewee import MySQLDatabase

from dramatiq_joblog import QueryTimeout, SearchError, State
from dramatiq_joblog.schema.query import cursor_of

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


def test_pages(joblog, job_factory):
    """Pages go down the list and up again, without gaps or duplicates, by creation time."""
    for number in range(7):
        # Some share their instant, and the order of ids is not that of time.
        job_factory(jid=str(number), created_at=NOON - timedelta(seconds=number // 3))
    order = ["2", "1", "0", "5", "4", "3", "6"]
    assert order == [job.jid for job in joblog.jobs]

    first = joblog.jobs.page(limit=3)
    second = joblog.jobs.page(limit=3, before=first.older)
    third = joblog.jobs.page(limit=3, before=second.older)
    assert [order[:3], order[3:6], order[6:]] == [
        [job.jid for job in page.jobs] for page in (first, second, third)
    ]
    assert (None, None) == (first.newer, third.older)

    up = joblog.jobs.page(limit=2, after=third.newer)
    assert ["4", "3"] == [job.jid for job in up.jobs]
    assert third.jobs == joblog.jobs.page(limit=2, before=up.older).jobs
    top = joblog.jobs.page(limit=9, after=second.newer)
    assert order[:3] == [job.jid for job in top.jobs]
    assert None is top.newer


def test_a_page_that_looks_no_further(joblog, job_factory, monkeypatch):
    """Without an index, a page checks a bounded number of jobs, and says how far back it looked."""
    monkeypatch.setattr("dramatiq_joblog.schema.query.LOOK", 3)
    for number in range(8):
        job_factory(
            jid=str(number),
            queue="rare" if number in {1, 7} else "default",
            state="finished" if number % 2 else "dead",
            created_at=NOON - timedelta(seconds=number),
        )
    rare = joblog.search("queue:rare")
    first = rare.page()
    assert (["1"], NOON - timedelta(seconds=2)) == (
        [j.jid for j in first.jobs],
        first.looked_back_to,
    )
    second = rare.page(before=first.older)
    assert ([], NOON - timedelta(seconds=5)) == (second.jobs, second.looked_back_to)
    third = rare.page(before=second.older)
    assert (["7"], None, None) == ([j.jid for j in third.jobs], third.older, third.looked_back_to)
    # Of what an index answers only what it finds is looked at.
    finished = joblog.search("queue:rare state:finished").page()
    assert (["1"], NOON - timedelta(seconds=5)) == (
        [j.jid for j in finished.jobs],
        finished.looked_back_to,
    )
    assert None is joblog.search("type:unknown").page().older
    assert ["1", "7"] == [job.jid for job in rare]


def test_what_has_come_since(joblog, job_factory):
    """The cursor of a job returns newer jobs."""
    known = job_factory(created_at=NOON)
    place = cursor_of(known)
    assert [] == joblog.jobs.page(after=place).jobs
    new = job_factory(created_at=NOON + timedelta(seconds=1))

    assert [new] == joblog.jobs.page(after=place).jobs


@pytest.mark.parametrize("cursor", ["", "7", "a-b", "1-2-3"])
def test_a_place_that_is_none(joblog, cursor):
    """An invalid cursor is refused."""
    with pytest.raises(SearchError, match="is not a place in a list of jobs"):
        joblog.jobs.page(before=cursor)


def test_counts(joblog, job_factory):
    """Jobs are counted by state, up to a cap, which is marked."""
    for state, number in {"dead": 3, "finished": 5, "started": 4}.items():
        for _ in range(number):
            job_factory(state=state, actor=state)

    counts = joblog.counts(cap=4)
    assert list(State) == list(counts)
    assert {"dead": 3, "finished": 4, "started": 4} == {k: v for k, v in counts.items() if v}
    assert [True] == [c.capped for s, c in counts.items() if s == "finished"]
    assert not counts[State.STARTED].capped
    assert 3 == sum(joblog.counts(joblog.search("actor:dead")).values())


def test_a_row_as_plain_values(joblog, job_factory):
    """A job is returned as a dict for JSON, without internal columns."""
    job = job_factory(
        jid="j", created_at=NOON, user_id=7, args=[1, {"a": None}], sealed="x", token="t"
    )
    told = json.loads(json.dumps(job.as_dict()))

    assert "2030-01-01T12:00:00.000Z" == told["created_at"]
    assert ("j", "finished", 7, [1, {"a": None}]) == (
        *(told[name] for name in ("jid", "state", "user_id", "args")),
    )
    assert not {"id", "options", "process", "sealed", "token"} & set(told)


def test_stats(joblog, job_factory):
    """Ended jobs are counted by outcome and time, by job type, and by error."""
    for minute, state, error in (
        (0, "finished", None),
        (0, "dead", "KeyError"),
        (3, "dead", "KeyError"),
    ):
        job_factory(
            state=state,
            job_type="mail",
            actor="send",
            error_type=error,
            finished_at=NOON + timedelta(minutes=minute),
            duration=1000,
            queue_time=10,
        )
    job_factory(actor="other", finished_at=NOON + timedelta(minutes=1))
    outside = job_factory(finished_at=NOON - timedelta(minutes=10))
    failed = job_factory(state="retrying", finished_at=None, actor="send", job_type="mail")
    joblog.Failure.create(
        jid=failed.jid,
        token="t",
        attempt=1,
        outcome="retried",
        error_type="KeyError",
        finished_at=NOON,
        duration=5,
    )

    stats = joblog.stats(since=NOON, until=NOON + timedelta(minutes=4))
    assert (60_000, 4, NOON) == (stats.step, len(stats.times), stats.times[0])
    assert [1, 1, 0, 0] == stats.series["finished"]
    assert [1, 0, 0, 1] == stats.series["dead"]
    assert [1, 0, 0, 0] == stats.series["retried"]
    mail, other = stats.groups
    assert ("mail", 3, "") == (mail.name, mail.duration.count, other.name)
    assert 0.9 < mail.duration.p50 / 1000 < 1.1
    assert (10, 10) == (mail.queue_time.p50, mail.queue_time.p99)
    (error,) = stats.errors
    assert ("KeyError", "send", 3) == (error.error_type, error.actor, error.count)
    assert [2, 0, 0, 1] == error.series
    by_actor = joblog.stats(since=NOON, until=NOON + timedelta(minutes=4), by="actor")
    assert ["send", "other"] == [group.name for group in by_actor.groups]
    assert 6 == sum(
        joblog.stats(since=outside.finished_at, until=NOON + timedelta(minutes=4)).counts.values()
    )
    with pytest.raises(SearchError, match="by='colour' is not a way to group"):
        joblog.stats(since=NOON, by="colour")


def test_the_oldest_that_wait(joblog, job_factory):
    """The jobs that wait longest for a worker come first."""
    for number in range(4):
        job_factory(jid=str(number), state="enqueued", created_at=NOON - timedelta(hours=number))
    job_factory(state="delayed", created_at=NOON - timedelta(days=9))

    assert ["3", "2"] == [job.jid for job in joblog.oldest(2)]


def test_a_question_that_takes_too_long(joblog):
    """A query that exceeds its time limit is cancelled, and the next one is not."""
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    if isinstance(joblog.database, MySQLDatabase):
        # It ends such a recursion by itself, and early.
        many = "information_schema.columns"
        slow = f"SELECT count(*) FROM {many} a, {many} b, {many} c"
    with (
        pytest.raises(QueryTimeout, match="did not respond within 100 ms") as refusal,
        joblog.reading(timeout=100),
    ):
        joblog.database.execute_sql(slow).fetchall()
    assert 100 == refusal.value.timeout
    assert joblog.database.is_closed()

    with joblog.reading(timeout=60_000):
        assert 0 == joblog.jobs.count()
    assert joblog.database.is_closed()
    assert 0 == joblog.jobs.count()
    joblog.release()
