"""Many jobs cancelled at once: in batches, each as one by itself, and with what goes wrong."""

from __future__ import annotations

import itertools

import pytest
from playhouse.test_utils import count_queries

from dramatiq_joblog import CancelInterruptedError
from dramatiq_joblog.admin import cancel
from dramatiq_joblog.locking.leases import Claim
from dramatiq_joblog.locking.needs import SECTION, UNIQUE

NOW = 1_800_000_000_000

#: Jobs of each kind that can be given up: the columns of their rows.
KINDS = {
    "enqueued": {"started_at": None, "finished_at": None},
    "delayed": {"eta": NOW, "started_at": None, "finished_at": None},
    "waiting": {"waiting_since": NOW, "section": "s", "finished_at": None},
    "retrying": {"eta": NOW, "section": "s", "token": "t", "finished_at": None},
    "lost": {"token": "t", "worker": "w", "process": "gone", "finished_at": None},
    "started": {"token": "t", "process": "gone", "finished_at": None},
}


@pytest.fixture
def small_batches(monkeypatch):
    """Set the batch size to two jobs."""
    monkeypatch.setattr(cancel, "BATCH", 2)


def make(joblog, job_factory, jid, state):
    """Insert a job of a kind that holds a section and a unique key."""
    locks = joblog.core.locks
    for kind in (SECTION, UNIQUE):
        token = KINDS[state].get("token") if kind == SECTION else None
        claim = Claim(kind, f"{kind}:{jid}", jid, token, 60_000)
        joblog.core.writer.call(lambda claim=claim: locks.take(claim))
    return job_factory(jid=jid, state=state, **KINDS[state])


def told(joblog, jid):
    """Return what the log has about a job, except for its ids and the time of its end."""
    job = joblog.get(jid)
    row = job.as_dict()
    for name in ("jid", "finished_at", "created_at", "updated_at", "enqueued_at", "started_at"):
        row.pop(name, None)
    runs = [(str(run.outcome), run.token, run.attempt) for run in job.failures]
    held = joblog.Lock.select().where(joblog.Lock.owner == jid).count()
    deeds = [(deed.what, deed.who, deed.detail) for deed in joblog.actions if deed.jid == jid]
    return row, runs, held, deeds


@pytest.mark.every_database
def test_each_is_given_up_as_by_itself(joblog, job_factory):
    """A job of a batch has the same row, runs, keys and audit record as after `cancel`."""
    for state in KINDS:
        make(joblog, job_factory, f"one {state}", state)
        make(joblog, job_factory, f"all {state}", state)

    for state in KINDS:
        joblog.cancel(f"one {state}", who="ada", reason="not wanted")
    done = cancel.Cancelling(joblog.core).named(
        [f"all {s}" for s in KINDS], who="ada", reason="not wanted"
    )

    assert {f"all {state}" for state in KINDS} == {*done.cancelled}
    assert {} == done.refused
    for state in KINDS:
        alone, among = told(joblog, f"one {state}"), told(joblog, f"all {state}")
        assert alone == among
        assert ("dead", "cancelled", 0) == (among[0]["state"], among[0]["dead_reason"], among[2])
        assert [("cancel", "ada")] == [deed[:2] for deed in among[3]]


def test_a_batch_costs_as_many_statements_as_one_job(joblog, job_factory):
    """The number of statements grows with the number of batches, not of jobs."""
    joblog.release()

    def spent(jobs):
        for number in range(jobs):
            job_factory(jid=f"{jobs}-{number}", state="enqueued", finished_at=None)
        with count_queries() as counted:
            joblog.cancel_all(joblog.jobs)
        return counted.count

    assert spent(1) == spent(60)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_one_that_the_database_refuses_does_not_keep_the_others(joblog, job_factory):
    """A row that cannot be changed is refused with the database's error; others are cancelled."""
    for jid in "abc":
        job_factory(jid=jid, state="lost", finished_at=None)
    joblog.database.execute_sql(
        "CREATE TRIGGER no BEFORE UPDATE ON joblog_job WHEN old.jid = 'b' "
        "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    )

    done = joblog.cancel_all(joblog.jobs, who="ada")

    assert (["a", "c"], {"b": "not this one"}) == (done.cancelled, done.refused)
    assert ["c", "a"] == [action.jid for action in joblog.actions]


def test_what_changes_meanwhile_is_refused(joblog, job_factory, small_batches):
    """Jobs that begin, end or are pruned before their batch are refused, each with its reason."""
    for jid in "abcdef":
        job_factory(jid=jid, state="enqueued", finished_at=None)
    job = joblog.Job

    def meddle(done, _total):
        if done == 1:
            job.update(state="started", process=None).where(job.jid == "c").execute()
            job.update(state="finished").where(job.jid == "d").execute()
            job.delete().where(job.jid == "e").execute()

    done = joblog.cancel_all(joblog.jobs, progress=meddle)

    assert ["a", "b", "f"] == done.cancelled
    assert {"c", "d", "e"} == {*done.refused}
    assert "it is started" in done.refused["c"]
    assert "it is finished already" == done.refused["d"]
    assert "the log has no job 'e'" == done.refused["e"]


def rename(joblog, old, new):
    with joblog.database.connection_context():
        joblog.database.execute_sql(f"ALTER TABLE {old} RENAME TO {new}")


@pytest.mark.parametrize("named", [False, True], ids=["of a query", "named"])
def test_a_database_that_fails_midway(joblog, job_factory, small_batches, monkeypatch, named):
    """The error has what was done and how many are left; repeating the call does the rest."""
    monkeypatch.setattr(cancel, "_NAMED", 2)
    jids = list("abcde")
    for jid in jids:
        job_factory(jid=jid, state="lost", finished_at=None)
    joblog.release()
    calls, cancelling = itertools.count(), cancel.Cancelling(joblog.core)

    def fail(*_numbers):
        if next(calls) == (1 if not named else 0):
            rename(joblog, "joblog_lock", "away")

    def give_up(progress=None):
        if named:
            return cancelling.named(jids, who="ada", reason=None, progress=progress)
        return joblog.cancel_all(joblog.jobs, who="ada", progress=progress)

    with pytest.raises(CancelInterruptedError, match=r"2 jobs are cancelled.*3 are left") as broken:
        give_up(fail)

    assert (["a", "b"], {}, 3) == (broken.value.cancelled, broken.value.refused, broken.value.left)
    assert ["lost"] * 3 == [joblog.get(jid).state for jid in "cde"]
    rename(joblog, "away", "joblog_lock")
    assert ["c", "d", "e"] == sorted({*give_up().cancelled} - {"a", "b"})
    assert jids == sorted(action.jid for action in joblog.actions)


def test_progress_is_of_all(joblog, job_factory, small_batches):
    """Progress counts each job once its batch is done, out of the number found."""
    for jid in "abc":
        job_factory(jid=jid, state="lost", finished_at=None)
    seen = []

    def note(done, total):
        seen.append((done, total, joblog.jobs.dead().count()))

    joblog.cancel_all(joblog.jobs, progress=note)

    assert [(1, 3, 2), (2, 3, 2), (3, 3, 3)] == seen
