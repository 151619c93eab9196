"""Totals equal the rows, whatever arrives late and whatever is deleted."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from itertools import pairwise

import pytest
import tiers

from dramatiq_joblog.recording.events import Ended
from dramatiq_joblog.statistics.cells import DAY, HOUR, MINUTE, QUARTER, SPANS
from dramatiq_joblog.statistics.histogram import BOUNDS, Histogram, bucket_of
from dramatiq_joblog.statistics.rollups import level_of

#: A minute, in milliseconds since 1970, that is also the begin of a day.
MIDNIGHT = 20_000 * DAY


def now():
    return int(time.time() * 1000)


def count_of(joblog, span=None, **wanted):
    """Return the counts of the totals, in one span or in the finest available."""
    total = joblog.core.tables.total
    rows = total.select().where(
        total.gone == 0, *(getattr(total, k) == v for k, v in wanted.items())
    )
    return sum(row.count for row in rows.where(total.span == (span or MINUTE)))


def rows_by_hour(joblog):
    """Return the counts of the rows: ended jobs, and failed runs that were not the end, by hour."""
    found = Counter()
    for job in joblog.Job.select().where(joblog.Job.finished_at.is_null(False)):
        at = int(job.finished_at.timestamp() * 1000)
        found[at // HOUR, job.actor, job.state, job.error_type or ""] += 1
    for run in joblog.Failure.select().where(joblog.Failure.outcome == "retried"):
        actor = joblog.get(run.jid).actor
        found[
            int(run.finished_at.timestamp() * 1000) // HOUR,
            actor,
            run.outcome,
            run.error_type or "",
        ] += 1
    return found


def totals_by_hour(joblog):
    total = joblog.core.tables.total
    return Counter(
        {
            (
                int(row.at.timestamp() * 1000) // HOUR,
                row.actor,
                row.outcome,
                row.error_type,
            ): row.count
            for row in total.select().where(total.span == HOUR, total.gone == 0)
        }
    )


@pytest.fixture
def a_day(joblog, job_factory):
    """Insert jobs of a day that ended some time before now, and some failed runs."""
    pick = random.Random(7)
    begin = (now() // DAY - 2) * DAY
    for number in range(150 if tiers.whole() else 60):
        at = begin + pick.randrange(DAY)
        state = pick.choice(["finished", "finished", "dead", "skipped", "retrying"])
        job = job_factory(
            actor=pick.choice(["send", "import"]),
            state=state,
            error_type="KeyError" if state == "dead" else None,
            finished_at=None if state == "retrying" else at,
            duration=pick.randrange(100_000),
            queue_time=pick.choice([None, 10]),
        )
        if state in {"dead", "retrying"}:
            joblog.Failure.create(
                jid=job.jid,
                token=str(number),
                attempt=1,
                outcome="retried",
                error_type="KeyError",
                finished_at=at,
                duration=5,
            )
    return begin


def test_totals_are_what_the_rows_say(joblog, a_day):
    """Every length of span has exactly the counts of the rows, with their times."""
    assert joblog.core.totals.catch_up(now())

    expected = rows_by_hour(joblog)
    assert expected == totals_by_hour(joblog)
    assert sum(expected.values()) == count_of(joblog, DAY)
    day = joblog.core.totals.read(DAY, 0, now())
    durations = Histogram()
    for cell in day:
        if cell.outcome != "retried":
            durations.merge(cell.durations)
    rows = [j.duration for j in joblog.Job.select().where(joblog.Job.finished_at.is_null(False))]
    assert Counter(map(bucket_of, rows)) == durations


def test_a_log_in_which_nothing_ended(joblog, job_factory, asked):
    """Counting takes a few statements, and includes what is committed late."""
    at = now()
    joblog.database.connect(reuse_if_open=True)
    with asked() as texts:
        assert joblog.core.totals.catch_up(at)
    assert len(texts) < 15

    job_factory(finished_at=at - MINUTE)
    assert joblog.core.totals.catch_up(at + MINUTE)
    assert 1 == count_of(joblog)


@pytest.mark.one_database
def test_counting_again(joblog, a_day):
    """Counting again changes nothing, and a late arrival is counted once it is marked."""
    joblog.core.totals.catch_up(now())
    before = totals_by_hour(joblog)
    late = {
        "jid": "late",
        "actor": "send",
        "queue": "default",
        "state": "finished",
        "attempt": 1,
        "finished_at": a_day + 5,
        "created_at": a_day,
        "updated_at": a_day,
        "enqueued_at": a_day,
        "started_at": a_day,
        "duration": 5,
        "token": "t",
    }
    joblog.core.writer.write(Ended(late))

    joblog.core.totals.catch_up(now())

    after = totals_by_hour(joblog)
    assert {(a_day // HOUR, "send", "finished", ""): 1} == after - before
    assert rows_by_hour(joblog) == after
    assert {} == joblog.core.totals.marks.late(9)
    joblog.core.totals.catch_up(now())
    assert after == totals_by_hour(joblog)


@pytest.mark.full
@pytest.mark.one_database
def test_what_is_deleted_stays_counted(joblog, a_day):
    """Deleted jobs stay in the totals, even if something is recounted later."""
    joblog.core.totals.catch_up(now())
    before, whole = (
        totals_by_hour(joblog),
        joblog.stats(since=datetime.now(timezone.utc) - timedelta(days=9)),
    )
    deleted = joblog.prune({"finished": 0, "dead": 0, "skipped": 0}, batch=20)

    assert 0 == joblog.jobs.in_state("finished", "dead", "skipped").count()
    assert deleted["finished"] > 20
    assert before == totals_by_hour(joblog)
    for minute in range(a_day, a_day + DAY, HOUR):
        joblog.core.totals.marks.note_late({minute})
    joblog.core.totals.catch_up(now())
    assert before == totals_by_hour(joblog)
    again = joblog.stats(since=datetime.now(timezone.utc) - timedelta(days=9))
    assert whole.counts == again.counts
    assert [(g.name, g.duration) for g in whole.groups] == [
        (g.name, g.duration) for g in again.groups
    ]


def test_deleting_in_the_minute_that_is_open(joblog, job_factory):
    """A job that is deleted in the minute in which it ended is counted like any other."""
    job_factory(jid="a", finished_at=now())
    assert 1 == joblog.prune({"finished": 0})["finished"]
    job_factory(jid="b", finished_at=now())
    later = now() + 2 * MINUTE
    joblog.core.totals.catch_up(later)

    assert 2 == count_of(joblog, outcome="finished")
    assert ["b"] == [job.jid for job in joblog.jobs]


@pytest.mark.one_database
def test_counting_beside_load(joblog):
    """Jobs that end during counting are all finally in the totals."""
    stop = threading.Event()

    def load(thread):
        number = 0
        while not stop.is_set():
            at = now() - MINUTE * (number % 4)
            row = {
                "jid": f"{thread}-{number}",
                "actor": "send",
                "queue": "default",
                "attempt": 1,
                "state": "finished",
                "finished_at": at,
                "created_at": at,
                "updated_at": at,
                "enqueued_at": at,
                "started_at": at,
                "duration": 5,
                "token": f"{thread}-{number}",
            }
            joblog.core.writer.write(Ended(row))
            number += 1

    threads = [threading.Thread(target=load, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    joblog.database.connect(reuse_if_open=True)
    for _ in range(5):
        joblog.core.totals.catch_up(now() + MINUTE)
    stop.set()
    for thread in threads:
        thread.join()
    joblog.core.totals.catch_up(now() + 2 * MINUTE)

    assert joblog.jobs.count() == count_of(joblog) > 0
    joblog.release()


@pytest.mark.full
@pytest.mark.one_database
def test_counting_that_is_broken_off(joblog, a_day):
    """Interrupted counting continues where it stopped, and old short spans are merged."""
    assert not joblog.core.totals.catch_up(now(), go_on=lambda: False)
    while not joblog.core.totals.catch_up(now(), go_on=iter([True, False, False]).__next__):
        pass
    assert rows_by_hour(joblog) == totals_by_hour(joblog)

    joblog.core.totals.catch_up(now() + 40 * DAY)
    assert {DAY} == {row.span for row in joblog.core.tables.total.select()}
    assert sum(rows_by_hour(joblog).values()) == count_of(joblog, DAY)


def test_levels():
    """Older totals have longer spans, and each begins where a longer one does."""
    at = MIDNIGHT + 12 * HOUR + 34 * MINUTE
    assert [MINUTE, QUARTER, HOUR, DAY] == [
        level_of(at - back, at) for back in (0, 8 * HOUR, 5 * DAY, 17 * DAY)
    ]
    for shorter, longer in pairwise(SPANS):
        edge = min(t for t in range(at - 20 * DAY, at, MINUTE) if level_of(t, at) == shorter)
        assert 0 == edge % longer


def test_histograms():
    """Percentiles are accurate to ten percent, and histograms can be added."""
    pick = random.Random(3)
    times = sorted(int(pick.lognormvariate(6, 2)) for _ in range(5000))
    left, right = (
        Histogram(Counter(map(bucket_of, times[::2]))),
        Histogram(Counter(map(bucket_of, times[1::2]))),
    )
    left.merge({str(bucket): number for bucket, number in right.items()})

    assert 5000 == left.count
    for share in (0.5, 0.95, 0.99):
        exact = times[round(share * 5000) - 1]
        assert exact * 0.9 - 1 <= left.percentile(share) <= exact * 1.1 + 1
    assert None is Histogram().percentile(0.5)
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert [0, 0, 1, len(BOUNDS) - 1] == [bucket_of(t) for t in (-5, 0, 1, 10**12)]
