"""One thread's connection to the database: opened when needed, closed if it hangs.

For the log's own threads; all others use :mod:`.checkout`.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from dramatiq.logging import get_logger
from peewee import PeeweeException

from dramatiq_joblog.errors import DatabaseAwayError

from .checkout import is_locked, is_unavailable, open_connection, unavailable, was_undone
from .dialects import dialect_of
from .silence import Watch, Watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from peewee import Database

#: Milliseconds that the database may take for one statement or lock.
STATEMENT_TIMEOUT = 3_000
#: Milliseconds after which a connection that neither answers nor fails is cut.
CUT_AFTER = 4_000
#: Milliseconds between two checks whether the database is back: at first, and at most.
PROBE_AFTER, PROBE_AT_MOST = 200, 2_000

#: Seconds until what another transaction was in the way of is tried again: at first, at most.
_BUSY_PAUSE, _BUSY_PAUSE_AT_MOST = 0.0001, 0.005

T = TypeVar("T")

_logger = get_logger(__name__)


class Connection:
    """The connection of the thread that uses it first.

    Parameters:
      database: Where to connect.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._dialect = dialect_of(database)
        self._raw: Any = None
        self._watch = Watch()
        #: Milliseconds after which it is cut; a file is not silent.
        self._cut_after = CUT_AFTER if self._dialect.file_of(database) is None else None

    def ask(self, function: Callable[[], T]) -> T:
        """Call *function*, perhaps repeatedly, with an open connection, and return its result.

        The connection is opened if necessary, and closed after any error.

        Raises:
          DatabaseAwayError: If the database is unavailable.
        """
        if self._database.is_closed():
            try:
                self._open()
            except Exception as e:
                self.close()
                raise unavailable(e) from e
        try:
            with self._watch.over(self._raw, self._cut_after):
                return self._ask_patiently(function)
        except PeeweeException as e:
            self.close()
            if is_unavailable(e):
                raise unavailable(e) from e
            raise
        except BaseException:
            self.close()
            raise

    def _ask_patiently(self, function: Callable[[], T]) -> T:
        """Call *function*, again and again while another transaction is in its way.

        It writes to the SQLite file, has locked rows, or was preferred in a deadlock.
        """
        deadline = time.monotonic() + STATEMENT_TIMEOUT / 1000
        pause = _BUSY_PAUSE
        while True:
            try:
                return function()
            except (PeeweeException, DatabaseAwayError) as e:
                if not self._is_passing(e) or time.monotonic() > deadline:
                    raise
            # SQLite's own way of waiting sleeps longer than it takes to write a batch.
            time.sleep(pause)
            pause = min(pause * 1.5, _BUSY_PAUSE_AT_MOST)

    def _is_passing(self, error: Exception) -> bool:
        # A query of a model raises our error, with the driver's as its cause.
        cause = error.__cause__ if isinstance(error, DatabaseAwayError) else error
        return self._dialect.is_busy(cause) or is_locked(cause) or was_undone(cause)

    def close(self) -> None:
        """Close the connection, broken or not."""
        self._raw = None
        database: Any = self._database
        try:
            if not database.is_closed():
                # A pool would keep it, in whatever state it is.
                getattr(database, "manual_close", database.close)()
        except Exception as e:  # noqa: BLE001
            # Drivers raise many kinds when they close what is broken already.
            _logger.debug("Closing a broken connection failed: %s", e)

    def leave_to_parent(self) -> Any:
        """Return the parent process's connection after a fork, and forget it."""
        raw, self._raw, self._watch = self._raw, None, Watch()
        return raw

    def _open(self) -> None:
        database = self._database
        open_connection(database)
        self._raw = database.connection()
        with self._watch.over(self._raw, self._cut_after):
            self._dialect.prepare(database, STATEMENT_TIMEOUT)


def leave_connections(database: Any) -> Any:
    """Return the parent process's connections after a fork, and forget them.

    The locks are replaced, because threads that do not exist here may hold them.  peewee's own
    ``dispose()`` waits for them, and is missing in 4.4.
    """
    left = (
        database._state.conn,
        getattr(database, "_connections", None),
        getattr(database, "_in_use", None),
    )
    if isinstance(database, Watched):
        database.leave_watch_to_parent()
    database._state.reset()
    database._lock = threading.RLock()
    if hasattr(database, "_pool_lock"):
        database._pool_lock = threading.RLock()
        database._pool_available = threading.Condition(database._pool_lock)
        database._connections, database._in_use = [], {}
    return left


class Probe(threading.Thread):
    """Checks on a daemon thread whether a database is back.

    Parameters:
      database: The database to check.
      wake: Called once it answers.
      rehearse: Checks everything that writing needs, and raises if writing would fail.
      still: Called with the error, after each check that failed.
      pause: Milliseconds until the first check.
    """

    def __init__(
        self,
        database: Database,
        wake: Callable[[], None],
        *,
        rehearse: Callable[[], None],
        still: Callable[[Exception], None],
        pause: int = PROBE_AFTER,
    ) -> None:
        super().__init__(name="dramatiq_joblog probe", daemon=True)
        self._database = database
        self._wake = wake
        self._rehearse = rehearse
        self._still = still
        self._pause = pause
        self._stopped = threading.Event()
        #: Set once the database answers.
        self.back = threading.Event()
        self.start()

    def stop(self) -> None:
        """End soon."""
        self._stopped.set()

    def run(self) -> None:
        """Check until the database answers."""
        connection = Connection(self._database)
        pause = self._pause / 1000
        while not self._stopped.wait(pause):
            try:
                connection.ask(self._rehearse)
            except Exception as e:  # noqa: BLE001
                # Drivers raise many kinds of errors while a server starts or stops.
                self._still(e)
                pause = min(pause * 2, PROBE_AT_MOST / 1000)
            else:
                connection.close()
                self.back.set()
                self._wake()
                return
