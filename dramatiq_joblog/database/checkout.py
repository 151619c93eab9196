"""A connection for the duration of a query, and transactions that wait their turn to write.

A connection that was opened for a query is returned after it, to the pool or to the server.  One
that the application opened in its thread stays open.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from peewee import InterfaceError, OperationalError, PeeweeException, Proxy
from playhouse.pool import MaxConnectionsExceeded, PooledDatabase

from dramatiq_joblog.errors import DatabaseAwayError
from dramatiq_joblog.payload.secret_texts import scrub

from .backoff import FIRST_PAUSE, rest
from .dialects import dialect_of
from .dialects.mysql import is_away as is_away_by_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from peewee import Database

T = TypeVar("T")

#: Milliseconds to wait for a free connection of a pool.
FREE_WITHIN = 10_000


@dataclass
class _Checkout:
    """A connection that was opened for a query."""

    #: An object of peewee's that identifies this opening of the connection.
    opening: list[Any]
    #: The result of `closings` before it was opened.
    closings: int
    #: How many blocks use it now.
    questions: int = 0


class _Checkouts(threading.local):
    """The connections of a thread that were opened for queries."""

    def __init__(self) -> None:
        #: The newest of each database.
        self.of: WeakKeyDictionary[Database, _Checkout] = WeakKeyDictionary()
        self.thread = threading.get_ident()

    def current(self, database: Database, *, opened: bool, closings: int) -> _Checkout | None:
        """Return this thread's open connection if it was opened for a query, now or before.

        Any other was opened by the application.
        """
        if opened:
            self.of[database] = _Checkout(_opening_of(database), closings)
        checkout = self.of.get(database)
        return checkout if checkout and checkout.opening is _opening_of(database) else None


_checkouts = _Checkouts()
#: How often the idle connections of each pool were closed.
_closings: WeakKeyDictionary[Database, int] = WeakKeyDictionary()


def closings(database: Database) -> int:
    """Return how often the idle connections of a database's pool were closed."""
    return _closings.get(database, 0)


def close_idle(database: Any) -> None:
    """Close a pool's idle connections; those in use are closed when they come back.

    Any: a pool has a method that a plain database does not have.
    """
    _closings[database] = closings(database) + 1
    database.close_idle()


def _opening_of(database: Any) -> list[Any]:
    """Return an object that is a different one each time this thread opens the database.

    The driver's connection may be the same one again, because a pool keeps it.  Any: peewee has no
    public name for it.
    """
    transactions: list[Any] = database._state.transactions
    return transactions


@contextlib.contextmanager
def checked_out(database: Database, *, since: int | None = None) -> Iterator[bool]:
    """Hold a connection for the block; the last nested block returns it if it had to be opened.

    Parameters:
      database: The database that the block queries.
      since: The result of `closings` when the query was requested; now, if None.

    Yields:
      Whether a connection was opened for the block.

    Raises:
      DatabaseAwayError: If the database is unavailable, at the start or within the block.
    """
    if isinstance(database, Proxy):
        database = database.obj
    before = closings(database) if since is None else since
    opened = open_connection(database)
    checkout = _checkouts.current(database, opened=opened, closings=before)
    thread, broken = _checkouts.thread, False
    if checkout is not None:
        checkout.questions += 1
    try:
        yield opened
    except DatabaseAwayError:
        # A query of the block found the connection broken.
        broken = True
        raise
    except PeeweeException as e:
        broken = is_unavailable(e)
        if broken:
            raise unavailable(e) from e
        raise
    finally:
        if checkout is not None:
            checkout.questions -= 1
            # A generator may end in another thread than it began in: then the next query of its own
            # thread returns the connection.
            if checkout.questions == 0 and threading.get_ident() == thread:
                _give_back(database, checkout, broken=broken)


def _give_back(database: Any, checkout: _Checkout, *, broken: bool) -> None:
    """Close this thread's connection, which nothing uses now.

    Any: a pool has a method that a plain database does not have.
    """
    if not database.is_closed() and checkout.opening is _opening_of(database):
        if database.in_transaction():
            return
        if broken:
            discard(database)
        else:
            database.close()
            if checkout.closings != closings(database):
                # The log was closed meanwhile: nothing else would close what its pool keeps.
                database.close_idle()
    if _checkouts.of.get(database) is checkout:
        del _checkouts.of[database]


@contextlib.contextmanager
def transaction(database: Database) -> Iterator[None]:
    """Run the block in a transaction that reads and then writes, or as a part of an open one.

    On SQLite it waits for the write lock before it reads, because a transaction that has read
    cannot wait for that lock.

    Raises:
      DatabaseAwayError: If the database is unavailable, or its file stays locked.
    """
    with checked_out(database), dialect_of(database).begin_in_turn(database):
        yield


def in_transaction(database: Database, work: Callable[[], T]) -> T:
    """Run *work* in a :func:`transaction`, and return its result.

    It is run again if the database rolled it back in favour of another transaction, as the victim
    of a deadlock, unless it is a part of an open transaction.

    Raises:
      DatabaseAwayError: If the database is unavailable, or rolled it back at every try.
    """
    tries = 1 if not database.is_closed() and database.in_transaction() else _TRIES
    pause = FIRST_PAUSE
    while True:
        try:
            with transaction(database):
                return work()
        except DatabaseAwayError as e:
            tries -= 1
            if not tries or not was_undone(e.__cause__):
                raise
        pause = rest(pause)


def open_connection(database: Database) -> bool:
    """Open this thread's connection if it is closed; wait for a free one of a pool.

    Returns:
      Whether it was closed.

    Raises:
      DatabaseAwayError: If there is none.
    """
    if not database.is_closed():
        return False
    deadline, pause = time.monotonic() + FREE_WITHIN / 1000, FIRST_PAUSE
    while True:
        try:
            return bool(database.connect(reuse_if_open=True))
        except MaxConnectionsExceeded as e:
            # The pool is full: a ValueError, which a pool without a timeout raises at once.
            if time.monotonic() > deadline:
                raise DatabaseAwayError(
                    f"no connection of the pool became free within {FREE_WITHIN // 1000} s; "
                    "raise its max_connections, or close connections that are not used"
                ) from e
        except PeeweeException as e:
            raise unavailable(e) from e
        pause = rest(pause)


def discard(database: Any) -> None:
    """Close this thread's connection for good, broken or not, and the idle ones of its pool.

    They went to the same server.  Any: a pool has methods that a plain database does not have.
    """
    with contextlib.suppress(Exception):
        # Drivers raise many kinds of errors when they close a broken connection.
        if isinstance(database, PooledDatabase):
            database.manual_close()
            database.close_idle()
        else:
            database.close()


def unavailable(error: BaseException) -> DatabaseAwayError:
    """Return the error to raise in place of a driver's error."""
    return DatabaseAwayError(scrub(str(error).strip()))


#: Classes of PostgreSQL's errors after which any other event would fail as well: connection,
#: rights, resources, deadlock, lock, shutdown, replica, missing tables.
_AWAY_CLASSES = ("08", "28", "3D", "40", "53", "55", "57", "58")
_AWAY_STATES = ("25006", "42501", "42P01", "42703")
#: SQLite's messages about a wrong statement; its error class is the same as for a locked file.
_REFUSED_BY_SQLITE = re.compile(
    "syntax error|unrecognized token|incomplete input|no such function|wrong number of arguments"
    "|misuse|ambiguous column|too many"
)


#: The databases' codes for a transaction that was rolled back in favour of another.
_UNDONE_STATES, _UNDONE_NUMBERS = ("40001", "40P01"), (1020, 1213)
#: Those for a row that another transaction has locked, if the query does not wait for it.
_LOCKED_STATES, _LOCKED_NUMBERS = ("55P03",), (1205, 3572)
#: How often such a transaction is tried.
_TRIES = 5


def was_undone(error: BaseException | None) -> bool:
    """Return whether the database rolled a transaction back in favour of another."""
    return _has_code(error, _UNDONE_STATES, _UNDONE_NUMBERS)


def is_locked(error: BaseException | None) -> bool:
    """Return whether a query failed because another transaction had locked its rows."""
    return _has_code(error, _LOCKED_STATES, _LOCKED_NUMBERS)


def _has_code(error: BaseException | None, states: Sequence[str], numbers: Sequence[int]) -> bool:
    original = getattr(error, "orig", None)
    number = next(iter(getattr(original, "args", ())), None)
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return number in numbers or state in states


def is_unavailable(error: PeeweeException) -> bool:
    """Distinguish an unavailable database from a rejected statement."""
    original = getattr(error, "orig", None)
    number = next(iter(getattr(original, "args", ())), None)
    if isinstance(number, int) and number:
        return is_away_by_number(number)
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if state is not None:
        return state[:2] in _AWAY_CLASSES or state in _AWAY_STATES
    if isinstance(original, sqlite3.Error) and _REFUSED_BY_SQLITE.search(str(original)):
        return False
    return isinstance(error, (OperationalError, InterfaceError))
