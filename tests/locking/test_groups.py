"""Groups and pipelines with members that are duplicates, or skipped."""

from __future__ import annotations

import dramatiq
import pytest
from dramatiq.middleware import GroupCallbacks, default_middleware
from dramatiq.rate_limits.backends import StubBackend as LimitsBackend
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from dramatiq_joblog import DuplicateJob, Exclusive


@pytest.fixture(params=["first", "last"])
def broker(request, joblog, make_broker):
    """Return a broker that counts groups and keeps results, with the log before and behind."""
    stack = [*(m() for m in default_middleware), GroupCallbacks(LimitsBackend())]
    stack.append(Results(backend=StubBackend(), store_results=True))
    broker = make_broker("stub", request.param, joblog=joblog, middleware=stack)
    broker.fail_fast_default = False
    return broker


def make(broker):
    done = []

    @dramatiq.actor(unique="{name}")
    def unique(name):
        done.append(name)
        return name

    @dramatiq.actor
    def plain(name, _result=None):
        done.append(name)
        return name

    @dramatiq.actor
    def ends():
        done.append("all")

    return unique, plain, ends, done


@pytest.mark.parametrize("with_callback", [True, False])
def test_a_duplicate_in_a_group(joblog, broker, worker, eventually, with_callback):
    """A duplicate is skipped, names the holder, counts as done, and blocks no other."""
    unique, plain, ends, done = make(broker)
    there = unique.send_with_options(args=("a",), delay=60_000)
    members = dramatiq.group([plain.message("x"), unique.message("a"), plain.message("y")])
    if with_callback:
        members.add_completion_callback(ends.message())
    with worker(broker):
        members.run()
        eventually(lambda: joblog.jobs.finished().count() == 2 + with_callback)
        eventually(joblog.jobs.skipped().exists)

    assert sorted(["x", "y"] + ["all"] * with_callback) == sorted(done)
    assert f"held by job {there.message_id}" in joblog.jobs.skipped().get().skip_reason


def test_a_group_of_duplicates_only(joblog, broker, worker, eventually):
    """A group's callback runs even if all members are duplicates, also of each other."""
    unique, _, ends, done = make(broker)
    unique.send_with_options(args=("a",), delay=60_000)
    members = dramatiq.group([unique.message("a"), unique.message("b"), unique.message("b")])
    members.add_completion_callback(ends.message())
    members.run()
    with worker(broker):
        eventually(lambda: "all" in done)
    assert ["b", "all"] == done


@pytest.mark.parametrize("place", [0, 1])
def test_a_duplicate_in_a_pipeline_of_a_group(joblog, broker, worker, eventually, place):
    """A pipeline that ends at a duplicate counts as done in its group."""
    unique, plain, ends, done = make(broker)
    unique.send_with_options(args=("a",), delay=60_000)
    steps = [plain.message("x"), plain.message("y"), plain.message("z")]
    steps[place] = unique.message("a")
    if place:
        steps[place] = unique.message_with_options(args=("a",), pipe_ignore=True)
    members = dramatiq.group([dramatiq.pipeline(steps), plain.message("w")])
    members.add_completion_callback(ends.message())
    with worker(broker):
        members.run()
        eventually(lambda: "all" in done)
    assert sorted(["w", "all"] + ["x"] * place) == sorted(done)


def test_a_group_that_is_run_again(joblog, broker, worker, eventually):
    """A member that was a duplicate runs the next time, if its key is free then."""
    unique, plain, _, done = make(broker)
    first = unique.send("a")
    members = dramatiq.group([unique.message("a"), plain.message("x")])
    with worker(broker):
        eventually(lambda: joblog.get(first.message_id).state == "finished")
        blocker = unique.send_with_options(args=("a",), delay=60_000)
        members.run()
        eventually(joblog.jobs.skipped().exists)
        joblog.cancel(blocker.message_id)
        members.run()
        eventually(lambda: done.count("a") == 2)


def test_results_of_a_group_with_a_duplicate(joblog, broker, worker):
    """The results of a group have None where a member was a duplicate."""
    unique, plain, _, _ = make(broker)
    unique.send_with_options(args=("a",), delay=60_000)
    members = dramatiq.group([plain.message("x"), unique.message("a")])
    with worker(broker):
        members.run()
        assert ["x", None] == list(members.get_results(block=True, timeout=10_000))


def test_a_pipeline_alone(joblog, broker):
    """A pipeline whose first message is a duplicate is not sent, and its sender gets an error."""
    unique, plain, _, _ = make(broker)
    unique.send("a")
    with pytest.raises(DuplicateJob):
        (unique.message("a") | plain.message("x")).run()
    assert 1 == broker.queues["default"].qsize()


def test_a_waiter_in_a_group(joblog, broker, worker, eventually):
    """A member that waits for its section counts once it has run."""
    _, _, ends, done = make(broker)
    waits = dramatiq.actor(
        lambda: done.append("waits"),
        actor_name="waits",
        exclusive=Exclusive("key", on_conflict="wait"),
    )
    members = dramatiq.group([waits.message()])
    members.add_completion_callback(ends.message())
    lock = joblog.lock("key")
    lock.__enter__()
    with worker(broker):
        members.run()
        eventually(joblog.jobs.waiting().exists)
        assert [] == done
        lock.__exit__(None, None, None)
        eventually(lambda: "all" in done)
    assert ["waits", "all"] == done
