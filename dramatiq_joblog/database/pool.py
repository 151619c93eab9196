"""The pools of a log that made its database itself.

peewee keeps the connection of a thread that ended without giving it back, and counts it as used
for ever; here it is closed.  What is open at the end of the process is closed too.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import Any

from playhouse.db_url import register_database
from playhouse.pool import PooledMySQLDatabase, PooledPostgresqlDatabase, PooledSqliteDatabase

#: The pools of this process, for its end.
_pools: weakref.WeakSet[Any] = weakref.WeakSet()


class _Loan:
    """A connection that a thread has; dropped with what else is the thread's own when it ends."""

    def __init__(self, pool: _LoanPool, raw: Any) -> None:
        self._pool = weakref.ref(pool)
        self._process = os.getpid()
        #: None once it was given back.
        self.raw: Any = raw

    def __del__(self) -> None:
        pool = self._pool()
        # In the child of a fork it is the parent's to close.
        if pool is not None and self.raw is not None and self._process == os.getpid():
            pool.close_left(self.raw)


class _LoanPool:
    """Notes which connection each thread has; a base beside one of peewee's pools."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loans = threading.local()
        super().__init__(*args, **kwargs)
        _pools.add(self)

    def _connect(self) -> Any:
        base: Any = super()
        raw = base._connect()
        self._loans.loan = _Loan(self, raw)
        return raw

    def _close(self, conn: Any, close_conn: bool = False) -> None:
        loan = getattr(self._loans, "loan", None)
        if loan is not None and loan.raw is conn:
            loan.raw = None
        base: Any = super()
        base._close(conn, close_conn)

    def close_left(self, raw: Any) -> None:
        """Close a connection whose thread has ended."""
        self._close(raw, close_conn=True)


class OwnSqliteDatabase(_LoanPool, PooledSqliteDatabase):  # type: ignore[misc]
    """SQLite, by URL."""


class OwnPostgresqlDatabase(_LoanPool, PooledPostgresqlDatabase):  # type: ignore[misc]
    """PostgreSQL, by URL."""


class OwnMySQLDatabase(_LoanPool, PooledMySQLDatabase):  # type: ignore[misc]
    """MySQL or MariaDB, by URL."""


#: What stands before the ``://`` of a URL for one of them.
SCHEME = "{}+joblog"
register_database(OwnSqliteDatabase, SCHEME.format("sqlite"))
register_database(OwnPostgresqlDatabase, SCHEME.format("postgresql"))
register_database(OwnMySQLDatabase, SCHEME.format("mysql"))


@atexit.register
def _close_at_exit() -> None:
    """Close this thread's connections, and those that nobody uses."""
    for pool in list(_pools):
        if not pool.is_closed():
            pool.close()
        pool.close_idle()
