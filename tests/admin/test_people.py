"""Actions of users on jobs and keys, and the audit log."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from dramatiq_joblog import JobLogError, LockNotAcquired
from dramatiq_joblog.admin import audit
from dramatiq_joblog.payload.values import host_now


def test_a_record(joblog):
    """Actions are recorded with their author and subject, newest first."""
    joblog.record("requeue", who="ada", jid="j", detail="as \x00 k")
    joblog.record("unlock", who="ben", key="s:1")

    unlock, requeue = joblog.actions
    assert ("unlock", "ben", "s:1", None) == (unlock.what, unlock.who, unlock.key, unlock.jid)
    assert ("requeue", "ada", "j", "as \ufffd k") == (
        *(requeue.what, requeue.who, requeue.jid, requeue.detail),
    )
    age = datetime.now(timezone.utc) - requeue.at
    assert abs(age) < timedelta(minutes=5)


def test_dismissed_jobs(joblog, job_factory):
    """Dismissed jobs are left out of the dead, and each dismissal is recorded once."""
    for jid, state in {"a": "dead", "b": "dead", "c": "finished", "d": "retrying"}.items():
        job_factory(jid=jid, state=state)

    assert ["a"] == joblog.dismiss("a", "c", "d", "unknown", who="ada")
    assert [] == joblog.dismiss("a", who="ben")
    assert ["b"] == [job.jid for job in joblog.jobs.dead().undismissed()]
    assert ["a"] == [job.jid for job in joblog.jobs.dismissed()]
    assert [("dismiss", "ada", "a")] == [(a.what, a.who, a.jid) for a in joblog.actions]


def test_dead_jobs_in_groups(joblog, job_factory):
    """Dead jobs are counted by error and actor in several windows, with the newest job."""
    now = datetime.now(timezone.utc)
    for jid, error, hours in (
        ("old", "KeyError", 400),
        ("a", "KeyError", 50),
        ("b", "KeyError", 2),
        ("c", None, 1.5),
    ):
        job_factory(
            jid=jid,
            state="dead",
            error_type=error,
            error_message=error and f"of {jid}",
            finished_at=now - timedelta(hours=hours),
        )
    job_factory(jid="gone", state="dead", finished_at=now)
    joblog.dismiss("gone", who="ada")

    hour = 3_600_000
    unknown, key = joblog.dead_groups()
    assert (None, "work", "c", None) == (
        *(unknown.error_type, unknown.actor, unknown.jid, unknown.message),
    )
    assert ("KeyError", "b", "of b") == (key.error_type, key.jid, key.message)
    assert {1 * hour: 0, 3 * hour: 1, 24 * hour: 1, 72 * hour: 2, 168 * hour: 2} == key.counts
    assert joblog.get("b").finished_at == key.last_at

    series = audit.dead_series(joblog.Job, 72 * hour, 24 * hour, host_now())
    assert {(None, "work"): 1, ("KeyError", "work"): 2} == {k: sum(n) for k, n in series.items()}
    first, last = (step for step, number in enumerate(series["KeyError", "work"]) if number)
    assert 2 == last - first


def test_unlocking(joblog):
    """A section is unlocked if the given holder still holds it, with a recorded reason."""
    with joblog.lock("s:1") as lease:
        with pytest.raises(LockNotAcquired, match="is not held with fence 99 in slot 0"):
            joblog.unlock("s:1", fence=99, reason="stuck", who="ada")
        with pytest.raises(JobLogError, match="give why it is freed"):
            joblog.unlock("s:1", fence=lease.fence, reason=" ", who="ada")

        was = joblog.unlock("s:1", fence=lease.fence, reason="stuck", who="ada")

        assert lease.fence == was.fence
        assert not joblog.locks.exists()
        with joblog.lock("s:1") as next_one:
            assert next_one.fence == lease.fence + 1
            with pytest.raises(LockNotAcquired):
                joblog.unlock("s:1", fence=lease.fence, reason="again", who="ada")
            assert 1 == joblog.locks.count()
    [action] = joblog.actions
    assert ("unlock", "ada", "s:1", was.owner) == (
        *(action.what, action.who, action.key, action.jid),
    )
    assert action.detail.startswith(f"stuck (slot 0, fence {lease.fence}, held by ")
    joblog.release()
