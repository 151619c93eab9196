"""What sections and limits cost a job, beside the same jobs without.

A worker process of eight threads on a real Redis, with the log on each kind of database, and jobs
that do nothing: in a section of their own, by a rate on one key, with many keys and a few jobs of
each, with three keys a job.  Processor time is that of the process that works, and that of the
jobs without a limit is taken off; at the end bursts use up a rate, of 200 and of 1,000 a second on
one key, and it is shown how much of it was reached.

    python benchmarks/limits.py [--rounds 3] [--jobs 1000] [--keys 10000] [--database sqlite]
"""

from __future__ import annotations

import argparse
import logging
import os
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

#: Rates that are used up, in starts a second, and seconds for which a burst does that.
TIGHT, FOR = (200, 1_000), 6


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
        self.kinds = {
            "plain": None,
            "a section of its own": Exclusive("{n}", on_conflict="wait"),
            # One that this machine does not use up: what it costs to count.
            "a rate on one key": Rate("all", 10_000, per=1_000),
            f"{keys} keys, few jobs each": Exclusive("{key}", on_conflict="wait"),
            "three keys a job": several,
        }
        self.kinds |= {_used_up(limit): Rate(f"tight-{limit}", limit, per=1_000) for limit in TIGHT}
        self.actors = {
            name: dramatiq.actor(_nothing, actor_name=f"kind-{number}", exclusive=need)
            for number, (name, need) in enumerate(self.kinds.items())
        }

    def drain(self, name: str, jobs: int) -> tuple[float, float]:
        """Return how many jobs of a kind are done in a second, and milliseconds of CPU a job."""
        done = self.joblog.jobs.of_actor(self.actors[name].actor_name).finished()
        wanted = done.count() + jobs
        for n in range(jobs):
            self.actors[name].send(f"{uuid.uuid4().hex}", n % self.keys)
        self.joblog.core.writer.flush()
        worker = dramatiq.Worker(self.broker, worker_threads=8)
        began, spent = time.monotonic(), time.process_time()
        worker.start()
        try:
            # To ask Redis more often would cost what is measured.
            self.broker.join("default", interval=100)
            while done.clone().count() < wanted:
                # Those that wait come in later.
                time.sleep(0.05)
            took = time.monotonic() - began
            return jobs / took, 1000 * (time.process_time() - spent) / jobs
        finally:
            worker.stop()

    def close(self) -> None:
        self.broker.close()
        self.joblog.close()


def _used_up(limit: int) -> str:
    return f"a rate of {limit}/s that is used up"


def _nothing(n: str, key: int) -> None:
    """Do nothing."""


def measure(bench: Bench, rounds: int, jobs: int) -> None:
    """Print what each kind costs a job beside the same without."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in bench.actors}
    used_up = {limit: found.pop(_used_up(limit)) for limit in TIGHT}
    for _ in range(rounds):
        for name, figures in found.items():
            figures.append(bench.drain(name, jobs))
    plain, plain_cpu = map(statistics.median, zip(*found["plain"], strict=True))
    print(f"  {'plain':30}{plain:8.0f}/s        {plain_cpu:6.2f} ms of a core a job")
    for name, figures in found.items():
        if name != "plain":
            rate, cpu = map(statistics.median, zip(*figures, strict=True))
            print(
                f"  {name:30}{rate:8.0f}/s {rate / plain:6.2f} {cpu - plain_cpu:6.2f} ms of a core "
                f"a job more; {1000 / rate - 1000 / plain:6.2f} ms more"
            )
    for limit in used_up:
        burst = limit * FOR
        rate, cpu = bench.drain(_used_up(limit), burst)
        # As many as the limit begin at once, before any waits.
        reached = (burst - limit) / (burst / rate)
        print(
            f"  {_used_up(limit)}: {reached:.0f}/s behind the first {limit} of {burst}; "
            f"{cpu - plain_cpu:.2f} ms of a core a job more"
        )


def main() -> None:
    """Measure on the databases that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--keys", type=int, default=10_000)
    kinds = ["sqlite", "postgresql", "mariadb"]
    parser.add_argument("--database", choices=kinds, nargs="+", default=kinds)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    redis_server = servers.start_redis()
    start = {
        "postgresql": lambda: servers.start_postgres(fsync=True),
        "mariadb": servers.start_mysql,
    }
    for database in args.database:
        with tempfile.TemporaryDirectory() as folder:
            server = start[database]() if database in start else None
            url = f"sqlite:///{folder}/jobs.db" if server is None else server.url
            name = "SQLite" if server is None else server.name
            bench = Bench(redis_server.url, url, args.keys)
            load = os.getloadavg()[0]
            print(f"{name}, {redis_server.name}, {args.rounds} rounds of {args.jobs} jobs", end="")
            print(f", load {load:.1f}", flush=True)
            measure(bench, args.rounds, args.jobs)
            bench.close()
            if server is not None:
                server.stop()
    redis_server.stop()


if __name__ == "__main__":
    main()
