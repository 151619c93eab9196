"""What a critical section costs, and how soon the next job is in it.

A worker of eight threads on a real Redis, with the log on SQLite and on PostgreSQL:
- jobs in a section with a key of their own, beside the same jobs without one, in turn;
- the time between the end of a job in a section and the start of the next one, as the jobs
  themselves tell it, when 1, 8 and 50 others wait.

    python benchmarks/sections.py [--rounds 5] [--jobs 1000]
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import servers  # noqa: E402

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware  # noqa: E402

WAITERS = (1, 8, 50)


class Bench:
    """A log, a broker and a worker on one database."""

    def __init__(self, redis_url: str, database: str) -> None:
        self.joblog = JobLog(database)
        self.joblog.create_tables()
        self.broker = RedisBroker(url=redis_url, namespace=f"bench-{uuid.uuid4().hex[:8]}")
        self.broker.add_middleware(JobLogMiddleware(self.joblog))
        dramatiq.set_broker(self.broker)
        self.stays: list[tuple[float, float]] = []
        self.entered, self.leave = threading.Event(), threading.Event()
        waits = {"on_conflict": "wait"}

        @dramatiq.actor
        def plain(n):
            pass

        @dramatiq.actor(exclusive=Exclusive("{n}", **waits))
        def own_key(n):
            pass

        @dramatiq.actor(exclusive=Exclusive("one", **waits))
        def one_key(milliseconds):
            began = time.monotonic()
            time.sleep(milliseconds / 1000)
            self.stays.append((began, time.monotonic()))

        @dramatiq.actor(exclusive=Exclusive("one", **waits))
        def holder():
            self.entered.set()
            self.leave.wait(120)
            self.stays.append((0.0, time.monotonic()))

        self.actors = {"plain": plain, "own key": own_key}
        self.one_key, self.holder = one_key, holder

    def rate(self, name: str, jobs: int) -> float:
        """Return how many jobs of an actor are drained in a second."""
        for n in range(jobs):
            self.actors[name].send(f"{uuid.uuid4().hex}-{n}")
        self.joblog.writer.flush()
        began = time.monotonic()
        self.work(lambda: self.broker.join("default", interval=5))
        return jobs / (time.monotonic() - began)

    def delays(self, waiters: int, milliseconds: int) -> list[float]:
        """Return the milliseconds from each end to the next start, when *waiters* wait."""
        self.stays.clear()
        self.entered.clear()
        self.leave.clear()

        def hold():
            self.holder.send()
            self.entered.wait(30)
            for _ in range(waiters):
                self.one_key.send(milliseconds)
            while self.joblog.waiters("one").count() < waiters:
                time.sleep(0.05)
            time.sleep(2.0)
            self.leave.set()
            self.broker.join("default", interval=50)

        self.work(hold)
        stays = sorted(self.stays, key=lambda stay: stay[1])
        return [(after[0] - before[1]) * 1000 for before, after in itertools.pairwise(stays)]

    def work(self, function) -> None:
        worker = dramatiq.Worker(self.broker, worker_threads=8)
        worker.start()
        try:
            function()
        finally:
            worker.stop()

    def close(self) -> None:
        self.broker.close()
        self.joblog.close()


def cost(bench: Bench, rounds: int, jobs: int) -> None:
    """Print what a section costs that nobody else wants."""
    ratios, rates = [], {"plain": [], "own key": []}
    for _ in range(rounds):
        for name, found in rates.items():
            found.append(bench.rate(name, jobs))
        ratios.append(rates["own key"][-1] / rates["plain"][-1])
    plain, own = (statistics.median(rates[name]) for name in rates)
    print(
        f"  {jobs} jobs: {plain:.0f}/s without, {own:.0f}/s each in a section of its own: "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"{1000 / own - 1000 / plain:.2f} ms a job more"
    )


def handover(bench: Bench, rounds: int, milliseconds: int) -> None:
    """Print how soon the next job is in a section."""
    for waiters in WAITERS:
        found = [bench.delays(waiters, milliseconds) for _ in range(rounds)]
        first = [delays[0] for delays in found]
        every = sorted(itertools.chain.from_iterable(found))
        middle, late = statistics.median(every), every[int(len(every) * 0.95)]
        print(
            f"  {waiters:3} wait, {milliseconds} ms each: first after "
            f"{statistics.median(first):.0f} ms (most {max(first):.0f}), "
            f"each after {middle:.0f} ms (19 of 20 within {late:.0f}, most {every[-1]:.0f}); "
            f"all in {statistics.median(map(sum, found)) / 1000:.1f} s"
        )


def main() -> None:
    """Measure on both databases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--milliseconds", type=int, default=20, help="how long each job is inside")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # a line for each message that waits
    redis_server, postgres = servers.start_redis(), servers.start_postgres(fsync=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, url in (("SQLite", f"sqlite:///{folder}/jobs.db"), (postgres.name, postgres.url)):
            bench = Bench(redis_server.url, url)
            print(f"{name}, {redis_server.name}, {args.rounds} rounds, one process of 8 threads")
            cost(bench, args.rounds, args.jobs)
            handover(bench, args.rounds, args.milliseconds)
            bench.close()
    redis_server.stop()
    postgres.stop()


if __name__ == "__main__":
    main()
