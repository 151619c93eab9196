"""Checks of the database: its tables, its settings, its clock."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from peewee import fn

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.database.dialects.postgresql import is_behind_pooler, prepares
from dramatiq_joblog.database.indexes import missing_keys
from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.recording.heartbeat import MAX_SKEW
from dramatiq_joblog.schema.migrations import compare
from dramatiq_joblog.states import ProblemKind

from .problem import Look, seen

if TYPE_CHECKING:
    from dramatiq_joblog.schema.tables import Tables

#: The maximum number of rows counted or named; more are shown as "or more".
MOST = 1_000


class DatabaseChecks:
    """Checks the database of a log.

    Its methods are called with a connection open.

    Parameters:
      tables: The log's tables.
    """

    def __init__(self, tables: Tables[Any]) -> None:
        self._tables = tables
        # Any: peewee's models are untyped.
        self._worker: Any = tables.worker
        self._lock: Any = tables.lock
        self._database: Any = tables.database
        self._dialect = dialect_of(tables.database)

    def version(self) -> str:
        """Return the database's name and version."""
        return self._dialect.version(self._database)

    def schema(self) -> Look:
        """Check whether the tables match this version."""
        well = "the tables match this version"
        missing, ahead = compare(self._database, self._tables.job)
        if missing:
            return _wrong(
                "schema",
                well,
                f"The tables are older than this version: {', '.join(missing)} is missing.",
                "call create_tables() on the log, or run dramatiq-joblog migrate",
            )
        if ahead:
            return _wrong(
                "schema",
                well,
                f"The tables are newer than this version: they have {', '.join(ahead)}.",
                "upgrade dramatiq_joblog on this host; until then they are used as they are",
            )
        lacking = [
            f"({', '.join(key)}) of {model._meta.table_name}"
            for model in self._tables
            for key in missing_keys(model)
        ]
        if lacking:
            return _wrong(
                "schema",
                well,
                f"The unique index on {' and '.join(lacking)} is missing: its rows are refused.",
                "call create_tables() on the log, or run dramatiq-joblog migrate",
            )
        return Look("schema", well)

    def durability(self) -> Look:
        """Check whether commits survive a crash."""
        well = self._dialect.durability
        weakness = self._dialect.weakness(self._database)
        if weakness is None:
            return Look("durability", well)
        return _wrong("durability", well, weakness.text, weakness.cure, ProblemKind.SETTINGS)

    def pooler(self) -> Look:
        """Check whether a connection pooler would break prepared statements."""
        if not is_behind_pooler(self._database):
            return Look("pooler", "the connection goes straight to the server")
        well = "a pooler (such as PgBouncer) is in between; nothing is prepared or set"
        if not prepares(self._database):
            return Look("pooler", well)
        return _wrong(
            "pooler",
            well,
            "A pooler (such as PgBouncer) is in between, and the database that was passed in "
            "prepares statements: with transaction pooling these fail on other connections, with "
            '"prepared statement ... does not exist".',
            "give the database prepare_threshold=None; a URL needs nothing",
            ProblemKind.SETTINGS,
        )

    def clock(self) -> Look:
        """Check whether the clocks of this host, of workers and of the database agree."""
        text = str(database_now(self._database).sql)
        before = host_now()
        ((now,),) = self._database.execute_sql(f"SELECT {text}").fetchall()
        after = host_now()
        skew = round((before + after) / 2 - int(now))
        uncertain = (after - before) / 2
        worker = self._worker
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
            return Look("clock", found)
        return _wrong(
            "clock",
            "",
            f"Clocks differ: {found}.",
            "synchronise the clocks, for example by NTP; states and leases do not depend on "
            "them, but "
            "started_at, finished_at, eta and queue_time do",
            ProblemKind.CLOCK,
        )

    def _went_back(self) -> Look | None:
        """Return a problem if rows still date from before the database's clock was set back."""
        worker, lock = self._worker, self._lock
        now = database_now(self._database)
        beats = worker.select().where(worker.heartbeat_at > now + MAX_SKEW).limit(MOST).count()
        lasting = lock.select().where(lock.expires_at > now + lock.ttl + MAX_SKEW)
        leases = lasting.limit(MOST).count()
        if not beats and not leases:
            return None
        return _wrong(
            "clock",
            "",
            f"The database's clock went back: {_many(beats)} heartbeat(s) are in the future, and "
            f"{_many(leases)} lease(s) last for longer than their ttl.",
            "keep the database's clock from jumping, for example with chrony; live workers "
            "correct both within a heartbeat: start one, or free a key now with joblog.unlock(key)",
            ProblemKind.CLOCK,
        )


def _wrong(
    name: str, well: str, text: str, cure: str, kind: ProblemKind = ProblemKind.DATABASE
) -> Look:
    """Return a problem whose beginning is unknown."""
    title, colon, rest = text.partition(":")
    problem = seen(
        kind,
        name,
        since=datetime.now(timezone.utc),
        count=1,
        title=title,
        rest=colon + rest,
        cure=cure,
    )
    return Look(name, well, (problem,))


def _many(number: int) -> str:
    return f"{number} or more" if number >= MOST else str(number)
