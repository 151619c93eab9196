"""Workers of ``dramatiq-gevent``: without warnings, and as fast as threads."""

from __future__ import annotations

from itertools import pairwise

import brokers
import dramatiq
import pytest

from dramatiq_joblog import JobLog

#: Milliseconds that a job is in its section, and jobs in line for it.
INSIDE, JOBS = 50, 8


@pytest.mark.full
@pytest.mark.process
@pytest.mark.parametrize(
    "gevent", [pytest.param(False, marks=pytest.mark.full), True], ids=["threads", "gevent"]
)
def test_the_line_moves_quietly(
    postgres_url, redis_url, run_worker_process, eventually, gevent, tmp_path
):
    """With a delayed job, waiters follow each other at once, without warnings."""
    joblog = JobLog(postgres_url)
    joblog.create_tables()
    broker = brokers.connect(redis_url, namespace="line")
    broker.declare_queue("default")
    environment = {"LINE_BROKER": redis_url, "LINE_DATABASE": postgres_url}

    def send(actor, *args, delay=None):
        broker.enqueue(dramatiq.Message("default", actor, args, {}, {}), delay=delay)

    with run_worker_process(
        "line_worker", threads=JOBS * 2, env=environment, gevent=gevent
    ) as process:
        send("later", delay=3_600_000)
        for _ in range(JOBS):
            send("in_line", INSIDE)
        eventually(lambda: joblog.jobs.finished().count() == JOBS, timeout=30)
        output = process.output

    # The host itself warns of each message that is put back.
    warned = [line for line in output.splitlines() if "WARNING" in line and "skipped" not in line]
    assert [] == warned
    assert "Traceback" not in output
    rows = sorted(joblog.jobs.finished(), key=lambda job: job.started_at)
    gaps = [
        (after.started_at - before.finished_at).total_seconds() for before, after in pairwise(rows)
    ]
    # The next one is put forward when the section is free, and not at its own next look.
    assert sorted(gaps)[len(gaps) // 2] < 0.5, gaps
    brokers.disconnect(broker)
    joblog.close()
