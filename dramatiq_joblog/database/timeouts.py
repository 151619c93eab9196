"""Questions with a bound: a reader that waits no longer than it says."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

from peewee import DatabaseError, MySQLDatabase, SqliteDatabase

from dramatiq_joblog.errors import ConfigurationError, DatabaseAwayError, QueryTimeout

from .connection import cut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peewee import Database

#: SQLite asks whether to go on after so many of its steps, a fraction of a millisecond.
_STEPS = 2_000
#: What the databases say of a question that was cut: PostgreSQL, MySQL and MariaDB.
_CUT_STATE = "57014"
_CUT_CODES = {3024, 1969}


def in_event_loop() -> bool:
    """Return whether this thread runs an event loop now."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def refuse_event_loop(what: str) -> None:
    """Refuse what keeps a thread's connection, or waits, where the thread runs an event loop.

    Raises:
      ConfigurationError: If it does; *what* begins the sentence.
    """
    if not in_event_loop():
        return
    raise ConfigurationError(
        f"{what} inside a running event loop, all of whose tasks share its thread's connection: "
        "put the questions into a function, and await joblog.fetch(function)"
    )


@contextlib.contextmanager
def bounded(database: Database, timeout: int) -> Iterator[None]:
    """Cut each question of the block that takes longer than *timeout* milliseconds.

    On PostgreSQL the block is one transaction; on SQLite all of its questions together have
    the time.

    Raises:
      QueryTimeout: If one was cut.
    """
    try:
        if isinstance(database, SqliteDatabase):
            with _sqlite(database, timeout):
                yield
        elif isinstance(database, MySQLDatabase):
            with _mysql(database, timeout):
                yield
        else:
            with _postgresql(database, timeout):
                yield
    except (DatabaseAwayError, DatabaseError, sqlite3.OperationalError) as e:
        if _is_cut(e.__cause__ if isinstance(e, DatabaseAwayError) else e):
            raise QueryTimeout(timeout) from e
        raise


@contextlib.contextmanager
def cut_after(database: Database, timeout: int) -> Iterator[None]:
    """Cut this thread's connection to a server that is silent for *timeout* milliseconds.

    The server's own timeouts do not help when it is frozen, or when the network is gone.  The
    driver then raises in this thread, as when the server had gone away.
    """
    if isinstance(database, SqliteDatabase) or database.is_closed():
        yield
        return
    watch = threading.Timer(timeout / 1000, cut, (database.connection(),))
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


@contextlib.contextmanager
def _sqlite(database: Any, timeout: int) -> Iterator[None]:
    deadline = time.monotonic() + timeout / 1000
    connection = database.connection()
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)


@contextlib.contextmanager
def _postgresql(database: Any, timeout: int) -> Iterator[None]:
    with database.atomic():
        ((before,),) = database.execute_sql("SHOW statement_timeout").fetchall()
        database.execute_sql(f"SET LOCAL statement_timeout = {int(timeout)}")
        yield
        # It may be a part of a transaction that goes on.
        database.execute_sql("SELECT set_config('statement_timeout', %s, true)", (before,))


@contextlib.contextmanager
def _mysql(database: Any, timeout: int) -> Iterator[None]:
    ((version,),) = database.execute_sql("SELECT version()").fetchall()
    maria = "mariadb" in str(version).lower()
    name = "max_statement_time" if maria else "max_execution_time"
    database.execute_sql(f"SET SESSION {name} = {timeout / 1000 if maria else int(timeout)}")
    try:
        yield
    finally:
        database.execute_sql(f"SET SESSION {name} = DEFAULT")


def _is_cut(error: BaseException | None) -> bool:
    original = getattr(error, "orig", None)
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    first = next(iter(getattr(error, "args", ())), None)
    return bool(state == _CUT_STATE or first in _CUT_CODES or first == "interrupted")
