"""SQLite, which has one writing connection at a time."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peewee import SQL, NodeList, OperationalError

from dramatiq_joblog.database.backoff import FIRST_PAUSE, rest
from dramatiq_joblog.database.upsert import Upsert
from dramatiq_joblog.errors import ConfigurationError

from .base import Dialect, Weakness, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from dramatiq_joblog.database.upsert import Rule

#: Milliseconds that a transaction waits for the write lock.
TURN_WITHIN = 10_000
#: The oldest version that has RETURNING.
_OLDEST = (3, 35, 0)
#: After this many steps of SQLite, a fraction of a millisecond, the time limit is checked.
_STEPS = 2_000
#: The limits of the connections that have one now, by ``id()``: SQLite cannot report them.
_limits: dict[int, Callable[[], bool]] = {}


class SQLite(Dialect):
    """SQLite, in write-ahead mode."""

    kind = "sqlite"
    now = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
    durability = "commits survive a killed process"
    writes_alone = True

    def check(self, database: Any) -> None:
        """Refuse databases in memory and old versions; make the file's path absolute."""
        name = str(database.database)
        if name in ("", ":memory:") or "mode=memory" in name:
            raise ConfigurationError(
                f"the SQLite database {name!r} is in memory, where every connection sees a "
                "different database; use a file, such as sqlite:///jobs.db"
            )
        if database.server_version < _OLDEST:
            raise ConfigurationError(
                f"SQLite {'.'.join(map(str, database.server_version))} is too old: 3.35 or newer "
                "is needed"
            )
        if database.database is not None and not name.startswith("file:"):
            # A job may change the working directory, and later connections would look there.
            database.database = str(Path(name).absolute())

    def file_of(self, database: Any) -> Path | None:
        """Return the database's file."""
        return Path(str(database.database))

    def version(self, database: Any) -> str:
        """Query the file, and return the library's version."""
        database.execute_sql("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        return f"SQLite {sqlite3.sqlite_version}"

    def weakness(self, database: Any) -> Weakness | None:
        """Query whether readers and writers block each other."""
        ((mode,),) = database.execute_sql("PRAGMA journal_mode").fetchall()
        if mode == "wal":
            return None
        return Weakness(
            f"The file's journal is {mode!r} and not 'wal': readers and writers wait for each "
            "other.",
            "call create_tables() on the log; keep the file on a local disk",
        )

    def prepare(self, database: Any, timeout: int) -> None:
        """Make commits survive a killed process.

        A power cut may lose the last ones, but never damages the file.
        """
        for pragma in (
            f"busy_timeout = {timeout}",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            # The log does its own waiting.
            "busy_timeout = 0",
        ):
            database.execute_sql(f"PRAGMA {pragma}")

    def begin(self, database: Any) -> AbstractContextManager[Any]:
        """Take the write lock at once: taken later, it fails instead of waiting."""
        return database.atomic("IMMEDIATE")  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def begin_in_turn(self, database: Any) -> Iterator[None]:
        """Wait for the write lock before anything is read."""
        with contextlib.ExitStack() as stack:
            if database.in_transaction():
                stack.enter_context(database.atomic())
            else:
                self._wait_for_turn(database, stack)
            yield

    def _wait_for_turn(self, database: Any, stack: contextlib.ExitStack) -> None:
        deadline, pause = time.monotonic() + TURN_WITHIN / 1000, FIRST_PAUSE
        while True:
            try:
                stack.enter_context(self.begin(database))
            except OperationalError as e:
                if not self.is_busy(e) or time.monotonic() > deadline:
                    raise
            else:
                return
            pause = rest(pause)

    def lock(self, query: Any, *, wait: bool = True) -> Any:
        """Return the select unchanged: only its transaction writes."""
        return query

    def upsert(self, rule: Rule) -> Upsert:
        """Return an object that only counts the rows that it writes."""
        return CountedUpsert(rule)

    def is_busy(self, error: BaseException | None) -> bool:
        """Return whether another connection writes to the file."""
        return isinstance(error, OperationalError) and "is locked" in str(error)

    @contextlib.contextmanager
    def bounded(self, database: Any, timeout: int) -> Iterator[None]:
        """Limit all queries of the block together, then restore the limit of an outer block."""
        deadline = time.monotonic() + timeout / 1000
        connection = database.connection()
        outer = _limits.get(id(connection))
        _limit(connection, lambda: time.monotonic() > deadline)
        try:
            yield
        finally:
            _limit(connection, outer)

    def text_at(self, field: Any, steps: Sequence[str]) -> Any:
        """Check the type first, because SQLite reads booleans as 1 and 0."""
        path = path_of(steps)
        return NodeList(
            (
                *(SQL("CASE WHEN json_valid("), field, SQL(") THEN CASE json_type("), field),
                *(SQL(","), path, SQL(") WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'")),
                *(SQL("ELSE CAST(json_extract("), field, SQL(","), path, SQL(") AS TEXT) END END")),
            ),
            parens=True,
        )

    def remainder(self, value: Any, divisor: int) -> Any:
        """Use the percent sign: not every build has MOD."""
        return NodeList((value, SQL("%"), SQL(str(divisor))), parens=True)

    @contextlib.contextmanager
    def migrating(self, database: Any) -> Iterator[None]:
        """Switch the file to WAL mode, which is persistent, so readers do not block the writer."""
        database.execute_sql("PRAGMA busy_timeout = 30000")
        database.execute_sql("PRAGMA journal_mode = WAL")
        with self.begin(database):
            yield

    def is_index(self, model: Any, name: str) -> bool:
        """Return whether an index, or a table, of this name is there, of whatever table."""
        text = "SELECT 1 FROM sqlite_master WHERE lower(name) = lower(?)"
        return model._meta.database.execute_sql(text, (name,)).fetchone() is not None


def _limit(connection: sqlite3.Connection, is_over: Callable[[], bool] | None) -> None:
    """Abort the statements of a connection once *is_over*; None for no limit."""
    if is_over is None:
        _limits.pop(id(connection), None)
    else:
        _limits[id(connection)] = is_over
    connection.set_progress_handler(is_over, _STEPS)


class CountedUpsert(Upsert):
    """Writes rows and looks only at their number, if that is enough.

    Fetching rows from the statement would keep the file locked while other threads of the process
    run between any two rows.
    """

    def _write_chunk(self, columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> set[str]:
        cursor = self.database.execute_sql(*self._statement(columns, rows))
        first = self.named_by
        if self.database.rows_affected(cursor) == len(rows):
            return {row[first] for row in rows}
        return {row[first] for row in rows if self._stands(row)}

    def _stands(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row has the wanted values, from this statement or an earlier try."""
        replaces = self.rule.replaces.items()
        columns = [*self.rule.key, *(name for name, text in replaces if text == f"excluded.{name}")]
        same = " AND ".join(f'"{name}" IS {self.database.param}' for name in columns)
        text = f'SELECT 1 FROM "{self.table}" WHERE {same}'
        cursor = self.database.execute_sql(text, [row.get(name) for name in columns])
        return cursor.fetchone() is not None

    def _returning(self) -> str:
        return ""
