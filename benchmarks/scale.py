"""What the questions to a log cost, on a large table and on one a hundred times smaller.

Each question is asked as people and programs ask it, through `JobLog`, many times with other
values; the median counts.  Beside it stands what the database used to answer: its indexes, or
the tables that it had to read whole.

    python benchmarks/scale.py [--sqlite 1000000] [--postgres 10000000] [--times 15]

The large PostgreSQL takes about 7 GB of disk under TMPDIR while it runs.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import re
import statistics
import sys
import tempfile
import time
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path

import dramatiq
import psycopg
from dramatiq.brokers.stub import StubBroker
from peewee import SqliteDatabase

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "support"), str(HERE)]

import filling  # noqa: E402
import servers  # noqa: E402

from dramatiq_joblog import Alert, Expect, JobLog, JobLogMiddleware  # noqa: E402
from dramatiq_joblog.recording.heartbeat import Heartbeat  # noqa: E402

HOUR, DAY = 3_600_000, 86_400_000
#: A table that is read whole, in a plan.
_WHOLE = re.compile(r"(?:Seq Scan on|SCAN) (\w+)(?! USING)")
_INDEX = re.compile(
    r"(?:using|USING(?: COVERING)? INDEX|on|INTEGER PRIMARY KEY) (\w+(?:_\w+)+|\(rowid)"
)


def _work(number: int, name: str, day: str, *, currency: str, page: int, force: bool) -> None:
    """Take the arguments of all jobs."""


class Asked(logging.Handler):
    """Keeps the statements that peewee sends."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.statements: list[tuple] = []
        logger = logging.getLogger("peewee")
        logger.setLevel(logging.DEBUG)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        # A pool's own messages are text.
        if isinstance(record.msg, tuple):
            self.statements.append(record.msg)

    def __enter__(self):
        logging.getLogger("peewee").addHandler(self)
        return self

    def __exit__(self, *exc):
        logging.getLogger("peewee").removeHandler(self)


def questions(joblog: JobLog) -> dict:
    """Return the questions by name: functions that ask, each time with another value."""
    job = joblog.Job
    first = job.select(job.id).order_by(job.id).limit(1).scalar()
    last = job.select(job.id).order_by(job.id.desc()).limit(1).scalar()
    numbers = itertools.cycle(range(first, last, max(1, (last - first) // 97)))
    users = itertools.cycle(range(3, filling.USERS, 997))
    actors = itertools.cycle(filling.ACTORS)

    def some():
        return job.get_by_id(next(numbers))

    def ago(**of):
        return datetime.now(timezone.utc) - timedelta(**of)

    def page(text):
        return lambda: joblog.search(text() if callable(text) else text).page().jobs

    def look(rule):
        # As if it had been watched for long.
        return lambda: rule.look(joblog.core, joblog.core.locks.now(), 0)

    middle = job.get_by_id((first + last) // 2)
    older = f"{middle.created_at.timestamp() * 1000:.0f}-{middle.id}"
    day = middle.created_at
    hour = f"since:{day:%Y-%m-%dT%H:%M} until:{day + timedelta(hours=1):%Y-%m-%dT%H:%M}"
    broker = StubBroker(middleware=[JobLogMiddleware(joblog)])
    for name in filling.ACTORS:
        dramatiq.actor(_work, actor_name=name, broker=broker)
    heartbeat = Heartbeat(joblog.core.tables, timeout=30_000)
    dead = itertools.cycle([j.jid for j in joblog.jobs.dead().limit(50)])

    return {
        "a job by its jid": lambda: joblog.get(some().jid),
        "in progress for a user": lambda: (
            joblog.jobs.in_progress().for_user(next(users)).excluding("x").exists()
        ),
        "newest page, all": lambda: joblog.jobs.page().jobs,
        "newest page, dead": lambda: joblog.jobs.dead().page().jobs,
        "newest page, finished": lambda: joblog.jobs.finished().page().jobs,
        "newest page, in progress": lambda: joblog.jobs.in_progress().page().jobs,
        "a page half way down, all": lambda: joblog.jobs.page(before=older).jobs,
        "a page half way down, dead": lambda: joblog.jobs.dead().page(before=older).jobs,
        "counts by state": joblog.counts,
        "stats of an hour": lambda: joblog.stats(since=ago(hours=1)),
        "stats of a day": lambda: joblog.stats(since=ago(days=1)),
        "stats of thirty days": lambda: joblog.stats(since=ago(days=30)),
        "dead in groups": joblog.dead_groups,
        "oldest waiting": joblog.oldest,
        "id:": page(lambda: f"id:{some().jid}"),
        "a jid as text": page(lambda: some().jid),
        "state:dead": page("state:dead"),
        "type: of a tenth": page("type:type_03"),
        "type: unknown": page("type:nothing"),
        "actor:": page(lambda: f"actor:{next(actors)}"),
        "actor: unknown": page("actor:nothing"),
        "user:": page(lambda: f"user:{next(users)}"),
        "user: unknown": page("user:nobody"),
        "queue:": page("queue:slow"),
        "queue: unknown": page("queue:nothing"),
        "error:": page("error:KeyError"),
        "error: unknown": page("error:NoSuchError"),
        "worker: a host": page("worker:worker-07"),
        "worker: unknown": page("worker:nowhere"),
        "section:": page(lambda: f"section:user:{next(users) % 10_000}"),
        "since: an hour": page("since:1h"),
        "until: half way": page(f"until:{day:%Y-%m-%dT%H:%M}"),
        "an hour half way, dead": page(f"state:dead {hour}"),
        "text: part of an error": page("MissingError"),
        "state:dead type: actor: since:": page("state:dead type:type_03 since:7d"),
        "state:finished user:": page(lambda: f"state:finished user:{next(users)}"),
        "complete actor:": lambda: joblog.complete("actor", "im"),
        "children of a job": lambda: list(some().children),
        "waiting for a section": lambda: list(joblog.waiters(f"user:{next(users) % 10_000}")),
        "run again": lambda: joblog.requeue(next(dead), broker=broker),
        "a heartbeat, and the lost": heartbeat.beat,
        "an alert: dead of a type": look(Alert("a", "state:dead type:type_03")),
        "an alert: an error": look(Alert("a", "state:dead error:KeyError", within=7 * DAY)),
        "an alert: retrying": look(Alert("a", "state:retrying", more_than=50)),
        "an alert: all problems": look(Alert.problems()),
        "an expected job": look(Expect("type_03", every=HOUR)),
        "count the last minutes": lambda: joblog.core.totals.catch_up(int(time.time() * 1000)),
    }


def plan_of(joblog: JobLog, statements: list[tuple]) -> tuple[str, str]:
    """Return the indexes that some statements use, and the tables that they read whole."""
    lite = isinstance(joblog.database, SqliteDatabase)
    indexes: dict[str, None] = {}
    whole: dict[str, None] = {}
    for sql, params in statements:
        if not re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT)", sql, re.IGNORECASE):
            continue
        explain = "EXPLAIN QUERY PLAN " if lite else "EXPLAIN "
        for line in joblog.database.execute_sql(explain + sql, params).fetchall():
            text = str(line[-1])
            for table in _WHOLE.findall(text):
                # SQLite reports the alias.
                aliases = re.findall(r'"(joblog_\w+)" AS "(\w+)"', sql)
                names = {alias: name for name, alias in aliases}
                if names.get(table, table) in {"joblog_job", "joblog_failure"}:
                    whole[names.get(table, table)] = None
            for index in _INDEX.findall(text):
                if index != "joblog_job":
                    indexes[index.replace("joblog_", "").replace("(rowid", "pkey")] = None
    return " ".join(indexes), " ".join(whole)


def measure(joblog: JobLog, times: int, only: str | None) -> dict[str, tuple]:
    """Ask each question *times*, and return its median in ms, its indexes and whole tables."""
    joblog.database.connect(reuse_if_open=True)
    joblog.core.totals.catch_up(int(time.time() * 1000))
    results = {}
    for name, ask in questions(joblog).items():
        if only and only not in name:
            continue
        taken = []
        with Asked() as asked:
            ask()
        limit = time.monotonic() + 20
        for _ in range(times):
            began = time.perf_counter()
            ask()
            taken.append((time.perf_counter() - began) * 1000)
            if time.monotonic() > limit:
                break
        results[name] = (statistics.median(taken), *plan_of(joblog, asked.statements))
        print(f"  {name:34}{results[name][0]:9.2f}", *results[name][1:], flush=True)
    return results


def sizes(joblog: JobLog) -> str:
    """Return how many bytes a job takes, in its table and in its indexes."""
    number = joblog.Job.select().count()
    if isinstance(joblog.database, SqliteDatabase):
        path = Path(joblog.database.database)
        return f"{path.stat().st_size / number:.0f} bytes a job, all told"
    text = "SELECT pg_relation_size('joblog_job'), pg_indexes_size('joblog_job')"
    table, indexes = joblog.database.execute_sql(text).fetchone()
    return f"{table / number:.0f} bytes a job in the table, {indexes / number:.0f} in its indexes"


def prepare(url: str, number: int) -> JobLog:
    """Fill an empty database and count its totals."""
    joblog = JobLog(url)
    joblog.create_tables()
    joblog.database.connect(reuse_if_open=True)
    seconds = filling.fill(joblog, number)
    began = time.monotonic()
    joblog.core.totals.catch_up(int(time.time() * 1000))
    counted = time.monotonic() - began
    if not isinstance(joblog.database, SqliteDatabase):
        joblog.database.execute_sql("VACUUM ANALYZE")
    print(
        f"{number:,} jobs on {type(joblog.database).__name__}: filled and indexed in "
        f"{seconds:.0f} s, totals counted in {counted:.0f} s, {sizes(joblog)}",
        flush=True,
    )
    return joblog


def compare(name: str, small: JobLog, large: JobLog, args: argparse.Namespace) -> None:
    """Ask both, and print the table."""
    results = [measure(joblog, args.times, args.only) for joblog in (small, large)]
    print(f"\n{name}: ms, medians of {args.times}\n")
    print(f"{'':34}{'small':>9}{'large':>9}  indexes")
    for question, (before, _, _) in results[0].items():
        after, indexes, whole = results[1][question]
        remark = f"  READS ALL OF {whole}" if whole else ""
        print(f"{question:34}{before:9.2f}{after:9.2f}  {indexes}{remark}")


def main() -> None:
    """Fill, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sqlite", type=int, default=1_000_000, help="jobs; 0 to leave it out")
    parser.add_argument("--postgres", type=int, default=10_000_000, help="jobs; 0 to leave it out")
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--only", help="ask only questions with this text in their names")
    args = parser.parse_args()
    if args.sqlite:
        with tempfile.TemporaryDirectory() as folder:
            small = prepare(f"sqlite:///{folder}/small.db", args.sqlite // 100)
            large = prepare(f"sqlite:///{folder}/large.db", args.sqlite)
            compare("SQLite", small, large, args)
    if args.postgres:
        server = servers.start_postgres(fsync=True)
        try:
            urls = []
            for _ in range(2):
                database = f"scale_{uuid.uuid4().hex[:8]}"
                with psycopg.connect(server.url, autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE {database}")
                urls.append(server.url.replace("/postgres", f"/{database}"))
            small, large = prepare(urls[0], args.postgres // 100), prepare(urls[1], args.postgres)
            compare(server.name, small, large, args)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
