"""Worker processes on hosts with wrong clocks: the log is still right."""

from __future__ import annotations

import os
import signal

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

from dramatiq_joblog import JobLog

HOUR = 3_600_000


@pytest.fixture
def database_url(postgres_database):
    """Return the URL of a database with a server's clock; SQLite uses the host's."""
    return postgres_database


@pytest.fixture
def joblog(database_url):
    """Return a log."""
    log = JobLog(database_url)
    yield log
    log.close()


@pytest.mark.process
@pytest.mark.parametrize(
    "ahead",
    [pytest.param(-HOUR, id="behind", marks=pytest.mark.full), pytest.param(HOUR, id="ahead")],
)
def test_a_worker_an_hour_off(
    joblog, database_url, redis_url, run_worker_process, eventually, tmp_path, ahead
):
    """With a worker an hour ahead or behind, states and durations are right."""
    environment = {
        "SKEWED_BY": str(ahead),
        "VICTIM_BROKER": redis_url,
        "VICTIM_DATABASE": database_url,
        "VICTIM_FOLDER": str(tmp_path),
    }
    broker = RedisBroker(url=redis_url, namespace="victim")
    broker.declare_queue("default")

    def send(actor):
        return broker.enqueue(dramatiq.Message("default", actor, (), {}, {})).message_id

    def state(jid):
        return joblog.Job.get(joblog.Job.jid == jid).state if joblog.jobs.exists() else None

    with run_worker_process(
        "skewed_worker", env=environment, expects_critical="exited unexpectedly", fresh=True
    ) as first:
        # Others look at the log meanwhile, and nobody takes it to be gone.
        again = send("breaks_once")
        eventually(lambda: state(again) == "finished", timeout=30)
        waits = send("waits")
        eventually((tmp_path / "began").exists, timeout=30)
        [worker] = first.workers
        assert ahead == pytest.approx(joblog.workers.get().skew, abs=60_000)
        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: first.process.poll() is not None, timeout=30)

    with run_worker_process("victim_worker", env=environment, args=["--queues", "other"]):
        eventually(lambda: state(waits) == "lost", timeout=30)
    (tmp_path / "go").touch()
    with run_worker_process("skewed_worker", env=environment, fresh=True):
        eventually(lambda: state(waits) == "finished", timeout=30)

    jobs = {jid: joblog.get(jid) for jid in (again, waits)}
    assert [2, 1] == [job.attempt for job in jobs.values()]
    failures = [failure for job in jobs.values() for failure in job.failures]
    assert ["retried", "interrupted"] == [failure.outcome for failure in failures]
    assert all(0 <= row.duration < 120_000 for row in (*jobs.values(), *failures))
    assert all(job.queue_time >= 0 for job in jobs.values())
    broker.close()
    broker.client.connection_pool.disconnect()
