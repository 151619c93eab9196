"""What the log costs the sender: processor time and ``send()`` calls per second.

A process of its own sends messages in a loop to a real Redis, without a log, with this one or with
a peer's; its processor time ends when every row is written.  Rounds of all variants alternate, and
the ratio is taken within each round.  After each run every message must be in Redis, and every job
in the log.

    python benchmarks/sending.py [--rounds 5] [--jobs 10000] [--pinned]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis
from throughput import create, environment_of, peer, pin, servers, table, variants_of

from dramatiq_joblog import JobLog, JobLogMiddleware

WAYS = ("start=before", "django_dramatiq")


def send_all(jobs: int) -> dict[str, float]:
    """Send so many messages as the environment says; return what it took."""
    # Its module reads the environment of a child process.
    import worker  # noqa: PLC0415

    # The first one connects.
    worker.work.send(-1)
    began, cpu = time.monotonic(), worker.cpu()
    for number in range(jobs):
        worker.work.send(number)
    seconds = time.monotonic() - began
    for middleware in worker.broker.middleware:
        if isinstance(middleware, JobLogMiddleware):
            middleware.joblog.close()
    return {"rate": jobs / seconds, "cpu": (worker.cpu() - cpu) / jobs * 1000}


def run(variant: dict, redis_url: str, jobs: int) -> dict[str, float]:
    """Send once, in a process of its own; return calls per second and milliseconds of CPU."""
    log, database = variant["log"], variant["database"]
    client = redis.Redis.from_url(redis_url)
    client.flushdb()
    if log:
        create(log, database, [], enqueued=False)
    with tempfile.TemporaryDirectory() as output:
        environment = environment_of(variant, redis_url, actor={}, output=output)
        command = [sys.executable, str(Path(__file__)), "--jobs", str(jobs), "--child"]
        told = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    sent, there = client.llen("bench:default"), jobs + 1
    if log == "ours":
        joblog = JobLog(database)
        there = joblog.jobs.enqueued().count()
        joblog.close()
    elif log:
        there = int(peer(log, "rows", database).split()[1])
    if (sent, there) != (jobs + 1, jobs + 1):
        raise SystemExit(f"{variant['name']}: {sent} messages and {there} rows for {jobs + 1} jobs")
    return json.loads(told)


def main() -> None:
    """Send with all variants in turn, and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--pinned", action="store_true", help="all of it on one core")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(send_all(args.jobs)))
        return
    if args.pinned:
        pin()
    redis_server, postgres = servers.start_redis(), servers.start_postgres(fsync=True)
    with tempfile.TemporaryDirectory() as folder:
        databases = {"PostgreSQL": postgres.url, "SQLite": f"sqlite:///{folder}/jobs.db"}
        variants = variants_of(databases, WAYS)
        results: dict[str, list[dict]] = {variant["name"]: [] for variant in variants}
        for _ in range(args.rounds):
            for variant in variants:
                results[variant["name"]].append(run(variant, redis_server.url, args.jobs))
    cores = len(os.sched_getaffinity(0))
    print(
        f"\n{args.jobs} calls of send() in a loop, {args.rounds} rounds, {postgres.name} "
        f"(fsync on), {redis_server.name}, {cores} core(s)\n\n{table(results)}"
    )
    redis_server.stop()
    postgres.stop()


if __name__ == "__main__":
    main()
