"""Fills a log with jobs that look real: many actors, users and errors, over thirty days."""

from __future__ import annotations

import random
import time
import uuid
from typing import TYPE_CHECKING

from peewee import SqliteDatabase

from dramatiq_joblog.database.silence import patient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dramatiq_joblog import JobLog

DAY = 86_400_000
#: How long the jobs go back.
DAYS = 30
HOSTS = [f"worker-{n:02}" for n in range(20)]
ACTORS = [
    f"{verb}_{noun}"
    for verb in ("import", "sync", "send", "verify", "export")
    for noun in ("prices", "statements", "mail", "users", "orders", "reports", "rates", "books")
]
TYPES = [*(f"type_{n:02}" for n in range(11)), None]
ERRORS = [
    f"{noun}{kind}"
    for noun in ("Connection", "Key", "Value", "Feed", "Row", "Rate")
    for kind in ("Error", "TimeoutError", "MissingError")
]
QUEUES = ["default"] * 7 + ["mail", "mail", "slow"]
USERS = 50_000
TRACEBACK = "Traceback (most recent call last):\n" + "".join(
    f'  File "/srv/app/jobs/module_{n}.py", line {n * 7}, in step_{n}\n    result = fetch(row)\n'
    for n in range(12)
)
#: Jobs that are on their way, at the end of the table: how many of each state.
ACTIVE = {
    "enqueued": 1000,
    "delayed": 300,
    "waiting": 50,
    "started": 64,
    "retrying": 300,
    "lost": 5,
}
#: What of ten thousand jobs is dead and skipped.
DEAD, SKIPPED = 120, 80

COLUMNS = (
    "jid", "actor", "queue", "job_type", "user_id", "state", "attempt", "max_retries", "eta",
    "enqueued_at", "started_at", "finished_at", "created_at", "updated_at", "duration",
    "queue_time", "error_type", "error_message", "dead_reason", "worker", "process", "token",
    "args", "kwargs", "section", "waiting_since", "parent_jid", "root_jid",
)  # fmt: skip
FAILURE_COLUMNS = (
    "jid", "token", "attempt", "outcome", "started_at", "finished_at", "duration", "error_type",
    "error_message", "traceback", "worker",
)  # fmt: skip


def rows(number: int, now: int, seed: int = 1) -> Iterator[tuple]:
    """Yield *number* jobs, oldest first."""
    pick = random.Random(seed)
    weights = [1 / (n + 1) for n in range(len(ACTORS))]
    actors = pick.choices(ACTORS, weights, k=65_536)
    waits = [int(pick.lognormvariate(4, 1.5)) for _ in range(65_521)]
    runs = [int(pick.lognormvariate(5, 1.8)) for _ in range(65_519)]
    active = [state for state, many in ACTIVE.items() for _ in range(many)]
    pick.shuffle(active)
    parent = None
    bits, choice = pick.getrandbits, pick.random
    for n in range(number):
        created = now - DAYS * DAY + DAYS * DAY * n // number
        jid = str(uuid.UUID(int=bits(128), version=4))
        actor = actors[n % 65_536]
        wait, run = waits[n % 65_521], runs[n % 65_519]
        fate = int(choice() * 10_000)
        state = "dead" if fate < DEAD else "skipped" if fate < DEAD + SKIPPED else "finished"
        if n >= number - len(active):
            state = active[n - number]
        ended = state in {"finished", "dead", "skipped"}
        ran = ended or state in {"started", "retrying", "lost"}
        error = ERRORS[fate % len(ERRORS)] if state in {"dead", "retrying"} else None
        host = HOSTS[fate % 20]
        if n % 10 == 0:
            parent = jid
        yield (
            *(jid, actor, QUEUES[fate % 10], TYPES[hash_of(actor) % 12]),
            str(int(choice() ** 2 * USERS)),
            *(state, 3 if error else 1, 20, created + 60_000 if state == "retrying" else None),
            *(created, created + wait if ran else None),
            *(created + wait + run if ended else None, created),
            created + wait + run if ended else created,
            *(run if ended else None, wait if ran else None, error),
            f"{error}: no answer for row {n}" if error else None,
            "retries_exhausted" if state == "dead" else None,
            *(f"{host}:{1000 + fate % 8}:{2000 + fate % 64}", f"{fate % 160:016x}", jid[:32]),
            f'[{n}, "{actor}", "2026-11-24"]',
            '{"currency": "EUR", "page": 3, "force": false}',
            f"user:{fate}" if n % 20 == 0 or state == "waiting" else None,
            created if state == "waiting" else None,
            *((parent, parent) if n % 10 in {1, 2} else (None, None)),
        )


def hash_of(text: str) -> int:
    """Return a number for a text, the same in every process."""
    return sum(map(ord, text))


def failures_of(row: tuple) -> Iterator[tuple]:
    """Yield the failed runs of a job that is dead or retrying."""
    job = dict(zip(COLUMNS, row, strict=True))
    if job["error_type"] is None:
        return
    for attempt in range(1, job["attempt"] + (job["state"] == "dead")):
        outcome = "dead" if attempt == job["attempt"] else "retried"
        at = job["created_at"] + attempt * 1000
        yield (
            *(job["jid"], f"{job['jid'][:28]}{attempt}", attempt, outcome, at, at + 500, 500),
            *(job["error_type"], job["error_message"], TRACEBACK, job["worker"]),
        )


def fill(joblog: JobLog, number: int) -> float:
    """Fill the empty log with *number* jobs, index it, and return the seconds that it took."""
    began = time.monotonic()
    now = int(time.time() * 1000)
    job, failure, database = joblog.Job, joblog.Failure, joblog.database
    # It is several times faster to index what is there.
    for model in (job, failure):
        for index in database.get_indexes(model._meta.table_name):
            if not index.name.endswith("pkey") and "autoindex" not in index.name:
                database.execute_sql(f'DROP INDEX "{index.name}"')
    lite = isinstance(database, SqliteDatabase)
    put = _sqlite if lite else _postgresql
    failed: list[tuple] = []

    def watched() -> Iterator[tuple]:
        for row in rows(number, now):
            if row[16] is not None:
                failed.extend(failures_of(row))
            yield row

    put(database, job, COLUMNS, watched())
    put(database, failure, FAILURE_COLUMNS, iter(failed))
    with patient():  # indexing millions of rows may take minutes
        for model in (job, failure):
            model._schema.create_indexes(safe=True)
        database.execute_sql("ANALYZE" if lite else "VACUUM ANALYZE")
    return time.monotonic() - began


def _postgresql(database, model, columns, values) -> None:
    names = ", ".join(columns)
    cursor = database.connection().cursor()
    with cursor.copy(f"COPY {model._meta.table_name} ({names}) FROM STDIN") as copy:
        for row in values:
            copy.write_row(row)
    database.connection().commit()


def _sqlite(database, model, columns, values) -> None:
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    connection = database.connection()
    connection.execute("BEGIN")
    connection.executemany(
        f"INSERT INTO {model._meta.table_name} ({names}) VALUES ({marks})", values
    )
    connection.execute("COMMIT")
