"""What needs someone, as it comes about: real workers that are killed, busy, or not there."""

from __future__ import annotations

import os
import signal

import dramatiq
import pytest

from dramatiq_joblog import JobLog, JobLogMiddleware

pytestmark = pytest.mark.process


@pytest.fixture
def database_url(sqlite_database):
    """Return the URL of a database: what is asked of it is tried on each kind elsewhere."""
    return sqlite_database


@pytest.fixture
def joblog(database_url):
    """Return a log, as an application has it that only asks."""
    log = JobLog(database_url)
    yield log
    log.close()


@pytest.fixture
def sender(joblog, redis_url):
    """Return a function that sends to an actor of the worker, with this process's log."""
    import brokers

    broker = brokers.connect(redis_url, namespace="victim")
    broker.add_middleware(JobLogMiddleware(joblog))
    for queue in ("default", "other"):
        broker.declare_queue(queue)

    def send(actor, queue="default"):
        message = broker.enqueue(dramatiq.Message(queue, actor, (), {}, {}))
        joblog.core.writer.flush()
        return message.message_id

    yield send
    brokers.disconnect(broker)


def kinds(joblog, **options):
    return {problem.kind.value: problem for problem in joblog.problems(**options)}


@pytest.mark.parametrize("another_lives", [False, True], ids=["alone", "beside another"])
def test_a_worker_is_killed(joblog, victims, sender, eventually, tmp_path, another_lives):
    """The job of a killed worker is lost, whether or not another worker lives to mark it."""
    run, _, _ = victims
    jid = sender("waits")
    with run(expects_critical="exited unexpectedly") as running:
        eventually((tmp_path / "began").exists)
        assert {} == kinds(joblog)
        [worker] = running.workers
        os.kill(running.pid, signal.SIGKILL)
        worker.kill()
        worker.wait()

    found = eventually(lambda: kinds(joblog).get("lost"))

    assert [jid] == [job.jid for job in joblog.search(found.search)]
    if another_lives:
        (tmp_path / "go").touch()
        with run():
            eventually(lambda: joblog.get(jid).state == "finished", timeout=60)
            assert {} == kinds(joblog)


def test_queues_and_threads(joblog, victims, sender, eventually, tmp_path):
    """A queue that no worker consumes, and threads that are all busy, are seen at once."""
    run, _, _ = victims
    with run(threads=1, args=["--queues", "default"]):
        first = sender("waits")
        eventually((tmp_path / "began").exists)
        assert {} == kinds(joblog, patience=0)

        second, other = sender("waits"), sender("elsewhere", "other")
        found = eventually(lambda: len(f := kinds(joblog, patience=0)) == 2 and f)

        assert [other] == [job.jid for job in joblog.search(found["queues"].search)]
        assert "'other'" in found["queues"].text
        assert [second] == [job.jid for job in joblog.search(found["threads"].search)]
        # So early it is nobody's concern.
        assert {} == kinds(joblog)
        (tmp_path / "go").touch()
        eventually(lambda: joblog.get(second).state == "finished")
        assert {"queues"} == set(kinds(joblog, patience=0))
    assert joblog.get(first).state == "finished"
