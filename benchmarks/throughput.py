"""What the log costs: jobs per second with it and without it, side by side.

Messages lie in a real Redis; real ``dramatiq`` worker processes drain them.  Rounds of all
variants alternate, so that a machine that drifts slows all alike, and the ratio is taken
within each round.  After each run every job must be finished in the log.

    python benchmarks/throughput.py [--rounds 5] [--jobs 5000] [--processes 1] [--threads 8]
"""

from __future__ import annotations

import argparse
import json
import os
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
sys.path.insert(0, str(HERE.parent / "tests"))

import servers  # noqa: E402

from dramatiq_joblog import JobLog  # noqa: E402

#: Seconds that a run may take.
DEADLINE = 300


def fill(url: str, jobs: int) -> None:
    """Put *jobs* messages into an empty Redis."""
    client = redis.Redis.from_url(url)
    client.flushdb()
    broker = RedisBroker(url=url, namespace="bench")
    broker.declare_queue("default")
    pipe = client.pipeline()
    for n in range(jobs):
        message = dramatiq.Message("default", "work", (n,), {}, {"redis_message_id": f"{n}"})
        pipe.hset("bench:default.msgs", f"{n}", message.encode())
        pipe.rpush("bench:default", f"{n}")
    pipe.execute()
    broker.close()


def drain(client: redis.Redis, process: subprocess.Popen, jobs: int) -> float:
    """Return the seconds between the first twentieth of the jobs and the last job."""
    queue = "bench:default.msgs"
    skipped = jobs // 20
    deadline = time.monotonic() + DEADLINE
    began = None
    while (left := client.hlen(queue)) > 0:
        now = time.monotonic()
        if began is None and left <= jobs - skipped:
            began, first = now, jobs - left
        if now > deadline or process.poll() is not None:
            raise SystemExit(f"the workers stopped with {left} jobs left")
        time.sleep(0.002)
    return (time.monotonic() - began) / (jobs - first) * jobs


def run(variant: dict, redis_url: str, args: argparse.Namespace) -> dict:
    """Drain once; return jobs per second and the processor's milliseconds for each job."""
    fill(redis_url, args.jobs)
    client = redis.Redis.from_url(redis_url)
    database = variant["database"]
    if database:
        if not database.startswith("sqlite"):
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute("DROP SCHEMA public CASCADE")
                connection.execute("CREATE SCHEMA public")
        else:
            for suffix in ("", "-wal", "-shm"):
                Path(database.removeprefix("sqlite:///") + suffix).unlink(missing_ok=True)
        JobLog(database).create_tables()
    with tempfile.TemporaryDirectory() as output:
        environment = os.environ | {
            "BENCH_DATABASE": database or "",
            "BENCH_OPTIONS": json.dumps(variant["options"]),
            "BENCH_OUTPUT": output,
            "BENCH_SLEEP": str(args.sleep),
            "REDIS_URL": redis_url,
        }
        command = [sys.executable, "-m", "dramatiq", "worker"]
        command += ["--processes", str(args.processes), "--threads", str(args.threads)]
        process = servers.launch(
            command,
            on_parent_death=signal.SIGTERM,
            cwd=HERE,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seconds = drain(client, process, args.jobs)
        process.terminate()
        process.wait()
        cpu = sum(json.loads(path.read_text())["cpu"] for path in Path(output).iterdir())
    if database:
        joblog = JobLog(database)
        right = joblog.jobs.finished().where(joblog.Job.attempt == 1).count()
        if (right, joblog.jobs.count()) != (args.jobs, args.jobs):
            raise SystemExit(f"{variant['name']}: {right} of {args.jobs} rows are right")
        joblog.close()
    return {"rate": args.jobs / seconds, "cpu": cpu / args.jobs * 1000}


def main() -> None:
    """Run all variants in turn and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sleep", type=int, default=0, help="milliseconds each job sleeps")
    parser.add_argument("--threads", type=int, default=8)
    args = parser.parse_args()
    redis_server, postgres = servers.start_redis(), servers.start_postgres(fsync=True)
    with tempfile.TemporaryDirectory() as folder:
        variants = [
            {"name": "bare Dramatiq", "database": None, "options": {}},
            {"name": "SQLite", "database": f"sqlite:///{folder}/jobs.db", "options": {}},
            {"name": "PostgreSQL", "database": postgres.url, "options": {}},
        ]
        results = {variant["name"]: [] for variant in variants}
        for number in range(args.rounds):
            for variant in variants:
                result = run(variant, redis_server.url, args)
                results[variant["name"]].append(result)
                print(f"round {number + 1}: {variant['name']}: {result['rate']:.0f} jobs/s")
    bare = results["bare Dramatiq"]
    print(
        f"\n{args.jobs} jobs of {args.sleep} ms, {args.processes} processes of {args.threads} "
        f"threads, {args.rounds} rounds, {postgres.name}, {redis_server.name}\n"
    )
    print(f"{'':16}{'jobs/s':>8}{'x bare':>8}  {'(least, most)':16}{'CPU ms/job':>10}")
    for name, runs in results.items():
        ratios = [run["rate"] / other["rate"] for run, other in zip(runs, bare, strict=True)]
        rate, cpu = (statistics.median(run[key] for run in runs) for key in ("rate", "cpu"))
        span = f"({min(ratios):.2f}, {max(ratios):.2f})"
        print(f"{name:16}{rate:8.0f}{statistics.median(ratios):8.2f}  {span:16}{cpu:10.2f}")
    redis_server.stop()
    postgres.stop()


if __name__ == "__main__":
    main()
