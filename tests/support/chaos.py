r"""Chaos: kill, pause and disconnect everything, then compare the log with the jobs' own records.

    python tests/support/chaos.py [--jobs N] [--kills N] [--outages N] [--database sqlite] \
        [--seed N]

Real brokers and databases, several worker processes of eight threads.  Faults are derived from the
printed seed.  In the end all jobs must have ended, and each row is compared with the job's own
record; the table shows jobs, faults of each kind, and wrong rows.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
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

import brokers
import dramatiq
import fleet
import peewee
import psycopg
import pymysql
import redis
import servers
from chaos_check import Findings, check
from proxy import Proxy

from dramatiq_joblog import JobLog, JobLogMiddleware
from dramatiq_joblog.states import FINAL

HERE = Path(__file__).resolve().parent
KEYS = 128
START = {"mariadb": servers.start_mysql, "postgresql": servers.start_postgres}
#: The number of jobs sent ahead of the faults, so that there is always work.
AHEAD = 300
#: Seconds in which some job must end once all are sent; until then the rest may take any time.
#: A test is stopped after 120 seconds, and must say before that what it waits for.
STANDSTILL = 60
#: Seconds without an end after which all workers are restarted.
RESTARTED_AFTER = 25


@dataclass
class Worker:
    """One ``dramatiq`` command on a module, restarted whenever it is killed."""

    environment: dict[str, str]
    log: Path
    module: str = "chaos_worker"
    #: The separate host that it runs on; None for this one.
    host: str | None = None
    process: subprocess.Popen = None

    def start(self):
        command = [sys.executable, "-m", "dramatiq", self.module, "-p", "1", "-t", "8"]
        if self.host is not None:
            command = fleet.on_host(self.host, command)
        with self.log.open("ab") as output:
            self.process = servers.launch(
                command,
                on_parent_death=signal.SIGKILL,
                cwd=HERE,
                env=os.environ | self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self):
        self.signal(signal.SIGCONT)
        pid = self.process.pid
        if self.host is not None:
            # The process that created the host ignores the signal.
            [pid] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGTERM)

    def join(self):
        """Wait until it has ended after :meth:`terminate`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=40)
        # Any remaining process, including its parent.
        self.kill()


@dataclass
class Chaos:
    """A run: its servers, workers and faults."""

    folder: Path
    database: str
    seed: int
    processes: int = 4
    acks: str = "auto"
    module: str = "chaos_worker"
    #: ``redis`` or ``rabbit``.
    kind: str = "redis"
    #: Whether Redis is restarted, and keeps its messages.
    durable: bool = True
    #: Whether every second worker is on a separate host.
    hosts: bool = False
    faults: Counter = field(default_factory=Counter)

    def __enter__(self):
        for name in ("records", "keys", "logs"):
            (self.folder / name).mkdir()
        self.random = random.Random(self.seed)
        self.over = threading.Event()
        #: One for each thread, so that threads do not affect each other's sequence.
        self.dice = {name: random.Random(f"{self.seed}-{name}") for name in ("fast", "slow")}
        self.message_server = self._start_broker()
        self.broker_proxy, broker_url = behind_proxy(self.message_server.url)
        self.server = self.proxy = None
        self.path = self.folder / "jobs.db"
        url = self.url = f"sqlite:///{self.path}"
        if self.database != "sqlite":
            self.server = START[self.database]()
            self.url = self.server.url
            self.proxy, url = behind_proxy(self.url)
        self.joblog = JobLog(self.url, spool=self.folder / "unused")
        self.joblog.create_tables()
        # The sender has a log too: its rows of enqueued jobs meet the same outages.
        self.sender = JobLog(url, spool=self.folder / "spool")
        self.broker = brokers.connect(self.message_server.url, namespace="chaos")
        self.broker.add_middleware(JobLogMiddleware(self.sender))
        self.broker.declare_queue("default")
        environment = {
            "CHAOS_DATABASE": url,
            "CHAOS_FOLDER": str(self.folder),
            "CHAOS_ACKS": self.acks,
            "CHAOS_BROKER": broker_url,
        }
        self.workers = [
            Worker(
                environment,
                self.folder / "logs" / f"worker-{n}.log",
                self.module,
                host="another" if self.hosts and n % 2 else None,
            )
            for n in range(self.processes)
        ]
        for worker in self.workers:
            worker.start()
        return self

    def _start_broker(self):
        if self.kind == "rabbit":
            return servers.start_rabbitmq()
        return servers.start_redis(durable=self.durable)

    def __exit__(self, *_):
        for worker in self.workers:
            worker.kill()
        for log in (self.joblog, self.sender):
            log.close()
        brokers.disconnect(self.broker)
        for proxy in (self.proxy, self.broker_proxy):
            if proxy is not None:
                proxy.close()
        for server in (self.server, self.message_server):
            if server is not None:
                server.stop()
        self.over.set()

    # Jobs

    def send(self, number):
        """Send one job; the driver declares no actor, so the arguments describe the run."""
        fails = self.random.choice([0, 0, 0, 1, 2, 9])
        milliseconds = self.random.choice([0, 1, 5, 20, 100, 300])
        actor, args = "plain", (number, fails, milliseconds)
        if number % 10 == 0:
            key = f"key-{self.random.randrange(KEYS)}"
            actor, args = "guarded", (number, fails, min(milliseconds, 20), key)
        message = dramatiq.Message("default", actor, args, {}, {})
        while True:
            try:
                self.broker.enqueue(message)
            except (dramatiq.BrokerError, redis.RedisError):
                time.sleep(0.1)
            else:
                return

    def send_all(self, jobs):
        """Send as many jobs as the faults so far allow, so that each fault meets work."""
        for number in range(jobs):
            while number >= self.allowed:
                time.sleep(0.02)
            self.send(number)

    # Faults

    def kill(self, dice):
        """SIGKILL a worker process."""
        worker = dice.choice(self.workers)
        worker.kill()
        worker.start()
        time.sleep(dice.uniform(0.1, 1.0))

    def cut(self, dice):
        """Cut every connection to the database, or to the broker."""
        dice.choice([self.proxy or self.broker_proxy, self.broker_proxy]).cut()
        time.sleep(dice.uniform(0.1, 0.6))

    def pause(self, dice):
        """SIGSTOP a worker process, perhaps for longer than its lease and heartbeat timeout."""
        worker = dice.choice(self.workers)
        worker.signal(signal.SIGSTOP)
        time.sleep(dice.uniform(1.0, 7.0))
        worker.signal(signal.SIGCONT)

    def outage(self, dice):
        """Make the log's database unavailable for a while."""
        ways = ["lock"]
        if self.server is not None:
            ways += ["refuse", "hang", "restart", "stop"]
        if self.database == "postgresql":
            ways.append("read_only")
        way = dice.choice(ways)
        with getattr(self, f"_{way}")():
            time.sleep(dice.uniform(0.5, 6.0))
        self.faults[f"outage: {way.replace('_', ' ')}"] += 1

    @contextlib.contextmanager
    def _refuse(self):
        self.proxy.refuse()
        yield
        self.proxy.resume()

    @contextlib.contextmanager
    def _hang(self):
        self.proxy.hang()
        yield
        self.proxy.resume()

    @contextlib.contextmanager
    def _restart(self):
        self.server.restart()
        yield
        self.ask_server("SELECT 1")

    @contextlib.contextmanager
    def _stop(self):
        self.server.process.send_signal(self.server.stop_signal)
        self.server.process.wait(timeout=30)
        yield
        self.server.process = self.server.again()
        self.ask_server("SELECT 1")

    @contextlib.contextmanager
    def _read_only(self):
        for value in ("on", "off"):
            self.ask_server(
                f"ALTER SYSTEM SET default_transaction_read_only = {value}",
                "SELECT pg_reload_conf()",
            )
            if value == "on":
                yield

    @contextlib.contextmanager
    def _lock(self):
        if self.database == "postgresql":
            with psycopg.connect(self.url, options="-c default_transaction_read_only=off") as other:
                other.execute("LOCK TABLE joblog_job IN ACCESS EXCLUSIVE MODE")
                yield
            return
        if self.database == "mariadb":
            with contextlib.closing(self._connect()) as other:
                other.cursor().execute("LOCK TABLES joblog_job WRITE")
                yield
            return
        other = sqlite3.connect(self.path, isolation_level=None, timeout=60)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("COMMIT")
        other.close()

    def ask_server(self, *statements):
        """Wait until the database server responds."""
        while True:
            try:
                with contextlib.closing(self._connect()) as connection:
                    for statement in statements:
                        connection.cursor().execute(statement)
            except (psycopg.OperationalError, pymysql.MySQLError):
                time.sleep(0.1)  # it is still starting
            else:
                return

    def _connect(self):
        if self.database == "postgresql":
            return psycopg.connect(self.url, autocommit=True)
        return pymysql.connect(**servers.mysql_options(self.url), autocommit=True)

    def redis_away(self, dice):
        """Restart a durable Redis, or refuse its connections for a while."""
        if dice.random() < 0.5:
            self.message_server.restart()
            return
        self.broker_proxy.refuse()
        time.sleep(dice.uniform(0.2, 3.0))
        self.broker_proxy.resume()

    def run(self, jobs, faults):
        """Send *jobs* during all *faults*; quick and slow faults run concurrently."""
        quick = ("kill", "cut")
        plans = {
            "fast": [name for name in faults for _ in range(faults[name]) if name in quick],
            "slow": [name for name in faults for _ in range(faults[name]) if name not in quick],
        }
        total = sum(faults.values())
        self.allowed = AHEAD
        counting, struck = threading.Lock(), threading.Event()
        failed: list[Exception] = []

        def strike(kind):
            dice = self.dice[kind]
            dice.shuffle(plans[kind])
            for number, name in enumerate(plans[kind]):
                # Spread the quick ones over the duration of the slow ones.
                while kind == "fast" and not struck.is_set() and behind(number):
                    time.sleep(0.05)
                getattr(self, name)(dice)
                with counting:
                    self.faults[name] += 1
                    done = sum(self.faults[name] for name in faults)
                    self.allowed = jobs * (done + 1) // (total + 1) + AHEAD

        def behind(number):
            slow = sum(self.faults[name] for name in faults if name not in quick)
            return slow * len(plans["fast"]) < number * len(plans["slow"])

        def strike_slowly():
            try:
                strike("slow")
            except Exception as e:  # noqa: BLE001 - it is raised by the main thread
                failed.append(e)
            struck.set()
            # If this thread ended, its child processes would get the parent-death signal.
            self.over.wait()

        sender = threading.Thread(target=self.send_all, args=(jobs,), daemon=True)
        slow = threading.Thread(target=strike_slowly, daemon=True)
        for thread in (sender, slow):
            thread.start()
        strike("fast")
        struck.wait()
        self.allowed = jobs
        if failed:
            raise failed[0]
        sender.join()

    def drain(self, jobs):
        """Wait until every job has ended and nothing is left in the broker; stop the workers.

        Give up once nothing has ended for a while, and print what is left.
        """
        since = restarted = time.monotonic()
        fewest, failure = None, None
        while time.monotonic() < since + STANDSTILL:
            self._start_ended_workers()
            try:
                left = sum(self.left(jobs).values())
            except (peewee.PeeweeException, redis.RedisError, dramatiq.BrokerError) as e:
                # A server that was just started may not respond yet.
                failure = e
            else:
                if not left:
                    break
                if fewest is None or left < fewest:
                    since = restarted = time.monotonic()
                    fewest = left
            if time.monotonic() - restarted > RESTARTED_AFTER:
                self._restart_workers()
                restarted = time.monotonic()
            time.sleep(0.5)
        else:
            print(f"nothing ends; fewest: {fewest}, last failure: {failure!r}")
            self.print_left(jobs)
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.join()
        self.sender.close()

    def _start_ended_workers(self):
        for worker in self.workers:
            if worker.process.poll() is not None:
                worker.start()

    def _restart_workers(self):
        # In Redis, a message whose delivery was interrupted stays assigned to its worker until
        # that worker is gone.
        for worker in self.workers:
            self.faults["kill"] += 1
            worker.kill()
            worker.start()

    def left(self, jobs):
        """Return what has not ended yet, by location."""
        self.joblog.release()
        spools = len(list((self.folder / "spool").glob("*.spool")))
        if self.kind == "rabbit":
            messages = sum(self.broker.get_queue_message_counts("default")[:2])
        else:
            queues = ("chaos:default.msgs", "chaos:default.DQ.msgs")
            messages = sum(self.broker.client.hlen(queue) for queue in queues)
        ended = self.joblog.Job.select().where(self.joblog.Job.state.in_(list(FINAL))).count()
        left = {"jobs": jobs - ended, "messages": messages, "spools": spools}
        return {name: number for name, number in left.items() if number}

    def print_left(self, jobs):
        """Print what has not ended: counts, rows of jobs, locks and workers, and messages."""
        log = self.joblog
        print(self.left(jobs), [path.name for path in (self.folder / "spool").glob("*")])
        unended = log.Job.select().where(log.Job.state.not_in(list(FINAL)))
        for query in (unended, log.Lock.select(), log.Worker.select()):
            for row in query.dicts():
                print({name: value for name, value in row.items() if value is not None})
        if self.kind == "redis":
            client, queue = self.broker.client, "chaos:default"
            for name in (f"{queue}.msgs", f"{queue}.DQ.msgs"):
                print(name, client.hgetall(name))
            acks = {key: client.smembers(key) for key in client.keys("chaos:__acks__.*")}
            print({name: client.lrange(name, 0, -1) for name in (queue, f"{queue}.DQ")}, acks)
        log.release()


def behind_proxy(url):
    """Return a proxy in front of a server, and the server's URL through it."""
    proxy = Proxy(url)
    return proxy, proxy.through(url)


def run(folder: Path, database: str, jobs: int, faults: dict[str, int], seed: int, **options):
    """Run it; return the findings, and the table of jobs, faults of each kind, and wrong rows."""
    began = time.monotonic()
    with Chaos(folder, database, seed, **options) as chaos:
        chaos.run(jobs, faults)
        chaos.drain(jobs)
        found = check(chaos.joblog, folder, jobs)
        left = chaos.left(jobs)
        if left:
            found.add("left", str(left))
        if found.count:
            rows = (*chaos.joblog.Job.select().dicts(), *chaos.joblog.Failure.select().dicts())
            (folder / "rows").write_text("\n".join(map(repr, rows)))
        return found, table_of(chaos, jobs, found, time.monotonic() - began)


def table_of(chaos: Chaos, jobs: int, found: Findings, seconds: float) -> str:
    """Return the table as text, one number per line."""
    failure = chaos.joblog.Failure
    interrupted = failure.select().where(failure.outcome == "interrupted").count()
    names = {
        "kill": "SIGKILLs of a worker process",
        "outage": "outages of the database",
        "redis_away": "restarts and outages of Redis",
        "cut": "cuts of all connections",
        "pause": "pauses of a worker process",
    }
    lines = {"jobs": jobs, "runs of them": found.runs}
    lines |= {text: chaos.faults[name] for name, text in names.items()}
    lines |= {f"  {n.split(': ')[1]}": c for n, c in sorted(chaos.faults.items()) if ": " in n}
    lines |= {"jobs whose retry Redis refused": found.gone, "runs interrupted": interrupted}
    lines |= {"seconds": round(seconds), "wrong rows": found.count}
    return "\n".join(f"{name:34}{number:>8,}" for name, number in lines.items())


def main() -> int:
    """Run it, and return 0 if no row is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--database", choices=["mariadb", "postgresql", "sqlite"], default="postgresql"
    )
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--outages", type=int, default=6)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    print(f"seed {args.seed}, {args.database}", flush=True)
    faults = {
        "kill": args.kills,
        "outage": args.outages,
        "pause": max(1, args.kills // 10),
        "cut": max(1, args.outages),
        "redis_away": max(1, args.outages // 2),
    }
    folder = Path(tempfile.mkdtemp(prefix="joblog-chaos-"))
    found, table = run(
        folder, args.database, args.jobs, faults, args.seed, processes=args.processes
    )
    print(table)
    for kind, texts in found.wrong.items():
        print(f"{kind}: {len(texts)}")
        for text in texts[:5]:
            print(f"  {text}")
    if found.count:
        print(f"all of it is in {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if found.count else 0


if __name__ == "__main__":
    sys.exit(main())
