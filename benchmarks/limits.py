"""What limits cost: a rate on one key, many keys with few jobs each, three keys a job.

A worker of eight threads on a real Redis, with the log on SQLite and on PostgreSQL; each kind of
job beside the same number of jobs without a limit, in turn.  The rate is never used up, so that
what is measured is what it costs to count.

    python benchmarks/limits.py [--rounds 3] [--jobs 1000] [--keys 10000] [--database sqlite]
"""

from __future__ import annotations

import argparse
import logging
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

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware, Rate  # noqa: E402


class Bench:
    """A log, a broker and an actor for each kind of limit, on one database."""

    def __init__(self, redis_url: str, database: str, keys: int) -> None:
        self.keys = keys
        self.joblog = JobLog(database)
        self.joblog.create_tables()
        self.broker = RedisBroker(url=redis_url, namespace=f"bench-{uuid.uuid4().hex[:8]}")
        self.broker.add_middleware(JobLogMiddleware(self.joblog))
        dramatiq.set_broker(self.broker)
        several = [Exclusive(f"{name}:{{n}}", on_conflict="wait") for name in "abc"]
        kinds = {
            "plain": None,
            "a rate of 1,000 a second": Rate("all", 1_000, per=1_000),
            f"{keys} keys, few jobs each": Exclusive("{key}", on_conflict="wait"),
            "three keys a job": several,
        }
        self.actors = {
            name: dramatiq.actor(_nothing, actor_name=f"kind-{number}", exclusive=need)
            for number, (name, need) in enumerate(kinds.items())
        }

    def rate(self, name: str, jobs: int) -> float:
        """Return how many jobs of a kind are drained in a second."""
        done = self.joblog.jobs.of_actor(self.actors[name].actor_name).finished()
        wanted = done.count() + jobs
        for n in range(jobs):
            self.actors[name].send(f"{uuid.uuid4().hex}", n % self.keys)
        self.joblog.writer.flush()
        worker = dramatiq.Worker(self.broker, worker_threads=8)
        began = time.monotonic()
        worker.start()
        try:
            self.broker.join("default", interval=5)
            while done.clone().count() < wanted:
                # Those that wait come in later.
                time.sleep(0.005)
            return jobs / (time.monotonic() - began)
        finally:
            worker.stop()

    def close(self) -> None:
        self.broker.close()
        self.joblog.close()


def _nothing(n: str, key: int) -> None:
    """Do nothing."""


def measure(bench: Bench, rounds: int, jobs: int) -> None:
    """Print what each kind costs a job beside the same without."""
    rates: dict[str, list[float]] = {name: [] for name in bench.actors}
    for _ in range(rounds):
        for name, found in rates.items():
            found.append(bench.rate(name, jobs))
    plain = statistics.median(rates["plain"])
    print(f"  {'plain':30}{plain:8.0f}/s")
    for name, found in rates.items():
        if name != "plain":
            middle = statistics.median(found)
            more = 1000 / middle - 1000 / plain
            print(f"  {name:30}{middle:8.0f}/s {middle / plain:6.2f} {more:6.2f} ms a job more")


def main() -> None:
    """Measure on the databases that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--database", choices=["both", "postgresql", "sqlite"], default="both")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    redis_server = servers.start_redis()
    started = []
    with tempfile.TemporaryDirectory() as folder:
        databases = {"SQLite": f"sqlite:///{folder}/jobs.db"}
        if args.database != "sqlite":
            postgres = servers.start_postgres(fsync=True)
            started.append(postgres)
            databases[postgres.name] = postgres.url
        if args.database == "postgresql":
            del databases["SQLite"]
        for name, url in databases.items():
            bench = Bench(redis_server.url, url, args.keys)
            print(f"{name}, {redis_server.name}, {args.rounds} rounds of {args.jobs} jobs")
            measure(bench, args.rounds, args.jobs)
            bench.close()
    for server in (redis_server, *started):
        server.stop()


if __name__ == "__main__":
    main()
