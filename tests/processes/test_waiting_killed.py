"""Jobs that wait in the memory of workers: a worker is killed, or a pause expires.

Each of them runs once.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta

import brokers
import dramatiq
import pytest

from dramatiq_joblog import JobLogMiddleware

pytestmark = pytest.mark.process


@pytest.fixture
def folder(tmp_path):
    """Return the folder in which jobs record their runs, and wait to be released."""
    return tmp_path


@pytest.fixture
def send(joblog, broker_url):
    """Return a function that sends a job that waits for its section."""
    broker = brokers.connect(broker_url, namespace="begun")
    broker.add_middleware(JobLogMiddleware(joblog))
    broker.declare_queue("default")

    def send(name):
        message = dramatiq.Message("default", "wait", (name,), {}, {})
        broker.enqueue(message)
        return message.message_id

    send.broker = broker
    yield send
    broker.close()


@pytest.fixture
def start(database_url, broker_url, folder, run_worker_process):
    """Return a function that runs worker processes with a short heartbeat timeout."""
    env = {
        "BEGUN_FOLDER": str(folder),
        "BEGUN_DATABASE": database_url,
        "BEGUN_BROKER": broker_url,
    }
    return lambda **options: run_worker_process("begun_worker", env=env, **options)


def ran(folder):
    path = folder / "runs"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("broker_url", ["redis", "rabbit"], indirect=True)
@pytest.mark.parametrize("is_inside", [False, True], ids=["only waits", "is inside too"])
def test_who_waits_in_a_killed_worker(
    joblog, broker_url, folder, start, send, eventually, is_inside
):
    """On Redis its messages are unacknowledged there.  Each runs once elsewhere.

    A job that was inside is run again.
    """
    names = ["a", "b", "c"]
    with contextlib.ExitStack() as stack:
        with start(expects_critical="exited unexpectedly") as victim:
            if is_inside:
                first = send("first")
                eventually(lambda: ran(folder) == ["first"], timeout=30)
            else:
                stack.enter_context(joblog.lock("key"))
            jids = []
            for name in names:
                jids.append(send(name))
                eventually(lambda: joblog.jobs.waiting().count() == len(jids), timeout=30)
            if broker_url.startswith("redis"):
                assert 0 == send.broker.client.llen(f"{send.broker.namespace}:default")
                assert 0 == send.broker.client.hlen(f"{send.broker.namespace}:default.DQ.msgs")
            [child] = victim.workers
            child.kill()
        for name in ["first", *names]:
            (folder / f"go-{name}").touch()
        with start():
            # It waits for them, and not they for it.
            stack.close()
            eventually(lambda: joblog.jobs.finished().count() == 3 + is_inside, timeout=60)

    assert sorted([*["first", "first"] * is_inside, *names]) == sorted(ran(folder))
    for jid in jids:
        assert {"waited"} == {run.outcome for run in joblog.get(jid).failures}
    if is_inside:
        assert ["interrupted"] == [
            run.outcome for run in joblog.get(first).failures if run.outcome != "waited"
        ]


@pytest.mark.full
@pytest.mark.parametrize("broker_url", ["redis", "rabbit"], indirect=True)
def test_a_pause_that_runs_out(joblog, broker_url, folder, start, send, eventually):
    """Jobs that wait in several processes run once a pause has expired by itself."""
    ends = joblog.now() + timedelta(seconds=8)
    joblog.set_limit("key", 0, until=ends)
    with start(), start():
        names = ["a", "b", "c", "d"]
        jids = [send(name) for name in names]
        for name in names:
            (folder / f"go-{name}").touch()
        eventually(lambda: joblog.jobs.waiting().count() == 4, timeout=30)
        eventually(lambda: joblog.jobs.finished().count() == 4, timeout=60)
    assert sorted(names) == sorted(ran(folder))
    assert all(joblog.get(jid).started_at >= ends for jid in jids)
    assert [] == joblog.limits
