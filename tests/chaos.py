"""Chaos: kill, pause and cut everything, then hold the log against the jobs' own record.

    python tests/chaos.py [--jobs N] [--kills N] [--outages N] [--database sqlite] [--seed N]

Real Redis, PostgreSQL or SQLite, several worker processes.  Each fault comes from the printed
seed.  In the end all must have ended, and every job's row is held against what the job itself
wrote down; the table tells jobs, faults of each kind, and wrong rows.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import dramatiq
import redis
import servers
from dramatiq.brokers.redis import RedisBroker
from proxy import Proxy

from dramatiq_joblog import JobLog
from dramatiq_joblog.states import FINAL

HERE = Path(__file__).resolve().parent
KEYS = ("alpha", "beta", "gamma", "delta")


@dataclass
class Worker:
    """One ``dramatiq`` command on a module, started again whenever it was killed."""

    environment: dict[str, str]
    log: Path
    module: str = "chaos_worker"
    process: subprocess.Popen = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = servers.launch(
                [sys.executable, "-m", "dramatiq", self.module, "-p", "1", "-t", "8"],
                on_parent_death=signal.SIGKILL,
                cwd=HERE,
                env=os.environ | self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass
class Chaos:
    """A run: its servers, its workers, its faults."""

    folder: Path
    database: str
    seed: int
    processes: int = 4
    module: str = "chaos_worker"
    faults: Counter = field(default_factory=Counter)
    #: When each process group was paused: pid, from, to.
    pauses: list[tuple[float, float]] = field(default_factory=list)

    def __enter__(self):
        self.random = random.Random(self.seed)
        for name in ("records", "keys", "logs"):
            (self.folder / name).mkdir()
        self.redis = servers.start_redis(durable=True)
        parts = urlsplit(self.redis.url)
        self.redis_proxy = Proxy(parts.hostname, parts.port)
        self.postgres = self.proxy = None
        if self.database == "postgresql":
            self.postgres = servers.start_postgres()
            parts = urlsplit(self.postgres.url)
            self.proxy = Proxy(parts.hostname, parts.port)
            url = self.postgres.url
            self.worker_url = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{self.proxy.port}", url)
        else:
            url = self.worker_url = f"sqlite:///{self.folder / 'jobs.db'}"
        self.joblog = JobLog(url, spool=self.folder / "driver-spool")
        self.joblog.create_tables()
        self.broker = RedisBroker(url=self.redis.url, namespace="chaos")
        self.broker.declare_queue("default")
        environment = {
            "CHAOS_DATABASE": self.worker_url,
            "CHAOS_FOLDER": str(self.folder),
            "CHAOS_REDIS": re.sub(
                r"127\.0\.0\.1:\d+", f"127.0.0.1:{self.redis_proxy.port}", self.redis.url
            ),
        }
        self.workers = [
            Worker(environment, self.folder / "logs" / f"worker-{n}.log", self.module)
            for n in range(self.processes)
        ]
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *_):
        for worker in self.workers:
            worker.kill()
        self.joblog.close()
        self.broker.close()
        self.broker.client.connection_pool.disconnect()
        for server in (self.proxy, self.redis_proxy):
            if server is not None:
                server.close()
        for server in (self.postgres, self.redis):
            if server is not None:
                server.stop()

    # Jobs

    def send(self, number: int) -> None:
        """Send one job; the driver's broker has no log, so rows begin with their start."""
        fails = self.random.choice([0, 0, 0, 1, 2, 9])
        milliseconds = self.random.choice([0, 1, 5, 20, 100, 300])
        if number % 4 == 0:
            key = self.random.choice(KEYS)
            args = (number, key, fails, min(milliseconds, 20))
            message = dramatiq.Message("default", "guarded", args, {}, {})
        else:
            message = dramatiq.Message("default", "plain", (number, fails, milliseconds), {}, {})
        self.broker.enqueue(message)

    # Faults

    def kill(self) -> None:
        """SIGKILL a worker process."""
        worker = self.random.choice(self.workers)
        worker.kill()
        worker.start()

    def pause(self) -> None:
        """SIGSTOP a worker process for longer than its lease and its heartbeat."""
        worker = self.random.choice(self.workers)
        worker.signal(signal.SIGSTOP)
        began = time.time()
        time.sleep(self.random.uniform(1.0, 7.0))
        worker.signal(signal.SIGCONT)
        self.pauses.append((began, time.time()))

    def outage(self) -> None:
        """Take the log's database away for a while."""
        seconds = self.random.uniform(0.5, 6.0)
        if self.proxy is None:
            other = sqlite3.connect(self.folder / "jobs.db", isolation_level=None, timeout=30)
            other.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            other.execute("COMMIT")
            other.close()
            return
        how = self.random.choice(["refuse", "hang", "restart"])
        if how == "restart":
            self.postgres.restart()
            return
        getattr(self.proxy, how)()
        time.sleep(seconds)
        self.proxy.resume()

    def cut(self) -> None:
        """Cut every connection to the database, or to Redis."""
        proxy = self.random.choice([self.proxy or self.redis_proxy, self.redis_proxy])
        proxy.cut()

    def redis_away(self) -> None:
        """Restart Redis, which keeps its messages, or refuse its connections for a while."""
        if self.random.random() < 0.5:
            self.redis.restart()
            return
        self.redis_proxy.refuse()
        time.sleep(self.random.uniform(0.2, 3.0))
        self.redis_proxy.resume()

    def run(self, jobs: int, faults: dict[str, int]) -> None:
        """Send *jobs* while all *faults* come in an order of the seed's."""
        todo = [name for name, number in faults.items() for _ in range(number)]
        self.random.shuffle(todo)
        sent = threading.Event()
        self.allowed = jobs // (len(todo) + 1)

        def send_all():
            for number in range(jobs):
                while True:
                    try:
                        self.send(number)
                        break
                    except (dramatiq.BrokerError, redis.RedisError):
                        time.sleep(0.1)
                # Spread over the faults, so that each of them meets work.
                while number >= self.allowed:
                    time.sleep(0.02)
            sent.set()

        thread = threading.Thread(target=send_all, daemon=True)
        thread.start()
        for number, name in enumerate(todo, start=1):
            time.sleep(self.random.uniform(0.05, 0.6))
            getattr(self, name)()
            self.allowed = jobs * (number + 1) // (len(todo) + 1)
            self.faults[name] += 1
            print(f"\r{number} of {len(todo)} faults", end="", flush=True)
        self.allowed = jobs
        sent.wait()
        print()

    def drain(self, jobs: int, timeout: float = 240) -> None:
        """Wait until every job has ended and nothing is left in the broker."""
        deadline = time.monotonic() + timeout
        queues = ("chaos:default.msgs", "chaos:default.DQ.msgs")
        while time.monotonic() < deadline:
            for worker in self.workers:
                if worker.process.poll() is not None:
                    worker.start()
            ended = self.joblog.jobs.in_state(*FINAL).count()
            left = sum(self.broker.client.hlen(queue) for queue in queues)
            spools = list((self.folder / "spool").glob("*.spool"))
            if ended >= jobs and not left and not spools:
                break
            time.sleep(0.2)
        for worker in self.workers:
            worker.stop()


@dataclass
class Findings:
    """What the check found, by kind, with examples."""

    wrong: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, text: str) -> None:
        self.wrong.setdefault(kind, []).append(text)

    @property
    def count(self) -> int:
        return sum(map(len, self.wrong.values()))


def records(folder: Path) -> dict[str, list[list[str]]]:
    """Return what the jobs wrote down, by jid, in the order of time."""
    told: dict[str, list[list[str]]] = {}
    for path in (folder / "records").iterdir():
        for line in path.read_text().splitlines():
            words = line.split()
            told.setdefault(words[1], []).append(words)
    for lines in told.values():
        lines.sort(key=lambda words: float(words[4]))
    return told


def check(chaos: Chaos, jobs: int) -> Findings:
    """Hold every row against what its job wrote down."""
    found = Findings()
    told = records(chaos.folder)
    rows = {job.jid: job for job in chaos.joblog.jobs}
    failures: dict[str, list] = {}
    for failure in chaos.joblog.Failure.select().order_by(chaos.joblog.Failure.id):
        failures.setdefault(failure.jid, []).append(failure)
    if len(rows) != jobs:
        found.add("number of rows", f"{len(rows)} instead of {jobs}")
    for jid in told.keys() | rows.keys():
        if jid not in rows or jid not in told:
            found.add("missing", f"{jid}: in the log {jid in rows}, in the record {jid in told}")
            continue
        for kind, text in faults_of(rows[jid], failures.get(jid, []), told[jid]):
            found.add(kind, f"{jid}: {text}")
    for text in side_by_side(told, chaos.pauses):
        found.add("side by side", text)
    for lock in chaos.joblog.Lock.select().where(chaos.joblog.Lock.owner.is_null(False)):
        found.add("stuck section", f"{lock.key} by {lock.owner}")
    for path in (chaos.folder / "spool").glob("*.spool"):
        found.add("spool left", path.name)
    return found


def faults_of(job, failures, lines):
    """Yield what differs between a row and a job's own record of it."""
    args = job.args
    fails = args[1] if job.actor == "plain" else args[2]
    state, attempt = ("finished", fails + 1) if fails < 4 else ("dead", 4)
    if (job.state, job.attempt) != (state, attempt):
        yield "state", f"{job.state} after {job.attempt}, and should be {state} after {attempt}"
    began = {words[3]: int(words[2]) for words in lines if words[0] == "began"}
    failed = [int(words[2]) for words in lines if words[0] == "failed"]
    finished = [int(words[2]) for words in lines if words[0] == "finished"]
    ended = {words[3] for words in lines if words[0] in ("failed", "finished")}
    kept = Counter(f.attempt for f in failures if f.outcome in ("retried", "dead"))
    interrupted = sum(f.outcome == "interrupted" for f in failures)
    for number, times in Counter(failed).items():
        # A run that failed and was killed before its outcome was committed is interrupted.
        if kept[number] < 1 and state != job.state:
            yield "failure lost", f"attempt {number} failed {times} times, and {kept} are kept"
    if kept and max(kept.values()) > 1 and interrupted == 0:
        yield "failure twice", f"{kept}"
    runs = sum(kept.values()) + interrupted + (state == "finished")
    if runs < len(began):
        yield "run lost", f"{len(began)} began, {runs} are kept: {failures}"
    if len(ended) > runs:
        yield "run lost", f"{len(ended)} ended, {runs} are kept"
    if state == "finished" and not finished:
        yield "never finished", f"{lines}"


def side_by_side(told, pauses):
    """Yield the jobs that were in a section with another, but for those that were paused."""
    entries = [words for lines in told.values() for words in lines if len(words) > 5]
    for words in entries:
        # One that was paused for longer than its lease is told so: another may be inside.
        at = float(words[4])
        if words[0] == "second" and not any(a <= at <= b + 1 for a, b in pauses):
            yield " ".join(words)
    fences = Counter((words[5], words[6]) for words in entries if words[0] == "began")
    for (key, fence), times in fences.items():
        if times > 1:
            yield f"fence {fence} of {key} was given {times} times"


def main() -> int:
    """Run it, and return 0 if no row is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--outages", type=int, default=6)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    print(f"seed {args.seed}")
    faults = {
        "kill": args.kills,
        "outage": args.outages,
        "pause": max(1, args.kills // 10),
        "cut": max(1, args.outages),
        "redis_away": max(1, args.outages // 2),
    }
    folder = Path(tempfile.mkdtemp(prefix="joblog-chaos-"))
    began = time.monotonic()
    with Chaos(folder, args.database, args.seed, processes=args.processes) as chaos:
        chaos.run(args.jobs, faults)
        chaos.drain(args.jobs)
        found = check(chaos, args.jobs)
        interrupted = (
            chaos.joblog.Failure.select()
            .where(chaos.joblog.Failure.outcome == "interrupted")
            .count()
        )
    names = {"kill": "kills", "outage": "outages", "pause": "pauses", "cut": "cuts"}
    names["redis_away"] = "Redis away"
    print(f"{args.database}, {time.monotonic() - began:.0f} s, in {folder}")
    table = {"jobs": args.jobs} | {names[name]: n for name, n in chaos.faults.items()}
    table |= {"runs interrupted": interrupted, "wrong": found.count}
    for name, number in table.items():
        print(f"  {name:18}{number:>8}")
    for kind, texts in found.wrong.items():
        print(f"{kind}: {len(texts)}")
        for text in texts[:5]:
            print(f"  {text}")
    return 1 if found.count else 0


if __name__ == "__main__":
    sys.exit(main())
