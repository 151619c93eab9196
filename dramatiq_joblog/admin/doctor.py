"""What is wrong with a log, its database and its workers now, each with its cure.

Everything is only read; what cannot be asked is a finding too.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peewee import MySQLDatabase, PeeweeException, PostgresqlDatabase, SqliteDatabase, fn

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.connection import Connection, is_behind_pooler, prepares
from dramatiq_joblog.database.indexes import missing_keys
from dramatiq_joblog.errors import DatabaseAwayError
from dramatiq_joblog.payload.secret_texts import scrub
from dramatiq_joblog.recording.heartbeat import HOST, is_gone
from dramatiq_joblog.recording.mounts import PASSING, file_system_of
from dramatiq_joblog.schema.migrations import compare
from dramatiq_joblog.states import FINAL, State

from .audit import retries_lost
from .finding import Finding
from .standstill import MAX_WAIT, Standstill

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_SPOOLED", "MAX_WAIT", "Doctor", "Finding"]

#: Milliseconds that this host's clock may differ from the database's.
MAX_SKEW = 1_000
#: Seconds that events may lie in a spool while the database answers.
MAX_SPOOLED = 60
#: At most as many rows are counted or named; what is beyond is told as "or more".
MOST = 1_000


class Doctor:
    """Looks a log over.

    Parameters:
      joblog: The log; its module stands above this one.
      broker: The broker that has the log's middleware, if that is to be looked at too.
    """

    def __init__(self, joblog: Any, broker: Any = None) -> None:
        self._joblog = joblog
        self._broker = broker
        self._database: Any = joblog.database
        #: With the writer's timeouts: nothing here waits for ever.
        self._asked = Connection(joblog.database)
        self._standstill = Standstill(joblog.Job, joblog.Worker)

    def findings(self) -> list[Finding]:
        """Return what was found, in an order that does not change."""
        opened = self._database.is_closed()
        try:
            found = [self._connection()]
            if found[0].ok:
                found += map(self._asking, self._looks())
        finally:
            if opened:
                self._asked.close()
        found.append(self._spools())
        if self._broker is not None:
            found.append(self._middleware())
        return found

    def _looks(self) -> tuple[Callable[[], Finding], ...]:
        return (
            self._schema,
            self._durability,
            *((self._pooler,) if isinstance(self._database, PostgresqlDatabase) else ()),
            self._clock,
            self._workers,
            self._sections,
            self._standstill.queues,
            self._standstill.threads,
            self._standstill.overdue,
            self._standstill.lost,
            self._retries,
        )

    def _asking(self, look: Callable[[], Finding]) -> Finding:
        try:
            return self._asked.ask(look)
        except (DatabaseAwayError, PeeweeException) as e:
            return Finding(
                look.__name__.strip("_"),
                False,
                f"it cannot be known: {scrub(str(e).strip())}",
                "call create_tables() on the log if tables or columns are missing",
            )

    def _connection(self) -> Finding:
        began = time.monotonic()
        try:
            version = self._asked.ask(self._version)
        except (DatabaseAwayError, PeeweeException) as e:
            return Finding(
                "connection",
                False,
                f"{self._joblog.name} cannot be asked: {scrub(str(e).strip())}",
                "start the database, or correct its address, user, password or rights; until "
                "then events are handled as on_outage says",
            )
        took = (time.monotonic() - began) * 1000
        text = f"{self._joblog.name} is {version}; it answered in {took:.0f} ms"
        return Finding("connection", True, text)

    def _version(self) -> str:
        database = self._database
        if isinstance(database, SqliteDatabase):
            database.execute_sql("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
            return f"SQLite {sqlite3.sqlite_version}"
        ((version,),) = database.execute_sql("SELECT version()").fetchall()
        if isinstance(database, PostgresqlDatabase):
            driver = type(database.connection()).__module__.split(".")[0]
            return f"{' '.join(version.split()[:2])} through {driver}"
        return f"MySQL {version}" if isinstance(database, MySQLDatabase) else str(version)

    def _schema(self) -> Finding:
        missing, ahead = compare(self._database, self._joblog.Job)
        if missing:
            return Finding(
                "schema",
                False,
                f"the tables are older than this version: {', '.join(missing)} is missing",
                "call create_tables() on the log, or run dramatiq-joblog migrate",
            )
        if ahead:
            return Finding(
                "schema",
                False,
                f"the tables are newer than this version: they have {', '.join(ahead)}",
                "upgrade dramatiq_joblog on this host; until then they are used as they are",
            )
        lacking = [
            f"({', '.join(key)}) of {model._meta.table_name}"
            for model in self._joblog.models
            for key in missing_keys(model)
        ]
        if lacking:
            return Finding(
                "schema",
                False,
                f"the unique index on {' and '.join(lacking)} is missing: its rows are refused",
                "call create_tables() on the log, or run dramatiq-joblog migrate",
            )
        return Finding("schema", True, "the tables are of this version")

    def _durability(self) -> Finding:
        database = self._database
        if isinstance(database, SqliteDatabase):
            ((mode,),) = database.execute_sql("PRAGMA journal_mode").fetchall()
            if mode != "wal":
                return Finding(
                    "durability",
                    False,
                    f"the file's journal is {mode!r} and not 'wal': readers and writers wait for "
                    "each other",
                    "call create_tables() on the log; keep the file on a local disk",
                )
            return Finding("durability", True, "commits survive a killed process")
        if isinstance(database, PostgresqlDatabase):
            off = [
                setting
                for setting in ("fsync", "synchronous_commit", "full_page_writes")
                if database.execute_sql(f"SHOW {setting}").fetchone()[0] == "off"
            ]
            if off:
                return Finding(
                    "durability",
                    False,
                    f"{' and '.join(off)} is off: a crash of the server's host loses commits of "
                    "which jobs were already acknowledged",
                    f"set {', '.join(off)} to on in postgresql.conf",
                )
        return Finding("durability", True, "commits survive a power cut of the server")

    def _pooler(self) -> Finding:
        if not is_behind_pooler(self._database):
            return Finding("pooler", True, "the connection goes straight to the server")
        if not prepares(self._database):
            text = "a pooler (PgBouncer or the like) is in between, and nothing is prepared or set"
            return Finding("pooler", True, text)
        return Finding(
            "pooler",
            False,
            "a pooler (PgBouncer or the like) is in between, and the database that was handed in "
            "prepares statements: with transaction pooling they are met on other connections, "
            'as "prepared statement ... does not exist"',
            "give the database prepare_threshold=None; a URL needs nothing",
        )

    def _clock(self) -> Finding:
        text = str(database_now(self._database).sql)
        before = time.time_ns() // 1_000_000
        ((now,),) = self._database.execute_sql(f"SELECT {text}").fetchall()
        after = time.time_ns() // 1_000_000
        skew = round((before + after) / 2 - int(now))
        uncertain = (after - before) / 2
        worker = self._joblog.Worker
        others = list(
            worker.select(worker.host, worker.skew)
            .where(worker.swept_at.is_null(), fn.ABS(worker.skew) > MAX_SKEW)
            .limit(MOST)
        )
        found = f"this host's clock is {skew:+} ms off the database's"
        for host, off in sorted({row.host: row.skew for row in others}.items())[:5]:
            found += f"; that of the worker on {host} was {off:+} ms off"
        if (back := self._went_back()) is not None:
            return back
        if abs(skew) - uncertain <= MAX_SKEW and not others:
            return Finding("clock", True, found)
        return Finding(
            "clock",
            False,
            found,
            "synchronise the clocks, as by NTP; states and leases do not depend on them, but "
            "started_at, finished_at, eta and queue_time do",
        )

    def _went_back(self) -> Finding | None:
        """Return what is left of the time before the database's clock went back, if anything."""
        worker, lock = self._joblog.Worker, self._joblog.Lock
        now = database_now(self._database)
        beats = worker.select().where(worker.heartbeat_at > now + MAX_SKEW).limit(MOST).count()
        lasting = lock.select().where(lock.expires_at > now + lock.ttl + MAX_SKEW)
        leases = lasting.limit(MOST).count()
        if not beats and not leases:
            return None
        return Finding(
            "clock",
            False,
            f"the database's clock went back: {_many(beats)} heartbeat(s) lie in the future, and "
            f"{_many(leases)} lease(s) last for longer than their ttl",
            "keep the database's clock from leaping, as by chrony that slews; workers that live "
            "bound both within a heartbeat: start one, or joblog.unlock(key) frees a key now",
        )

    def _workers(self) -> Finding:
        worker, job = self._joblog.Worker, self._joblog.Job
        now = database_now(self._database)
        silent = worker.heartbeat_at + worker.timeout < now
        unswept = list(
            worker.select(worker, silent.alias("silent")).where(worker.swept_at.is_null())
        )
        dead = [w for w in unswept if w.silent or is_gone(w)]
        live = [w for w in unswept if w not in dead]
        living = f"{len(live)} worker process(es) live"
        held = Counter[str]()
        for other in dead:
            runs = job.select().where(job.state == State.STARTED, job.process == other.process)
            held[f"{other.host}:{other.pid}"] += runs.count()
        known = worker.select(worker.process)
        orphans = (
            job.select()
            .where(
                job.state == State.STARTED, job.process.is_null(False), job.process.not_in(known)
            )
            .limit(MOST)
            .count()
        )
        cure = (
            "start a worker: it marks these runs as lost at once, and the broker delivers their "
            "messages again"
        )
        if any(held.values()):
            names = ", ".join(f"{name} ({n} runs)" for name, n in held.items() if n)
            return Finding(
                "workers", False, f"gone, and their runs still started: {names}; {living}", cure
            )
        if orphans:
            return Finding(
                "workers",
                False,
                f"{_many(orphans)} run(s) are started whose worker process is not known; {living}",
                "their messages are gone if the broker does not deliver them again: cancel these "
                "jobs, and run them again",
            )
        return Finding("workers", True, living)

    def _sections(self) -> Finding:
        lock, job = self._joblog.Lock, self._joblog.Job
        now = database_now(self._database)
        stuck = list(
            lock.select(lock.key, lock.owner, (lock.expires_at > now).alias("held"))
            .join(job, on=(job.jid == lock.owner))
            .where(lock.owner.is_null(False), lock.kind == "section", job.state.in_(list(FINAL)))
            .order_by(lock.id)
            .limit(MOST)
        )
        if stuck:
            names = ", ".join(f"{row.key!r} by job {row.owner}" for row in stuck[:5])
            holding = sum(bool(row.held) for row in stuck)
            return Finding(
                "sections",
                False,
                f"{_many(len(stuck))} section(s) are held by jobs that have ended, {holding} of "
                f"them with a lease that lasts: {names}",
                "they are free when their lease is over, which was not renewed; joblog.unlock(key) "
                "frees one now",
            )
        return Finding("sections", True, "no section is held by a job that has ended")

    def _retries(self) -> Finding:
        lost = retries_lost(self._joblog.Job, time.time_ns() // 1_000_000)
        if not lost:
            return Finding("retries", True, "no retry was lost in the last week")
        return Finding(
            "retries",
            False,
            f"{lost} job(s) are dead because the broker refused their retry (retry_lost)",
            "run them again with joblog.requeue(jid), or dismiss them; make room in the broker",
        )

    def _spools(self) -> Finding:
        waiting = self._joblog.spool.files()
        if not waiting:
            return self._place_of_spool()
        oldest = max(file.age for file in waiting)
        text = (
            f"{len(waiting)} file(s) of {sum(file.size for file in waiting)} bytes wait on {HOST} "
            f"in {self._joblog.spool.folder}, the oldest for {oldest:.0f} s"
        )
        left = sum(not file.in_use for file in waiting)
        if left:
            text += f"; {left} of them by processes that are gone"
        return Finding(
            "spools",
            oldest < MAX_SPOOLED,
            text,
            ""
            if oldest < MAX_SPOOLED
            else "once the database answers, any process of this host that uses the log replays "
            "them within 10 s: start a worker here, as the same user",
        )

    def _place_of_spool(self) -> Finding:
        """Look whether what is kept while the database is unavailable would last."""
        folder = self._joblog.spool.folder
        kind = file_system_of(folder)
        if kind in PASSING and self._joblog.writer.policy == "spool" and not self._is_passing():
            return Finding(
                "spools",
                False,
                f"the spool {folder} lies on {kind}, which {PASSING[kind]}: events kept there "
                "while the database is unavailable go with it",
                "mount a volume there, or name a folder on one by JobLog(spool=...); or set "
                'on_outage="block", so that nothing is acknowledged that is not committed',
            )
        return Finding("spools", True, f"no events wait on {HOST} to be replayed")

    def _is_passing(self) -> bool:
        """Return whether the log itself lies in a file that goes as well."""
        if not isinstance(self._database, SqliteDatabase):
            return False
        return file_system_of(Path(str(self._database.database)).parent) in PASSING

    def _middleware(self) -> Finding:
        ours = [m for m in self._broker.middleware if hasattr(m, "joblog")]
        mine = [m for m in ours if m.joblog is self._joblog]
        add = "call broker.add_middleware(JobLogMiddleware(joblog)) once, before the actors"
        if len(mine) != 1:
            text = "has no JobLogMiddleware of this log" if not mine else "has it more than once"
            return Finding("middleware", False, f"the broker {text}", add)
        undeclared = sorted(set(self._broker.actors) - mine[0].declared)
        if undeclared:
            return Finding(
                "middleware",
                False,
                f"it was added after the actors {', '.join(undeclared[:10])}, whose options were "
                "not checked",
                add,
            )
        names = [type(m).__name__ for m in self._broker.middleware]
        kinds = {kind.__name__ for m in self._broker.middleware for kind in type(m).__mro__}
        if "Retries" not in kinds:
            return Finding(
                "middleware",
                False,
                "the broker has no Retries: every job that fails is dead at once",
                "add dramatiq.middleware.Retries, unless that is what you want",
            )
        at = self._broker.middleware.index(mine[0]) + 1
        return Finding("middleware", True, f"it is number {at} of {len(names)}; any place is good")


def _many(number: int) -> str:
    return f"{number} or more" if number >= MOST else str(number)
