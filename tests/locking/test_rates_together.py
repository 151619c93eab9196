"""Starts with a rate in one batch: a few statements decide for all."""

from __future__ import annotations

import random
import time
from dataclasses import asdict

import pytest

from dramatiq_joblog import Exclusive, Rate, Unique
from dramatiq_joblog.locking.needs import RATE
from dramatiq_joblog.recording.events import Started
from dramatiq_joblog.recording.tokens import new_token

PER = 60_000


class Starts:
    """Starts of jobs with rates, written to a log like a worker's."""

    def __init__(self, joblog):
        self.joblog = joblog
        self.number = 0

    def start(self, rate, jid=None, **more):
        """Return the start of a job, a new one unless it has a jid."""
        self.number += 1
        now = time.time_ns() // 1_000_000
        row = {"jid": jid or f"job {self.number}", "actor": "work", "queue": "default"}
        row |= dict.fromkeys(("enqueued_at", "started_at", "created_at", "updated_at"), now)
        row |= {"attempt": 1, "state": "started", "process": None, "worker": "here"}
        row |= {"token": new_token(f"delivery {self.number}")}
        unique = more.pop("unique", None)
        row |= more.pop("row", {})
        section = {"all": list(map(asdict, rate))} if isinstance(rate, list) else asdict(rate)
        return Started(row, section=section, unique=unique, **more)

    def write(self, *events):
        """Write starts together; return the jids of those that began."""
        self.answers = self.joblog.core.sections.write(events)
        return [event.jid for event in events if self.answers[event.jid].granted]

    def pass_time(self, milliseconds):
        """Age all starts."""
        lock = self.joblog.Lock
        lock.update(expires_at=lock.expires_at - milliseconds).where(lock.kind == RATE).execute()


@pytest.fixture
def starts(joblog):
    """Return what writes starts, with a connection to the log."""
    with joblog.database.connection_context():
        yield Starts(joblog)


def rate(limit, key="key", **more):
    return Rate(key, limit, per=PER, **more)


def states(joblog, *events):
    return [joblog.get(event.jid).state for event in events]


def test_as_many_statements_for_many(joblog, starts, asked):
    """Many starts of one key take the same statements as one, whether they begin or wait."""
    joblog.database.connect(reuse_if_open=True)

    def count(number, limit):
        events = [starts.start(rate(limit, f"key {number} {limit}")) for _ in range(number)]
        with asked() as texts:
            began = starts.write(*events)
        return len(texts), len(began)

    few = {limit: count(2, limit)[0] for limit in (100, 1)}
    assert [(few[100], 30), (few[1], 1)] == [count(30, 100), count(30, 1)]


def test_no_more_than_the_limit(joblog, starts):
    """Of starts in a batch, as many begin as may, in order, and the others wait."""
    events = [starts.start(rate(3)) for _ in range(5)]
    assert ["job 1", "job 2", "job 3"] == starts.write(*events)
    assert ["started"] * 3 + ["waiting"] * 2 == states(joblog, *events)
    assert ["job 4", "job 5"] == [job.jid for job in joblog.waiters("key")]
    for event in events[3:]:
        answer = starts.answers[event.jid]
        assert "rate 'key' is used up: 3 in 60000 ms" in str(answer.refusal)
        assert answer.delay > 0
        assert answer.found == "waiting"

    starts.pass_time(PER)
    late, again, newcomer = events[4], events[3], starts.start(rate(3))
    late, again = (starts.start(rate(3), event.jid) for event in (late, again))
    # One that waits comes before a newcomer, and all three may now.
    assert {"job 4", "job 5", newcomer.jid} == {*starts.write(newcomer, late, again)}
    assert 0 == joblog.waiters("key").count()
    assert ["waited"] == [f.outcome for f in joblog.get("job 5").failures]


def test_a_newcomer_behind_those_that_wait(joblog, starts):
    """While as many jobs wait as may start, a new job waits behind them."""
    first = [starts.start(rate(2)) for _ in range(4)]
    assert 2 == len(starts.write(*first))
    starts.pass_time(PER)
    newcomer = starts.start(rate(2))
    assert [] == starts.write(newcomer)
    assert "waiting" == joblog.get(newcomer.jid).state
    # Nothing was used up by that.
    assert 2 == len(starts.write(*(starts.start(rate(2), event.jid) for event in first[2:])))


def test_a_newcomer_behind_a_long_line(joblog, starts):
    """However long the wait queue is, a new job begins only if all waiters may begin before it."""
    assert 1 == len(starts.write(*(starts.start(rate(1)) for _ in range(70))))
    starts.pass_time(PER)
    newcomers = [starts.start(rate(71)) for _ in range(4)]
    assert [event.jid for event in newcomers[:2]] == starts.write(*newcomers)
    assert 71 == joblog.waiters("key").count()


@pytest.mark.parametrize(
    ("policy", "state"), [("skip", "skipped"), ("fail", "dead"), ("retry", None)]
)
def test_other_policies(joblog, starts, policy, state):
    """Jobs that do not wait follow their policy, in a batch with others that begin."""
    events = [starts.start(rate(2, on_conflict=policy)) for _ in range(4)]
    assert ["job 1", "job 2"] == starts.write(*events)
    for event in events[2:]:
        answer = starts.answers[event.jid]
        assert "used up" in str(answer.refusal)
        assert state == answer.found
        if state is not None:
            assert state == joblog.get(event.jid).state


def test_each_waits_as_long_as_it_may(joblog, starts):
    """A job is redelivered when its waiting time is over, and is then dead."""
    events = [starts.start(rate(1, wait_for=1_000)) for _ in range(3)]
    starts.write(*events)
    assert all(0 < starts.answers[event.jid].delay <= 1_000 for event in events[1:])
    joblog.Job.update(waiting_since=joblog.Job.waiting_since - 1_000).execute()
    again = [starts.start(rate(1, wait_for=1_000), event.jid) for event in events[1:]]
    assert [] == starts.write(*again)
    assert ["dead", "dead"] == states(joblog, *again)
    assert {"wait_timeout"} == {joblog.get(event.jid).dead_reason for event in again}


@pytest.mark.parametrize("most", [0, 2])
def test_a_limit_that_is_set(joblog, starts, most):
    """A limit set at run time applies to the whole batch, until it is removed."""
    joblog.set_limit("key", most)
    events = [starts.start(rate(4)) for _ in range(5)]
    assert most == len(starts.write(*events))
    joblog.set_limit("key", None)
    again = [starts.start(rate(4), event.jid) for event in events[most:]]
    assert 4 - most == len(starts.write(*again))


def test_what_is_left_to_others(joblog, starts):
    """Two limits on one key, an additional need, and a unique job all work."""
    unique = asdict(Unique("unique", until="started")) | {"key": "unique"}
    events = [
        starts.start(rate(5)),
        starts.start(rate(4)),
        starts.start([rate(5), Exclusive("section")]),
        starts.start(rate(5), unique=unique),
        starts.start(rate(4)),
    ]
    assert ["job 1", "job 3", "job 4"] == sorted(set(starts.write(*events)) - {"job 2", "job 5"})
    # Four of five may be by the smaller limit.
    assert 1 == sum(starts.answers[event.jid].granted for event in (events[1], events[4]))


def test_what_ended_before(joblog, starts):
    """A start whose job has ended by an earlier run of its delivery uses nothing of the rate."""
    first = starts.start(rate(2))
    starts.write(first)
    joblog.Job.update(state="finished", finished_at=1).execute()
    repeated = starts.start(rate(2), first.jid, row={"token": new_token("delivery 1")})
    older = starts.start(rate(2), first.jid, redelivered=True)
    for event in (repeated, older):
        assert [] == starts.write(event)
        assert "finished" == starts.answers[event.jid].found
    assert 1 == len(starts.write(starts.start(rate(2))))


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(3))
def test_against_a_model(joblog, starts, seed):
    """However starts are batched, no more begin than may, and waiters are served in order."""
    dice = random.Random(seed)
    clock, begun, waiting = 0, [], []
    for _ in range(25):
        passed = dice.choice([0, PER // 4, PER // 2])
        clock += passed
        starts.pass_time(passed)
        come = dice.sample(waiting, min(len(waiting), dice.randrange(4)))
        events = [starts.start(rate(3), jid) for jid in come]
        events += [starts.start(rate(3)) for _ in range(dice.randrange(1, 5))]
        dice.shuffle(events)
        line = [job.jid for job in joblog.waiters("key")]
        assert waiting == line
        began = starts.write(*events)
        begun += [clock] * len(began)
        room = 3 - sum(at > clock - PER for at in begun[: len(begun) - len(began)])
        assert len(began) <= room
        # One that waits comes in if its place is one of those that are free; others behind all.
        for jid in began:
            assert (line.index(jid) if jid in line else len(line)) < room
        for place, jid in enumerate(line[:room]):
            assert jid in began or jid not in come, place
        waiting = [job.jid for job in joblog.waiters("key")]
    assert begun == sorted(begun)
    for first in begun:
        assert sum(first <= at < first + PER for at in begun) <= 3
