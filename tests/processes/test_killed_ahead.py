"""A worker that is killed between the starts that it committed ahead and their bodies."""

from __future__ import annotations

import json
from collections import Counter

import brokers
import dramatiq
import pytest

pytestmark = pytest.mark.process

THREADS = 2
JOBS = 40


@pytest.mark.parametrize(
    ("options", "sent_with"),
    [({}, {}), ({"exclusive": "quick:{n}"}, {}), ({}, {"retries": 1})],
    ids=["plain", "sections", "retries"],
)
def test_jobs_that_never_began(
    options, sent_with, joblog, database_url, redis_url, run_worker_process, eventually, tmp_path
):
    """Jobs that were started ahead of a kill run once; their unbegun runs count as interrupted."""
    # Without Dramatiq's middleware: in old versions, Prometheus fails outside a worker.
    broker = brokers.connect(redis_url, namespace="ahead", middleware=[])
    broker.declare_queue("default")
    worker = {
        "threads": THREADS,
        # Dramatiq reads the variable when it is imported.
        "fresh": True,
        "env": {
            "AHEAD_ACTOR": json.dumps(options),
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
        sent = 0

        def is_done():
            return first.process.poll() is not None or joblog.jobs.finished().count() == sent

        # Where the first runs took long, it starts none ahead until others have been short.
        while first.process.poll() is None:
            # It finds them all at once.
            process.suspend()
            for n in range(sent, sent + JOBS):
                message = dramatiq.Message(
                    queue_name="default",
                    actor_name="quick",
                    args=(n,),
                    kwargs={},
                    options=dict(sent_with),
                )
                broker.enqueue(message)
            sent += JOBS
            process.resume()
            eventually(is_done)
    began = (tmp_path / "runs").read_text().split()
    started = [job.jid for job in joblog.jobs.in_progress()]
    finished = [job.args[0] for job in joblog.jobs.finished()]
    assert len(started) > THREADS
    assert len(began) < sent

    with run_worker_process("ahead_worker", **worker):
        eventually(lambda: joblog.jobs.finished().count() == sent)

    # Only what had begun, and whose outcome was not committed, may have run twice.
    runs = Counter((tmp_path / "runs").read_text().split())
    assert set(map(str, range(sent))) == set(runs)
    once = {*map(str, range(sent))} - {*began} | {*map(str, finished)}
    assert {1} == {runs[n] for n in once}
    assert max(runs.values()) <= 2
    interrupted = joblog.Failure.select().where(joblog.Failure.outcome == "interrupted")
    assert set(started) == {failure.jid for failure in interrupted}
    # Which thread would have run it is not known.
    assert all(f":{process.pid}:" in failure.worker for failure in interrupted)
    assert [] == list(joblog.locks)
    brokers.disconnect(broker)
