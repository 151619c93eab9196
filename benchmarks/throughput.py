"""What the log costs: processor time and jobs per second, beside none and beside its peers.

Messages lie in a real Redis; real ``dramatiq`` worker processes drain them until the last is
acknowledged.  Rounds of all variants alternate, so that a machine that drifts slows all alike,
and the ratio is taken within each round.  After each run every job must be finished in the log.

    python benchmarks/throughput.py [--rounds 5] [--jobs 8000] [--processes 1] [--threads 8]
        [--sleep MS] [--only NAME ...] [--sections] [--enqueued] [--lines [N]]
        [--fails always|once] [--pinned]
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
from typing import TYPE_CHECKING

import dramatiq
import psycopg
import redis
from dramatiq.brokers.redis import RedisBroker

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import servers  # noqa: E402

from dramatiq_joblog import JobLog  # noqa: E402
from dramatiq_joblog.recording.events import Enqueued  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Seconds that a run may take.
DEADLINE = 300

#: Each way to log: its name, what logs, and the middleware's options.
WAYS = {
    "start=before": ("ours", {}),
    "acks=plain": ("ours", {"acks": "plain"}),
    "start=soon": ("ours", {"start": "soon"}),
    "acks=plain, start=soon": ("ours", {"acks": "plain", "start": "soon"}),
    "find and update": ("find and update", {}),
    "django_dramatiq": ("django_dramatiq", {}),
}
PEERS = {"django_dramatiq": "peer_django.py", "find and update": "peer_seed.py"}


def fill(url: str, jobs: int) -> list[dramatiq.Message]:
    """Put *jobs* messages into an empty Redis."""
    client = redis.Redis.from_url(url)
    client.flushdb()
    broker = RedisBroker(url=url, namespace="bench")
    broker.declare_queue("default")
    pipe = client.pipeline()
    messages = []
    for n in range(jobs):
        message = dramatiq.Message("default", "work", (n,), {}, {"redis_message_id": f"{n}"})
        messages.append(message)
        pipe.hset("bench:default.msgs", f"{n}", message.encode())
        pipe.rpush("bench:default", f"{n}")
    pipe.execute()
    broker.close()
    return messages


def drain(client: redis.Redis, process: subprocess.Popen, jobs: int) -> float:
    """Return the seconds between the first twentieth of the jobs and the last job."""
    queues = ("bench:default.msgs", "bench:default.DQ.msgs")
    skipped = jobs // 20
    deadline = time.monotonic() + DEADLINE
    began = None
    while (left := sum(map(client.hlen, queues))) > 0:
        now = time.monotonic()
        if began is None and left <= jobs - skipped:
            began, first = now, jobs - left
        if now > deadline or process.poll() is not None:
            raise SystemExit(f"the workers stopped with {left} jobs left")
        time.sleep(0.005)
    return (time.monotonic() - began) / (jobs - first) * jobs


def peer(log: str, command: str, database: str) -> str:
    """Ask a peer's module for something, in a process of its own."""
    arguments = [sys.executable, str(HERE / PEERS[log]), command, database]
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


def create(log: str, database: str, messages: list[dramatiq.Message], *, enqueued: bool) -> None:
    """Make an empty database with a log's tables."""
    if database.startswith("sqlite"):
        for suffix in ("", "-wal", "-shm"):
            Path(database.removeprefix("sqlite:///") + suffix).unlink(missing_ok=True)
    else:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
    if log in PEERS:
        peer(log, "create", database)
        return
    joblog = JobLog(database)
    joblog.create_tables()
    if enqueued:
        for message in messages:
            at = message.message_timestamp
            times = {"enqueued_at": at, "created_at": at, "updated_at": at}
            about = {"jid": message.message_id, "actor": "work", "queue": "default"}
            joblog.core.writer.put(Enqueued({**about, **times, "state": "enqueued", "attempt": 1}))
    joblog.close()


def check(log: str, database: str, jobs: int, name: str, *, fails: str) -> None:
    """Hold the rows against what was done."""
    if log in PEERS and fails:
        return
    if log in PEERS:
        right, there = map(int, peer(log, "rows", database).split())
    else:
        joblog = JobLog(database)
        job = joblog.Job
        attempts = job.attempt == (2 if fails == "once" else 1)
        whole = job.started_at.is_null(False), job.finished_at.is_null(False), attempts
        ended = joblog.jobs.dead() if fails == "always" else joblog.jobs.finished()
        right, there = ended.where(*whole).count(), joblog.jobs.count()
        joblog.close()
    if (right, there) != (jobs, jobs):
        raise SystemExit(f"{name}: {right} of {there} rows are right, for {jobs} jobs")


def environment_of(
    variant: dict,
    redis_url: str,
    *,
    actor: dict,
    output: str,
    fails: str = "",
    lines: int = 0,
    sleep: int = 0,
) -> dict[str, str]:
    """Return the environment of a process that imports ``worker.py``."""
    return os.environ | {
        "BENCH_ACTOR": json.dumps(actor),
        "BENCH_DATABASE": variant["database"] or "",
        "BENCH_FAILS": fails,
        "BENCH_LINES": str(lines),
        "BENCH_LOG": variant["log"] or "",
        "BENCH_OPTIONS": json.dumps(variant["options"]),
        "BENCH_OUTPUT": output,
        "BENCH_SLEEP": str(sleep),
        "REDIS_URL": redis_url,
    }


def run(variant: dict, redis_url: str, args: argparse.Namespace) -> dict:
    """Drain once; return jobs per second and the processor's milliseconds for each job."""
    log, database = variant["log"], variant["database"]
    messages = fill(redis_url, args.jobs)
    client = redis.Redis.from_url(redis_url)
    if log:
        create(log, database, messages, enqueued=args.enqueued)
    actor = {"exclusive": "{n}"} if args.sections and log == "ours" else {}
    with tempfile.TemporaryDirectory() as output:
        environment = environment_of(
            variant,
            redis_url,
            actor=actor,
            fails=args.fails,
            lines=args.lines,
            output=output,
            sleep=args.sleep,
        )
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
    if log:
        check(log, database, args.jobs, variant["name"], fails=args.fails)
    return {"rate": args.jobs / seconds, "cpu": cpu / args.jobs * 1000}


def table(results: dict[str, list[dict]]) -> str:
    """Return the medians as a table of Markdown."""
    bare = results["bare Dramatiq"]
    lines = [
        "| | CPU, ms a job | of bare (least, most) | jobs/s | of bare (least, most) |",
        "|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        cells = [name]
        for key, digits in (("cpu", 3), ("rate", 0)):
            cells.append(f"{statistics.median(run[key] for run in runs):.{digits}f}")
            ratios = [run[key] / other[key] for run, other in zip(runs, bare, strict=False)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def variants_of(databases: dict[str, str], ways: Iterable[str]) -> list[dict]:
    """Return bare Dramatiq, and each of *ways* to log with each database."""
    variants = [{"name": "bare Dramatiq", "log": None, "database": None, "options": {}}]
    for way in ways:
        log, options = WAYS[way]
        variants += [
            {"name": f"{way}, {kind}", "log": log, "database": url, "options": options}
            for kind, url in databases.items()
        ]
    return variants


def pin() -> None:
    """Run on one core, with the servers and workers that are started from now on."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--enqueued", action="store_true", help="the jobs have their rows already")
    parser.add_argument(
        "--fails", choices=["", "always", "once"], default="", help="each job dies, or is retried"
    )
    parser.add_argument("--jobs", type=int, default=8000)
    parser.add_argument(
        "--lines",
        nargs="?",
        type=int,
        const=5,
        default=0,
        metavar="N",
        help="each job logs lines, five by default, whether or not anything keeps them",
    )
    parser.add_argument("--only", nargs="*", choices=WAYS, help="measure only these ways")
    parser.add_argument("--pinned", action="store_true", help="all of it on one core")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sections", action="store_true", help="each job has its own section")
    parser.add_argument("--sleep", type=int, default=0, help="milliseconds each job sleeps")
    parser.add_argument("--threads", type=int, default=8)
    return parser.parse_args()


def main() -> None:
    """Run all variants in turn and print their medians."""
    args = arguments()
    if args.pinned:
        pin()
    redis_server, postgres = servers.start_redis(), servers.start_postgres(fsync=True)
    with tempfile.TemporaryDirectory() as folder:
        databases = {"PostgreSQL": postgres.url, "SQLite": f"sqlite:///{folder}/jobs.db"}
        variants = variants_of(databases, args.only or WAYS)
        results: dict[str, list[dict]] = {variant["name"]: [] for variant in variants}
        for number in range(args.rounds):
            for variant in variants:
                result = run(variant, redis_server.url, args)
                results[variant["name"]].append(result)
                print(
                    f"round {number + 1}: {variant['name']}: {result['rate']:.0f} jobs/s",
                    file=sys.stderr,
                )
    print(
        f"\n{args.jobs} jobs of {args.sleep} ms, {args.processes} process(es) of {args.threads} "
        f"threads, {args.rounds} rounds, {postgres.name} (fsync on), {redis_server.name}, "
        f"{len(os.sched_getaffinity(0))} core(s){f', each fails {args.fails}' * bool(args.fails)}"
        f"\n\n{table(results)}"
    )
    redis_server.stop()
    postgres.stop()


if __name__ == "__main__":
    main()
