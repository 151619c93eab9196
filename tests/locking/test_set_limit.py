"""Limits set at run time."""

from __future__ import annotations

import threading
from datetime import timedelta

import dramatiq
import pytest

from dramatiq_joblog import ConfigurationError, Exclusive, LockNotAcquired, Rate


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    return make_broker("stub", "last", joblog=joblog)


def test_more_and_less(joblog, broker, worker, eventually):
    """A limit set at run time overrides the code's, for waiters too."""
    inside, go = [], threading.Event()

    def stay(n):
        inside.append(n)
        go.wait(30)

    work = dramatiq.actor(stay, actor_name="work", exclusive=Exclusive("key", on_conflict="wait"))
    with worker(broker, worker_threads=8):
        for n in range(5):
            work.send(n)
        eventually(lambda: len(inside) == 1 and joblog.jobs.waiting().count() == 4)
        joblog.set_limit("key", 3, who="ada")
        eventually(lambda: len(inside) == 3)
        joblog.set_limit("key", None)
        work.send(5)
        eventually(lambda: joblog.jobs.waiting().count() == 3)
        go.set()
        eventually(lambda: joblog.jobs.finished().count() == 6)

    assert [("limit", "key", "ada"), ("limit", "key", "unknown")] == [
        (action.what, action.key, action.who) for action in reversed(list(joblog.actions))
    ]
    assert "3 (before: as set in the code)" in [action.detail for action in joblog.actions]
    assert [] == joblog.limits


@pytest.mark.parametrize("need", [Exclusive("key"), Rate("key", 5, per=1_000)])
@pytest.mark.parametrize("policy", ["wait", "skip"])
def test_a_pause(joblog, broker, worker, eventually, need, policy):
    """With 0, no job runs, whatever its policy, until the limit is removed."""
    values = {name: getattr(need, name) for name in ("key", "limit", "per") if hasattr(need, name)}
    work = dramatiq.actor(
        lambda: None, actor_name="work", exclusive=type(need)(**values, on_conflict=policy)
    )
    joblog.set_limit("key", 0, who="ada")
    with worker(broker):
        message = work.send()
        state = {"wait": "waiting", "skip": "skipped"}[policy]
        eventually(lambda: joblog.get(message.message_id).state == state)
        if policy == "skip":
            reason = joblog.get(message.message_id).skip_reason
            assert "'key' is paused: ada has set its limit to 0" in reason
        joblog.set_limit("key", None, who="ada")
        message = message if policy == "wait" else work.send()
        eventually(lambda: joblog.get(message.message_id).state == "finished")


def test_a_pause_that_ends(joblog, broker, worker, eventually):
    """A limit ends at the given time, and the code's applies again."""
    work = dramatiq.actor(
        lambda: None, actor_name="work", exclusive=Exclusive("key", on_conflict="wait")
    )
    joblog.set_limit("key", 0, until=joblog.now() + timedelta(seconds=3))
    with worker(broker):
        message = work.send()
        eventually(lambda: joblog.get(message.message_id).state == "waiting")
        assert [("key", 0)] == [(limit.key, limit.limit) for limit in joblog.limits]
        eventually(lambda: joblog.get(message.message_id).state == "finished")
    assert [] == joblog.limits


def test_a_retry_of_a_job_that_holds_it(joblog, broker, worker, eventually):
    """A pause also applies to the retry of a job that keeps the key between its runs."""
    runs = []

    @dramatiq.actor(exclusive="key", min_backoff=2_000, max_backoff=2_100, max_retries=1)
    def work():
        runs.append(1)
        if len(runs) == 1:
            raise ValueError

    with worker(broker):
        message = work.send()
        eventually(lambda: joblog.get(message.message_id).state == "retrying")
        joblog.set_limit("key", 0)
        eventually(lambda: joblog.get(message.message_id).state == "waiting")
        assert [1] == runs
        joblog.set_limit("key", None)
        eventually(lambda: joblog.get(message.message_id).state == "finished")


def test_a_retry_that_is_not_the_first_in_line(joblog, broker, worker, eventually):
    """After a pause, the job with the reserved key runs, even if another has waited longer."""
    runs, go = [], threading.Event()

    @dramatiq.actor(exclusive=Exclusive("key", hold="run"), min_backoff=1_000, max_backoff=1_010)
    def frees():
        runs.append("frees")
        if len(runs) == 1:
            raise ValueError

    @dramatiq.actor(exclusive="key", min_backoff=2_000, max_backoff=2_100)
    def keeps():
        runs.append("keeps")
        if len(runs) == 2:
            go.wait(30)
            raise ValueError

    with worker(broker):
        first = frees.send()
        eventually(lambda: joblog.get(first.message_id).state == "retrying")
        second = keeps.send()
        eventually(lambda: joblog.get(first.message_id).state == "waiting")
        go.set()
        eventually(lambda: joblog.get(second.message_id).state == "retrying")
        joblog.set_limit("key", 0)
        eventually(lambda: joblog.get(second.message_id).state == "waiting")
        joblog.set_limit("key", None)
        eventually(lambda: joblog.jobs.finished().count() == 2)
    assert ["frees", "keeps", "keeps", "frees"] == runs


def test_by_hand(joblog):
    """A limit set at run time applies to a manual lock; the error says who paused its key."""
    joblog.set_limit("key", 0, who="ada")
    with pytest.raises(LockNotAcquired, match="is paused: ada has set its limit to 0"):
        joblog.lock("key").__enter__()
    joblog.set_limit("key", 2, who="ada")
    with joblog.lock("key"), joblog.lock("key"), pytest.raises(LockNotAcquired):
        joblog.lock("key").__enter__()


@pytest.mark.parametrize(
    ("key", "limit", "text"),
    [
        ("", 1, "the key '' is not valid"),
        (7, 1, "the key 7 is not valid"),
        ("key", -1, "the limit -1 of 'key' must be a whole number from 0"),
        ("key", True, "the limit True of 'key' must be"),
        ("key", 1.0, "the limit 1.0 of 'key' must be"),
        ("key", 2**31, "must be a whole number from 0 to 2147483647"),
    ],
)
def test_what_makes_no_sense(joblog, key, limit, text):
    """An invalid key or limit is refused, and nothing is recorded."""
    with pytest.raises(ConfigurationError) as refused:
        joblog.set_limit(key, limit)
    assert text in str(refused.value)
    assert 0 == joblog.actions.count()


def test_a_time_that_is_over(joblog):
    """A limit with an end in the past is refused."""
    with pytest.raises(ConfigurationError, match="which is over"):
        joblog.set_limit("key", 1, until=joblog.now() - timedelta(seconds=1))
    assert [] == joblog.limits
