"""Families of jobs."""

from __future__ import annotations

import threading

import dramatiq
import pytest
from dramatiq.middleware import AsyncIO, GroupCallbacks, default_middleware
from dramatiq.rate_limits.backends import StubBackend

from dramatiq_joblog import current_job

#: What differs between databases is tried on each; the rest, that is ours alone, on one.
on_each_database = pytest.mark.parametrize(
    "database_url", ["sqlite", "postgres", "mysql"], indirect=True
)


@pytest.fixture
def database_url(request, database_of):
    """Return the URL of an empty database: SQLite, unless a test requests others."""
    return database_of(getattr(request, "param", "sqlite"))


@pytest.fixture(params=["first", "last"])
def broker(request, joblog, make_broker):
    """Return a broker with the log at either end of its middleware."""
    stack = [*(m() for m in default_middleware), AsyncIO(), GroupCallbacks(StubBackend())]
    return make_broker("stub", request.param, joblog=joblog, middleware=stack)


@pytest.fixture
def run(broker, worker):
    """Return a function that runs all messages sent."""

    def until_done():
        with worker(broker, worker_threads=2):
            broker.join("default", fail_fast=False)

    return until_done


@pytest.fixture
def leaf(broker):
    """Return an actor that sends nothing."""
    return dramatiq.actor(lambda *_: None, actor_name="leaf")


def names(jobs):
    """Return the actors of jobs."""
    return [job.actor for job in jobs]


def test_a_job_that_nobody_sent(joblog, run, leaf):
    """It is the first of its family, and alone in it."""
    message = leaf.send()
    run()
    job = joblog.get(message.message_id)

    assert (None, None, None) == (job.parent_jid, job.root_jid, job.parent)
    assert job == job.root
    assert [] == list(job.children)
    assert [job] == list(job.family)


@on_each_database
def test_three_generations(joblog, run, leaf):
    """A child knows its parent, and a grandchild its root; a retry and a delay keep them."""

    @dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=1)
    def child():
        if current_job().attempt == 1:
            raise ValueError
        leaf.send_with_options(delay=1)

    @dramatiq.actor
    def parent():
        child.send()
        leaf.send()

    message = parent.send()
    run()
    root = joblog.get(message.message_id)

    assert ["child", "leaf"] == sorted(names(root.children))
    [middle] = root.children.of_actor("child")
    [grandchild] = middle.children
    assert ("leaf", "finished", middle) == (grandchild.actor, grandchild.state, grandchild.parent)
    assert root == grandchild.root == middle.root
    assert 4 == root.family.count() == grandchild.family.count()
    assert [root] == list(root.family.limit(1))


def test_a_pipeline(joblog, run, leaf):
    """Each step of a pipeline was sent by the one before, and all by the job that began it."""

    @dramatiq.actor
    def step(n):
        return n + 1

    @dramatiq.actor
    def begin():
        (step.message(1) | step.message() | leaf.message()).run()

    message = begin.send()
    run()
    begun = joblog.get(message.message_id)

    chain = [begun]
    while chain[-1].children.exists():
        [following] = chain[-1].children
        chain.append(following)
    assert ["begin", "step", "step", "leaf"] == names(chain)
    assert {begun.jid} == {job.root_jid for job in chain[1:]}


def test_a_group(joblog, run, leaf):
    """Members were sent by the job that began the group, and its callback by the last of them."""
    callback = dramatiq.actor(lambda: None, actor_name="callback")

    @dramatiq.actor
    def begin():
        group = dramatiq.group([leaf.message(n) for n in range(3)])
        group.add_completion_callback(callback.message())
        group.run()

    message = begin.send()
    run()
    begun = joblog.get(message.message_id)

    assert ["leaf"] * 3 == names(begun.children)
    [called] = joblog.jobs.of_actor("callback")
    assert called.parent in list(begun.children)
    assert begun == called.root


@pytest.mark.parametrize("fails", [False, True])
def test_callbacks(joblog, run, leaf, fails):
    """The parent of a success or failure callback is the job that it is about."""

    @dramatiq.actor(on_success="leaf", on_failure="leaf", max_retries=0)
    def work():
        if fails:
            raise ValueError

    message = work.send()
    run()

    assert ["leaf"] == names(joblog.get(message.message_id).children)


def test_an_async_actor_and_a_thread(joblog, run, leaf):
    """A message from an async actor is its child; one from a thread without its context is not."""

    @dramatiq.actor
    async def work():
        leaf.send()
        thread = threading.Thread(target=leaf.send, args=("in a thread",))
        thread.start()
        thread.join()

    message = work.send()
    run()

    [child] = joblog.get(message.message_id).children
    assert [] == child.args
    assert 1 == joblog.jobs.of_actor("leaf").where(joblog.Job.parent_jid.is_null()).count()


def test_a_new_run_of_a_child(joblog, run, leaf):
    """A job that is run again stays in its family."""

    @dramatiq.actor
    def parent():
        leaf.send()

    message = parent.send()
    run()
    root = joblog.get(message.message_id)
    [child] = root.children
    joblog.requeue(child.jid)
    run()

    assert [None, child.jid] == [job.replay_of for job in root.children]


def test_a_forgotten_parent(joblog, run, leaf):
    """A parent that is no longer in the log is None."""

    @dramatiq.actor(log_job=False)
    def unlogged():
        leaf.send()

    @dramatiq.actor
    def parent():
        leaf.send()

    unlogged.send()
    message = parent.send()
    run()
    [child] = joblog.get(message.message_id).children
    joblog.Job.delete().where(joblog.Job.jid == message.message_id).execute()

    assert (None, None) == (child.parent, child.root)
    assert [child] == list(child.family)
    assert 1 == joblog.jobs.where(joblog.Job.parent_jid.is_null()).count()
    joblog.release()
