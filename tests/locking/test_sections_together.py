"""Starts in sections in one batch: each gets all of its keys, or none."""

from __future__ import annotations

import time
from dataclasses import asdict

import pytest

from dramatiq_joblog import Exclusive
from dramatiq_joblog.recording.events import Ended, Started
from dramatiq_joblog.recording.tokens import new_token


class Starts:
    """Starts of jobs in sections, written to a log like a worker's."""

    def __init__(self, joblog):
        self.joblog = joblog
        self.number = 0

    def start(self, *keys, jid=None, **more):
        """Return the start of a job that needs *keys*, a new one unless it has a jid."""
        self.number += 1
        now = time.time_ns() // 1_000_000
        row = {"jid": jid or f"job {self.number}", "actor": "work", "queue": "default"}
        row |= dict.fromkeys(("enqueued_at", "started_at", "created_at", "updated_at"), now)
        row |= {"attempt": 1, "state": "started", "process": None, "worker": "here"}
        row |= {"token": new_token(f"delivery {self.number}")}
        more = {"on_conflict": "wait"} | more
        return Started(row, section={"all": [asdict(Exclusive(k, **more)) for k in keys]})

    def write(self, *events):
        """Write starts together; return the jids of those that began."""
        answers = self.joblog.core.sections.write(events)
        self.leases = {jid: answer.lease for jid, answer in answers.items()}
        return [event.jid for event in events if answers[event.jid].granted]

    def end(self, event):
        """Write the end of a run."""
        now = time.time_ns() // 1_000_000
        ended = event.row | {"state": "finished", "finished_at": now}
        self.joblog.core.sections.write([Ended(ended, section=event.section)])


@pytest.fixture
def starts(joblog):
    """Return what writes starts, with a connection to the log."""
    with joblog.database.connection_context():
        yield Starts(joblog)


def held(joblog):
    return {(lock.key, lock.owner) for lock in joblog.locks}


@pytest.mark.parametrize("keys", [1, 3])
def test_as_many_statements_for_many(joblog, starts, asked, keys):
    """Jobs in separate sections take as many statements together as one alone."""
    joblog.database.connect(reuse_if_open=True)

    def count(number):
        many = [[f"{number} {n} {key}" for key in range(keys)] for n in range(number)]
        events = [starts.start(*mine) for mine in many]
        with asked() as texts:
            assert number == len(starts.write(*events))
        fences = [{*starts.leases[event.jid].fences} for event in events]
        assert [{*mine} for mine in many] == fences
        return len(texts)

    assert count(1) == count(20)


def test_two_with_a_key_in_common(joblog, starts):
    """Of two jobs with a common key, one begins, and the other holds nothing."""
    events = [starts.start("a", "b"), starts.start("b", "c"), starts.start("d", "c")]
    began = starts.write(*events)
    assert ["job 1", "job 3"] == began
    assert {("a", "job 1"), ("b", "job 1"), ("c", "job 3"), ("d", "job 3")} == held(joblog)
    assert "waiting" == joblog.get("job 2").state

    starts.end(events[0])
    starts.end(events[2])
    assert ["job 2"] == starts.write(starts.start("b", "c", jid="job 2"))


def test_one_key_is_taken(joblog, starts):
    """A job that finds the last of its keys held releases the others for the next job."""
    with joblog.lock("c"):
        assert [] == starts.write(starts.start("a", "b", "c", on_conflict="skip"))
        assert {"c"} == {key for key, _ in held(joblog)}
        assert ["job 2"] == starts.write(starts.start("a", "b"))
    assert "skipped" == joblog.get("job 1").state


@pytest.mark.parametrize("how", ["cancelled", "dropped"])
def test_a_waiter_that_never_runs(joblog, starts, how):
    """A job that ends while it waits for several keys leaves none of them reserved."""
    with joblog.lock("b"):
        event = starts.start("a", "b")
        assert [] == starts.write(event)
        reserved = joblog.Lock.select().where(joblog.Lock.kind == "wait")
        assert [("a", event.jid)] == [(lock.key, lock.owner) for lock in reserved.clone()]
        if how == "cancelled":
            joblog.cancel(event.jid)
        else:
            ended = {**event.row, "state": "dead", "dead_reason": "age_limit"}
            ended |= {"started_at": None, "finished_at": event.row["created_at"]}
            starts.joblog.core.sections.write([Ended(ended, section=event.section)])
        assert "dead" == joblog.get(event.jid).state
        assert [] == list(reserved.clone())


def test_who_is_next(joblog, starts):
    """Of a batch, the first of the wait queue begins, whatever the order."""
    first = starts.start("key")
    assert ["job 1"] == starts.write(first)
    for _ in range(3):
        assert [] == starts.write(starts.start("key"))
    starts.end(first)
    line = [job.jid for job in joblog.waiters("key")]
    assert ["job 2", "job 3", "job 4"] == line
    newcomer = starts.start("key")
    assert [] == starts.write(newcomer, starts.start("key", jid="job 4"))
    again = [starts.start("key", jid=jid) for jid in reversed(line)]
    assert ["job 2"] == starts.write(*again)
    assert ["waited"] == [failure.outcome for failure in joblog.get("job 2").failures]
    assert ["job 3", "job 4", newcomer.jid] == [job.jid for job in joblog.waiters("key")]


@pytest.mark.parametrize("begun", [False, True])
def test_of_the_same_millisecond(joblog, starts, begun):
    """Of jobs that began to wait in the same millisecond, the older row goes first."""
    first = starts.start("key")
    starts.write(first)
    for _ in range(3):
        starts.write(starts.start("key"))
    starts.end(first)
    waits = joblog.Job.state == "waiting"
    since = joblog.get("job 2").waiting_since
    started_at = since if begun else None
    joblog.Job.update(waiting_since=since, started_at=started_at).where(waits).execute()
    for jid in ("job 4", "job 3"):
        assert [] == starts.write(starts.start("key", jid=jid))
    assert ["job 2"] == starts.write(starts.start("key", jid="job 2"))


def test_who_has_begun_before_comes_first(joblog, starts):
    """A waiting job that has already begun is ahead of the one that has waited longest."""
    first = starts.start("key")
    starts.write(first)
    for _ in range(2):
        starts.write(starts.start("key"))
    starts.end(first)
    joblog.Job.update(started_at=1).where(joblog.Job.jid == "job 3").execute()
    assert [] == starts.write(starts.start("key", jid="job 2"))
    assert ["job 3"] == starts.write(starts.start("key", jid="job 3"))


@pytest.mark.parametrize("waits", [True, False])
def test_a_paused_key(joblog, starts, waits):
    """No job begins with a paused key, whether it already waits or not."""
    if waits:
        with joblog.lock("key"):
            starts.write(starts.start("key"))
    joblog.set_limit("key", 0)
    assert [] == starts.write(starts.start("key", jid="job 1"))
    joblog.set_limit("key", None)
    assert ["job 1"] == starts.write(starts.start("key", jid="job 1"))


def test_held_by_a_higher_limit(joblog, starts):
    """A key held in a second slot counts as held for exclusive jobs."""
    first, second = (starts.start("key", limit=2) for _ in range(2))
    assert 2 == len(starts.write(first, second))
    starts.end(first)
    assert [] == starts.write(starts.start("key"))
    assert [] == starts.write(starts.start("other", "key"))
    starts.end(second)
    assert ["job 3"] == starts.write(starts.start("key", jid="job 3"))


def test_a_repetition_of_what_ended(joblog, starts):
    """A waiting job with an earlier run of the same delivery does not begin again."""
    first = starts.start("key")
    starts.write(first)
    starts.end(first)
    with joblog.lock("key"):
        # It was put back on purpose, and waits.
        assert [] == starts.write(starts.start("key", jid="job 1"))
    assert "waiting" == joblog.get("job 1").state
    repeated = starts.start("key", jid="job 1")
    repeated.row["token"] = new_token("delivery 1")
    assert [] == starts.write(repeated)
    assert ["job 1"] == starts.write(starts.start("key", jid="job 1"))
