"""Retention: what is deleted, by which process, and in which batches."""

from __future__ import annotations

import time

import pytest

from dramatiq_joblog import ConfigurationError, JobLog, JobLogError
from dramatiq_joblog.states import FINAL, State

HOUR = 3_600_000


def ago(milliseconds):
    return int(time.time() * 1000) - milliseconds


@pytest.fixture
def old_and_new(joblog, job_factory):
    """Insert an old and a new job in each state, with failures and lines."""
    for state in State:
        for age in (2, 20):
            final = state in FINAL
            jid = f"{state}-{age}"
            job_factory(
                jid=jid,
                state=state,
                created_at=ago(age * HOUR),
                updated_at=ago(age * HOUR),
                finished_at=ago(age * HOUR) if final else None,
            )
            joblog.Failure.create(
                jid=jid, token="t", attempt=1, outcome="retried", finished_at=ago(age * HOUR)
            )
            joblog.Line.create(
                jid=jid, token="t", attempt=1, number=1, time=0, level="INFO", logger="x", text="y"
            )


def jids(model):
    return {row.jid for row in model.select(model.jid)}


def test_old_jobs_go(joblog, old_and_new):
    """Only final jobs that are old enough are deleted, with their failures and lines."""
    keep = {"finished": 10 * HOUR, "dead": HOUR, "skipped": None}
    gone = {"finished-20", "dead-2", "dead-20"}
    before = jids(joblog.Job)
    assert {"finished": 1, "dead": 2} == joblog.prune(keep, dry_run=True)
    assert before == jids(joblog.Job)

    told = []
    assert {"finished": 1, "dead": 2, "failures": 3, "lines": 3} == joblog.prune(
        keep, progress=told.append
    )

    assert before - gone == jids(joblog.Job) == jids(joblog.Failure) == jids(joblog.Line)
    assert 3 == max(part["lines"] for part in told)
    assert {} == joblog.prune(keep)


def test_a_job_that_is_not_final_never_goes(joblog, job_factory):
    """The deleting statement itself skips jobs that are not final, whatever was read before."""
    retention = joblog.core.chores.retention.but({"finished": 0})
    [rule] = retention.rules(ago(0))
    again = job_factory(state="started", finished_at=ago(HOUR))
    young = job_factory(finished_at=ago(-HOUR))
    old = job_factory(finished_at=ago(HOUR))

    assert 1 == retention._delete(rule, [again.id, young.id, old.id])
    assert {again.jid, young.jid} == jids(joblog.Job)


def test_a_job_goes_once_it_is_as_old_as_it_is_kept(joblog, job_factory):
    """With a time of 0, a job that ended in the current millisecond is deleted."""
    job_factory(jid="a", finished_at=1_000)
    job_factory(jid="b", finished_at=1_001)
    retention = joblog.core.chores.retention.but({"finished": 500})
    (deleted,) = retention.prune(1_500, 10)

    assert {"finished": 1} == deleted
    assert ["b"] == [job.jid for job in joblog.jobs]


@pytest.mark.one_database
def test_without_a_time_nothing_goes(joblog, old_and_new):
    """By default a log keeps everything, and so do states that are not named."""
    assert {} == joblog.prune()
    assert 18 == joblog.jobs.count()


@pytest.mark.one_database
def test_batches(joblog, job_factory):
    """Jobs are deleted in batches of the given size, oldest first."""
    for number in range(7):
        job_factory(jid=str(number), finished_at=ago(HOUR * (20 - number // 2)))
    left = []
    joblog.prune({"finished": 0}, batch=3, progress=lambda _: left.append(sorted(jids(joblog.Job))))

    assert [["3", "4", "5", "6"], ["6"], []] == left


@pytest.mark.one_database
def test_a_backlog_does_not_hold_up_other_states(joblog, job_factory):
    """Batches of each state alternate, however many old jobs one of them has."""
    for number in range(4):
        job_factory(jid=f"finished {number}", finished_at=ago(HOUR * (20 - number)))
    job_factory(jid="dead", state="dead", finished_at=ago(HOUR))
    left = []
    keep = {"finished": 0, "dead": 0}
    joblog.prune(keep, batch=2, progress=lambda _: left.append(sorted(jids(joblog.Job))))

    assert [["dead", "finished 2", "finished 3"], ["finished 2", "finished 3"], []] == left


@pytest.mark.one_database
def test_job_types_with_times_of_their_own(database_url):
    """Job types may be kept forever, longer or shorter than the others."""
    log = JobLog(
        database_url,
        keep={"finished": 10 * HOUR, "dead": 10 * HOUR},
        keep_types={"audit": None, "ping": HOUR, "import": {"dead": 30 * HOUR}},
    )
    log.create_tables()
    for job_type in (None, "audit", "ping", "import", "mail"):
        for state in ("finished", "dead"):
            for age in (2, 20):
                log.Job.create(
                    jid=f"{job_type} {state} {age}",
                    actor="a",
                    queue="q",
                    job_type=job_type,
                    state=state,
                    attempt=1,
                    created_at=0,
                    updated_at=0,
                    finished_at=ago(age * HOUR),
                )
    log.prune()

    left = {tuple(jid.split()) for jid in jids(log.Job)}
    assert {age for job_type, _, age in left if job_type == "audit"} == {"2", "20"}
    assert set() == {row for row in left if row[0] == "ping"}
    assert {("finished", "2"), ("dead", "2"), ("dead", "20")} == {
        row[1:] for row in left if row[0] == "import"
    }
    assert {"2"} == {age for job_type, _, age in left if job_type in {"None", "mail"}}
    log.close()


def test_rows_that_nobody_needs(joblog):
    """Workers gone for a week and expired unique keys are deleted; sections stay."""
    old = ago(8 * 24 * HOUR)
    for name, seen, swept in (("gone", old, old), ("silent", old, None), ("new", ago(0), ago(0))):
        joblog.Worker.create(
            process=name,
            host="h",
            pid=1,
            threads=1,
            timeout=1,
            started_at=old,
            heartbeat_at=seen,
            swept_at=swept,
        )
    for kind, key, owner, until in (
        ("unique", "free", None, None),
        ("unique", "over", "j", old),
        ("unique", "held", "j", ago(-HOUR)),
        ("section", "free", None, None),
        ("section", "over", "j", old),
    ):
        joblog.Lock.create(
            kind=kind, key=key, slot=0, owner=owner, fence=7, ttl=1, expires_at=until
        )

    assert {"workers": 1, "keys": 2} == joblog.prune()
    assert {"silent", "new"} == {w.process for w in joblog.workers}
    lock = joblog.Lock
    # The turn that prunes is a row too.
    assert {("unique", "held"), ("section", "free"), ("section", "over")} == {
        (row.kind, row.key) for row in lock.select().where(lock.kind != "chore")
    }


def test_one_process_at_a_time(joblog, database_url, monkeypatch):
    """While one process prunes, another waits, and then raises."""
    monkeypatch.setattr("dramatiq_joblog.admin.maintenance._PATIENCE", 300)
    other = JobLog(database_url)
    with other.core.chores._turn() as renew:
        assert renew()
        with pytest.raises(JobLogError, match="another process prunes this log now"):
            joblog.prune()
    assert {} == joblog.prune()
    other.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": {"started": 5}}, "keep names 'started': only finished, dead and skipped"),
        ({"keep": {"dead": -1}}, r"keep\['dead'\]=-1 must be milliseconds, or None"),
        ({"keep": {"dead": "7d"}}, r"keep\['dead'\]='7d' must be milliseconds"),
        ({"keep_types": {"a": {"lost": 1}}}, r"keep_types\['a'\] names 'lost'"),
    ],
)
def test_times_that_make_no_sense(sqlite_url, options, says):
    """Invalid times are refused when the log is created."""
    with pytest.raises(ConfigurationError, match=says):
        JobLog(sqlite_url, **options)
