"""A worker that is killed between the starts that it committed ahead and their bodies."""

from __future__ import annotations

import brokers
import dramatiq
import pytest

pytestmark = pytest.mark.process

THREADS = 2
JOBS = 40


def test_jobs_that_never_began(
    joblog, database_url, redis_url, run_worker_process, eventually, tmp_path
):
    """Jobs that were started ahead of a kill run once; their unbegun runs count as interrupted."""
    broker = brokers.connect(redis_url, namespace="ahead")
    broker.declare_queue("default")
    worker = {
        "threads": THREADS,
        # Dramatiq reads the variable when it is imported.
        "fresh": True,
        "env": {
            "AHEAD_BROKER": redis_url,
            "AHEAD_DATABASE": database_url,
            "AHEAD_FOLDER": str(tmp_path),
            "AHEAD_THREADS": str(THREADS),
            "dramatiq_queue_prefetch": "16",
        },
    }

    with run_worker_process(
        "ahead_worker", expects_critical="exited unexpectedly", **worker
    ) as first:
        [process] = first.workers
        # It finds them all at once.
        process.suspend()
        for n in range(JOBS):
            message = dramatiq.Message(
                queue_name="default", actor_name="quick", args=(n,), kwargs={}, options={}
            )
            broker.enqueue(message)
        process.resume()
        eventually(lambda: first.process.poll() is not None)
    began = (tmp_path / "runs").read_text().split()
    started = [job.jid for job in joblog.jobs.in_progress()]
    assert len(started) > THREADS
    assert len(began) < JOBS

    with run_worker_process("ahead_worker", **worker):
        eventually(lambda: joblog.jobs.finished().count() == JOBS)

    # Only what ran on a thread when the worker was killed may have run twice.
    runs = (tmp_path / "runs").read_text().split()
    assert set(map(str, range(JOBS))) == set(runs)
    assert len(runs) <= JOBS + THREADS
    interrupted = joblog.Failure.select().where(joblog.Failure.outcome == "interrupted")
    assert set(started) == {failure.jid for failure in interrupted}
    # Which thread would have run it is not known.
    assert all(f":{process.pid}:" in failure.worker for failure in interrupted)
    brokers.disconnect(broker)
