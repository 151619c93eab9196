"""How soon the next job is in a section, and what it costs that many wait for it.

Jobs of 20 milliseconds stand in line for one key, on a real Redis and each kind of database, in
one worker process of eight threads, and in four on two hosts that have a network of their own
(for root on Linux; SQLite's file is shared by processes of one host).  Each job writes down when
it was inside, by the kernel's clock, which all of them share.

    python benchmarks/handover.py [--database postgresql] [--waiters 1 50 500] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import dramatiq

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import brokers  # noqa: E402
import fleet  # noqa: E402
import servers  # noqa: E402

from dramatiq_joblog import JobLog  # noqa: E402

#: Milliseconds that each job is inside.
INSIDE = 20
#: Seconds for which it is looked what those that wait cost.
WATCHED = 10
THREADS = 8
TICKS = os.sysconf("SC_CLK_TCK")


class Line:
    """Worker processes on some hosts, and one line of jobs.

    Parameters:
      folder: Where the jobs write.
      database: The log's.
      redis: The broker's.
      hosts: How many hosts.
      processes: Of each.
    """

    def __init__(self, folder: Path, database: str, redis: str, hosts: int, processes: int) -> None:
        self.folder = folder
        self.joblog = JobLog(database)
        self.joblog.create_tables()
        self.broker = brokers.connect(redis, namespace="line")
        env = {"LINE_BROKER": redis, "LINE_DATABASE": database}
        many = {"processes": processes, "threads": THREADS}
        self.hosts = [
            fleet.Host(n, "line_worker", folder, env, **many) for n in range(1, hosts + 1)
        ]
        self.workers = hosts * processes
        # All of them are at work by then.
        self.until(lambda: self.joblog.workers.count() == self.workers)
        time.sleep(5)
        #: The share of a core that they take with nothing to do.
        self.idle = self.share()

    def measure(self, waiters: int) -> tuple[list[float], float]:
        """Return the milliseconds of each handover, and the share of a core while all waited."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self.send(folder)
        self.until(lambda: self.joblog.jobs.started().count() == 1)
        for _ in range(waiters):
            self.send(folder)
        self.until(lambda: self.joblog.waiters("line").count() == waiters)
        # Their messages are looked after by now.
        time.sleep(5)
        share = self.share()
        (folder / "go").touch()
        # In one question: between two jobs nobody is inside, and the last one no longer waits.
        self.until(lambda: self.joblog.jobs.active().count() == 0, every=1.0)
        lines = "".join(path.read_text() for path in folder.glob("stays-*")).splitlines()
        stays = sorted(tuple(map(float, line.split())) for line in lines)
        delays = [(after[0] - before[1]) * 1000 for before, after in itertools.pairwise(stays)]
        assert len(delays) == waiters, delays
        assert min(delays) > 0, "two were inside at once"
        return delays, share

    def send(self, folder: Path) -> None:
        self.broker.enqueue(dramatiq.Message("default", "in_line", (INSIDE, str(folder)), {}, {}))

    def until(self, holds, every: float = 0.2) -> None:
        deadline = time.monotonic() + 300
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError("the jobs do not come to their end")
            time.sleep(every)

    def share(self) -> float:
        """Return the share of a core that all workers take now."""
        before = self.ticks()
        time.sleep(WATCHED)
        return (self.ticks() - before) / TICKS / WATCHED

    def ticks(self) -> int:
        """Return the processor time of all workers, in ticks."""
        found = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) in {host.process.pid for host in self.hosts}:
                    found += int(fields[11]) + int(fields[12])
        return found

    def close(self) -> None:
        for host in self.hosts:
            host.stop()
        self.joblog.close()
        brokers.disconnect(self.broker)


def measure(name: str, line: Line, waiters: list[int], rounds: int) -> None:
    """Print a row for each number of waiters."""
    for number in waiters:
        # One handover a round says little of one waiter.
        found = [line.measure(number) for _ in range(rounds if number > 1 else 5 * rounds)]
        delays = sorted(itertools.chain.from_iterable(delays for delays, _ in found))
        share = statistics.median(share for _, share in found)
        print(
            f"{name:28}{line.workers:3} processes {number:4} wait: "
            f"{statistics.median(delays):4.0f} ms in the median, 19 of 20 within "
            f"{delays[int(len(delays) * 0.95)]:4.0f}; all workers together take "
            f"{100 * share:4.1f} % of a core, idle {100 * line.idle:4.1f}; "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


def run(database: str, waiters: list[int], rounds: int, fleets: list[str]) -> None:
    """Measure on one kind of database."""
    start = {"mariadb": servers.start_mysql, "postgresql": servers.start_postgres}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        redis = servers.start_redis(address=fleet.HUB)
        stack.callback(redis.stop)
        for each in fleets:
            disk = Path(folder) / each
            disk.mkdir()
            url, name = f"sqlite:///{disk}/jobs.db", "SQLite"
            if database != "sqlite":
                more = {"fsync": True} if database == "postgresql" else {}
                server = start[database](address=fleet.HUB, **more)
                stack.callback(server.stop)
                url, name = server.url, server.name
            hosts = 1 if database == "sqlite" or each == "one" else 2
            line = Line(disk, url, redis.url, hosts, 1 if each == "one" else 4 // hosts)
            try:
                measure(name, line, waiters, rounds)
            finally:
                line.close()


def main() -> None:
    """Measure on the databases that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ["sqlite", "postgresql", "mariadb"]
    parser.add_argument("--database", choices=kinds, nargs="+", default=kinds)
    parser.add_argument("--fleet", choices=["one", "four"], nargs="+", default=["one", "four"])
    parser.add_argument("--waiters", type=int, nargs="+", default=[1, 50, 500])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if (why_not := fleet.why_not()) is not None:
        sys.exit(why_not)
    for database in args.database:
        fleet.in_own_network(lambda d=database: run(d, args.waiters, args.rounds, args.fleet))


if __name__ == "__main__":
    main()
