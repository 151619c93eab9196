"""Queries with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from peewee import DatabaseError

from dramatiq_joblog.errors import ConfigurationError, DatabaseAwayError, QueryTimeout

from .checkout import checked_out
from .dialects import dialect_of
from .silence import cut, patient

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from peewee import Database

#: The codes for an aborted query: of PostgreSQL, MySQL and MariaDB.
_CUT_STATE = "57014"
_CUT_CODES = {3024, 1969}
#: Milliseconds after which what was not cut in time is.
_LATER = 2_000


def in_event_loop() -> bool:
    """Return whether this thread is running an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def refuse_event_loop(what: str) -> None:
    """Refuse to hold a connection, or to wait, in a thread that is running an event loop.

    Raises:
      ConfigurationError: If it is; *what* begins the sentence.
    """
    if not in_event_loop():
        return
    raise ConfigurationError(
        f"{what} inside a running event loop, all of whose tasks share its thread's connection: "
        "put the queries into a function, and await asyncio.to_thread(function)"
    )


@contextlib.contextmanager
def bounded(database: Database, timeout: int) -> Iterator[None]:
    """Abort each query of the block that takes longer than *timeout* milliseconds.

    On PostgreSQL the block is one transaction; on SQLite the limit applies to all of its queries
    together.

    Raises:
      QueryTimeout: If a query was aborted.
    """
    try:
        # A server that still answers cuts it itself.
        with patient(timeout + _LATER), dialect_of(database).bounded(database, timeout):
            yield
    except (DatabaseAwayError, DatabaseError, sqlite3.OperationalError) as e:
        if _is_cut(e.__cause__ if isinstance(e, DatabaseAwayError) else e):
            raise QueryTimeout(timeout) from e
        raise


@contextlib.contextmanager
def cut_after(database: Database, timeout: int) -> Iterator[None]:
    """Cut this thread's connection if the server is silent for *timeout* milliseconds.

    The server's own timeouts do not help if it is frozen, or if the network is gone.  The driver
    then raises in this thread, as if the server had closed the connection.
    """
    is_open = not _is_file(database) and not database.is_closed()
    with _cutting([database.connection()] if is_open else [], timeout):
        yield


@contextlib.contextmanager
def lent_within(database: Any, timeout: int) -> Iterator[None]:
    """Limit the time that a pool takes, within the block, to check a connection before it lends it.

    A pool checks with the server whether an idle connection still works, and a frozen server never
    answers.  Any: a pool has attributes that a plain database does not have.

    Parameters:
      database: Where the block connects to.
      timeout: Milliseconds.
    """
    idle = [entry[-1] for entry in getattr(database, "_connections", ())]
    lends = idle and database.is_closed() and not _is_file(database)
    with _cutting(idle if lends else [], timeout):
        yield


@contextlib.contextmanager
def _cutting(connections: Sequence[Any], timeout: int) -> Iterator[None]:
    """Cut connections unless the block ends within *timeout* milliseconds."""
    if not connections:
        yield
        return
    watch = threading.Timer(timeout / 1000, _cut_all, (connections,))
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _cut_all(connections: Iterable[Any]) -> None:
    for raw in connections:
        cut(raw)


def _is_file(database: Database) -> bool:
    """Return whether a database is a file, and so has no server."""
    return dialect_of(database).file_of(database) is not None


@contextlib.contextmanager
def answered_within(
    database: Database, timeout: int, *, since: int | None = None
) -> Iterator[None]:
    """Hold a connection for the block, and cut it if the server is silent for too long.

    Neither the pool nor a silent server can block the thread.

    Parameters:
      database: The database that the block queries.
      timeout: Milliseconds, for getting the connection and for the block.
      since: As for `checked_out`.

    Raises:
      DatabaseAwayError: If the database is unavailable.
    """
    with contextlib.ExitStack() as stack:
        with lent_within(database, timeout):
            stack.enter_context(checked_out(database, since=since))
        stack.enter_context(patient(timeout + _LATER))
        stack.enter_context(cut_after(database, timeout))
        yield


def _is_cut(error: BaseException | None) -> bool:
    original = getattr(error, "orig", None)
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    first = next(iter(getattr(error, "args", ())), None)
    return bool(state == _CUT_STATE or first in _CUT_CODES or first == "interrupted")
