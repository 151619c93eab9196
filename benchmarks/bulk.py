"""How fast many jobs run again, and are cancelled.

A log on SQLite and on PostgreSQL has so many dead jobs, and as many that are enqueued; one call
of ``requeue_all`` sends the dead ones to a real Redis, and one of ``cancel_all`` gives up the
others.  After each call every job must be as the call says.

    python benchmarks/bulk.py [--rounds 3] [--jobs 10000]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import servers  # noqa: E402

from dramatiq_joblog import JobLog, JobLogMiddleware  # noqa: E402

#: As many rows are inserted by one statement.
CHUNK = 500


class Bench:
    """A log of jobs that have ended or not begun, and a broker to send them to."""

    def __init__(self, redis_url: str, database: str) -> None:
        self.joblog = JobLog(database)
        self.joblog.create_tables()
        self.broker = RedisBroker(url=redis_url, namespace=f"bench-{uuid.uuid4().hex[:8]}")
        self.broker.add_middleware(JobLogMiddleware(self.joblog))
        dramatiq.set_broker(self.broker)

        @dramatiq.actor(max_retries=0)
        def work(number, name):
            pass

    def fill(self, state: str, jobs: int) -> None:
        """Empty the log, and write so many jobs in *state*."""
        job, now = self.joblog.Job, time.time_ns() // 1_000_000
        times = dict.fromkeys(("created_at", "updated_at", "enqueued_at"), now)
        ended = {"finished_at": now, "started_at": now, "duration": 1, "token": "t" * 28}
        row = {
            "actor": "work",
            "queue": "default",
            "state": state,
            "attempt": 1,
            **times,
            **(ended if state == "dead" else {}),
        }
        job.delete().execute()
        self.broker.flush_all()
        for start in range(0, jobs, CHUNK):
            numbers = range(start, min(start + CHUNK, jobs))
            job.insert_many(
                [
                    {**row, "jid": str(uuid.uuid4()), "args": [n, f"name-{n}"], "kwargs": {}}
                    for n in numbers
                ]
            ).execute()

    def requeue(self, jobs: int) -> tuple[float, float]:
        """Run dead jobs again; return jobs per second, and milliseconds of CPU a job."""
        self.fill("dead", jobs)
        spent = _spent(lambda: self.joblog.requeue_all(self.joblog.jobs.dead(), limit=jobs))
        log = self.joblog
        assert log.jobs.enqueued().count() == jobs
        assert log.jobs.dead().where(log.Job.replayed_by.is_null(False)).count() == jobs
        assert self.broker.client.llen(f"{self.broker.namespace}:default") == jobs
        return _figures(jobs, *spent)

    def cancel(self, jobs: int) -> tuple[float, float]:
        """Give up jobs; return jobs per second, and milliseconds of CPU a job."""
        self.fill("enqueued", jobs)
        spent = _spent(lambda: self.joblog.cancel_all(self.joblog.jobs.enqueued(), limit=jobs))
        assert self.joblog.jobs.dead().count() == jobs
        return _figures(jobs, *spent)

    def close(self) -> None:
        self.broker.close()
        self.joblog.close()


def _spent(function) -> tuple[float, float]:
    """Return the seconds that a call took, and those of CPU."""
    began, cpu = time.monotonic(), time.process_time()
    function()
    return time.monotonic() - began, time.process_time() - cpu


def _figures(jobs: int, seconds: float, cpu: float) -> tuple[float, float]:
    return jobs / seconds, cpu * 1000 / jobs


def main() -> None:
    """Measure on both databases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=10_000)
    args = parser.parse_args()
    redis_server, postgres = servers.start_redis(), servers.start_postgres(fsync=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, url in (("SQLite", f"sqlite:///{folder}/jobs.db"), (postgres.name, postgres.url)):
            bench = Bench(redis_server.url, url)
            for what, measure in (("requeue_all", bench.requeue), ("cancel_all", bench.cancel)):
                found = [measure(args.jobs) for _ in range(args.rounds)]
                rates, cpu = ([each[at] for each in found] for at in (0, 1))
                print(
                    f"{name}, {redis_server.name}, {what} of {args.jobs}: "
                    f"{statistics.median(rates):.0f} jobs/s ({min(rates):.0f} to "
                    f"{max(rates):.0f}), {statistics.median(cpu):.2f} ms of CPU a job",
                    flush=True,
                )
            bench.close()
    redis_server.stop()
    postgres.stop()


if __name__ == "__main__":
    main()
