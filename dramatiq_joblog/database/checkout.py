"""A thread's connection for as long as a question takes, and transactions that wait their turn.

What had to be opened for a question is given back after it, to the pool or to the server; a
connection that the application opened in its thread stays as it is.
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
    from collections.abc import Callable, Iterator

    from peewee import Database

T = TypeVar("T")

#: Milliseconds to wait for a free connection of a pool.
FREE_WITHIN = 10_000


@dataclass
class _Checkout:
    """A connection that was opened for a question."""

    #: What peewee made for it, and for no other.
    opening: list[Any]
    #: What `closings` returned before.
    closings: int
    #: How many questions ask on it now.
    questions: int = 0


class _Checkouts(threading.local):
    """The connections of a thread that were opened for questions."""

    def __init__(self) -> None:
        #: The newest of each database.
        self.of: WeakKeyDictionary[Database, _Checkout] = WeakKeyDictionary()
        self.thread = threading.get_ident()

    def current(self, database: Database, *, opened: bool, closings: int) -> _Checkout | None:
        """Return this thread's open connection if it was *opened* for a question, now or before.

        Any other was opened by the application.
        """
        if opened:
            self.of[database] = _Checkout(_opening_of(database), closings)
        checkout = self.of.get(database)
        return checkout if checkout and checkout.opening is _opening_of(database) else None


_checkouts = _Checkouts()
#: How often what idles in each pool was closed.
_closings: WeakKeyDictionary[Database, int] = WeakKeyDictionary()


def closings(database: Database) -> int:
    """Return how often what idles in a database's pool was closed."""
    return _closings.get(database, 0)


def close_idle(database: Any) -> None:
    """Close what idles in a pool; what is lent to a question now is closed when it comes back.

    Any: a pool has a method that a database has not.
    """
    _closings[database] = closings(database) + 1
    database.close_idle()


def _opening_of(database: Any) -> list[Any]:
    """Return what is another object each time that this thread opens the database.

    The driver's connection may be the same again, as a pool keeps it.  Any: peewee has no public
    name for it.
    """
    transactions: list[Any] = database._state.transactions
    return transactions


@contextlib.contextmanager
def checked_out(database: Database, *, since: int | None = None) -> Iterator[bool]:
    """Have a connection for the block; the last of such blocks gives back what one had to open.

    Parameters:
      database: Where the block asks.
      since: What `closings` returned when the question was put; now, if None.

    Yields:
      Whether it was opened for the block.

    Raises:
      DatabaseAwayError: If the database is unavailable, at the begin or within the block.
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
        # A query of the block has said so.
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
            # A generator may end in a thread that did not begin it: then its own thread's next
            # question gives the connection back.
            if checkout.questions == 0 and threading.get_ident() == thread:
                _give_back(database, checkout, broken=broken)


def _give_back(database: Any, checkout: _Checkout, *, broken: bool) -> None:
    """Close this thread's connection, which nobody asks on now.

    Any: a pool has a method that a database has not.
    """
    if not database.is_closed() and checkout.opening is _opening_of(database):
        if database.in_transaction():
            return
        if broken:
            discard(database)
        else:
            database.close()
            if checkout.closings != closings(database):
                # The log was closed meanwhile: nothing would close what its pool keeps now.
                database.close_idle()
    if _checkouts.of.get(database) is checkout:
        del _checkouts.of[database]


@contextlib.contextmanager
def transaction(database: Database) -> Iterator[None]:
    """Run the block as a transaction that reads and then writes, or as a part of an open one.

    On SQLite it waits for its turn to write before it reads: a lock that is taken after a read
    cannot be waited for.

    Raises:
      DatabaseAwayError: If the database is unavailable, or its file stays locked.
    """
    with checked_out(database), dialect_of(database).begin_in_turn(database):
        yield


def in_transaction(database: Database, work: Callable[[], T]) -> T:
    """Return what *work* returns, which is run as :func:`transaction` runs a block.

    It is run again if the database undid it so that another transaction could go on, as the
    victim of a deadlock; what is a part of an open transaction is not.

    Raises:
      DatabaseAwayError: If the database is unavailable, or undid it at every try.
    """
    tries = 1 if not database.is_closed() and database.in_transaction() else _TRIES
    pause = FIRST_PAUSE
    while True:
        try:
            with transaction(database):
                return work()
        except DatabaseAwayError as e:
            tries -= 1
            if not tries or not _was_undone(e.__cause__):
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
            # It is a ValueError, and a pool without a timeout raises it at once.
            if time.monotonic() > deadline:
                raise DatabaseAwayError(
                    f"no connection of the pool became free within {FREE_WITHIN // 1000} s; "
                    "raise its max_connections, or close connections that are not used"
                ) from e
        except PeeweeException as e:
            raise unavailable(e) from e
        pause = rest(pause)


def discard(database: Any) -> None:
    """Close this thread's connection for good, broken or not, and those that idle in its pool.

    They went to the same server.  Any: a pool has methods that a database has not.
    """
    with contextlib.suppress(Exception):
        # Drivers raise many kinds when they close what is broken already.
        if isinstance(database, PooledDatabase):
            database.manual_close()
            database.close_idle()
        else:
            database.close()


def unavailable(error: BaseException) -> DatabaseAwayError:
    """Return what to raise in place of a driver's error."""
    return DatabaseAwayError(scrub(str(error).strip()))


#: Where PostgreSQL says that any other event would fare no better: the connection, its rights,
#: its resources, a deadlock, a lock, a shutdown, a replica, tables that are not there yet.
_AWAY_CLASSES = ("08", "28", "3D", "40", "53", "55", "57", "58")
_AWAY_STATES = ("25006", "42501", "42P01", "42703")
#: What SQLite says of a statement in error; it has one class for that and for what is locked.
_REFUSED_BY_SQLITE = re.compile(
    "syntax error|unrecognized token|incomplete input|no such function|wrong number of arguments"
    "|misuse|ambiguous column|too many"
)


#: What the databases say of a transaction that they undid for another's sake.
_UNDONE_STATES, _UNDONE_NUMBERS = ("40001", "40P01"), (1020, 1213)
#: How often such a transaction is tried.
_TRIES = 5


def _was_undone(error: BaseException | None) -> bool:
    original = getattr(error, "orig", None)
    number = next(iter(getattr(original, "args", ())), None)
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return number in _UNDONE_NUMBERS or state in _UNDONE_STATES


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
