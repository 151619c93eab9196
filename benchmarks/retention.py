"""What pruning costs the jobs that run beside it.

A log is full of old jobs; one worker process of eight threads drains no-op messages from a real
Redis, with a log that keeps all and with one whose worker deletes meanwhile, in turn.

    python benchmarks/retention.py [--rounds 5] [--jobs 12000] [--old 200000]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dramatiq
import psycopg
import redis
from dramatiq.brokers.redis import RedisBroker

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "support"), str(HERE)]

import filling  # noqa: E402
import servers  # noqa: E402
from throughput import drain, fill  # noqa: E402

from dramatiq_joblog import JobLog, JobLogMiddleware  # noqa: E402

DAY = 86_400_000

if "RETENTION_DATABASE" in os.environ:
    # This is the worker.
    keep = json.loads(os.environ["RETENTION_KEEP"])
    broker = RedisBroker(url=os.environ["REDIS_URL"], namespace="bench")
    broker.add_middleware(JobLogMiddleware(JobLog(os.environ["RETENTION_DATABASE"], keep=keep)))
    dramatiq.set_broker(broker)

    @dramatiq.actor
    def work(n):
        pass


def drained(url: str, keep: dict, redis_url: str, jobs: int) -> tuple[float, int]:
    """Drain once; return jobs per second, and how many old jobs were deleted meanwhile."""
    fill(redis_url, jobs)
    joblog = JobLog(url)
    old = joblog.jobs.count()
    # A minute is over that was not counted: the worker begins with its chores at once.
    joblog.core.totals.marks.put("counted", int(time.time() * 1000) - 180_000)
    process = servers.launch(
        [sys.executable, "-m", "dramatiq", "retention", "--processes", "1", "--threads", "8"],
        on_parent_death=signal.SIGTERM,
        cwd=HERE,
        env=os.environ
        | {"RETENTION_DATABASE": url, "RETENTION_KEEP": json.dumps(keep), "REDIS_URL": redis_url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds = drain(redis.Redis.from_url(redis_url), process, jobs)
    left = joblog.jobs.where(joblog.Job.created_at < int(time.time() * 1000) - DAY // 2).count()
    process.terminate()
    process.wait()
    right = joblog.jobs.finished().of_actor("work").count()
    if right != jobs:
        raise SystemExit(f"{right} of {jobs} rows are right")
    joblog.close()
    return jobs / seconds, old - left


def main() -> None:
    """Drain in turn, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=12_000)
    parser.add_argument("--old", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("sqlite", "postgres"))
    args = parser.parse_args()
    redis_server, postgres = servers.start_redis(), servers.start_postgres(fsync=True)
    with tempfile.TemporaryDirectory() as folder:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE full_of_jobs")
        full = {
            "SQLite": f"sqlite:///{folder}/full.db",
            "PostgreSQL": postgres.url.replace("/postgres", "/full_of_jobs"),
        }
        for name, url in full.items():
            if args.only and args.only not in name.lower():
                continue
            joblog = JobLog(url)
            joblog.create_tables()
            joblog.database.connect(reuse_if_open=True)
            filling.fill(joblog, args.old)
            joblog.core.totals.catch_up(int(time.time() * 1000))
            joblog.close()
            ratios = []
            for number in range(args.rounds):
                rates = {}
                for what, keep in (("keeps all", {}), ("deletes", {"finished": DAY})):
                    copy = _copy(name, postgres.url, folder, url)
                    rates[what], gone = drained(copy, keep, redis_server.url, args.jobs)
                ratios.append(rates["deletes"] / rates["keeps all"])
                print(
                    f"{name} {number + 1}: {rates['keeps all']:.0f} jobs/s, "
                    f"{rates['deletes']:.0f} while {gone} old jobs were deleted, "
                    f"ratio {ratios[-1]:.3f}",
                    flush=True,
                )
            middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
            print(f"{name}: median {middle:.3f} ({least:.3f} to {most:.3f})")
    redis_server.stop()
    postgres.stop()


def _copy(name: str, server: str, folder: str, url: str) -> str:
    """Return the URL of a new copy of a full log."""
    if name == "SQLite":
        copy = Path(folder) / "copy.db"
        for suffix in ("", "-wal", "-shm"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
        shutil.copy(url.removeprefix("sqlite:///"), copy)
        return f"sqlite:///{copy}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS copy WITH (FORCE)")
        connection.execute("CREATE DATABASE copy TEMPLATE full_of_jobs")
    return server.replace("/postgres", "/copy")


if __name__ == "__main__":
    main()
