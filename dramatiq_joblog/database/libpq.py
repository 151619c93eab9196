"""PostgreSQL statements that are prepared once, and then run in one call of libpq.

psycopg sends a statement, waits for the answer and fetches it in steps.  Before each step another
thread may take the interpreter lock, and a thread that waits for a commit waits for all of them.
"""

from __future__ import annotations

import itertools
import logging
import sys
import weakref
from typing import TYPE_CHECKING, Any

from peewee import __exception_wrapper__  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from peewee import Database

#: Where peewee logs statements.
_logger = logging.getLogger("peewee")

#: The most statements prepared on one connection: the server keeps the plan of each.
_MOST = 100

#: The server's names for the prepared statements of each connection that supports them.
_prepared: MutableMapping[Any, dict[str, bytes]] = weakref.WeakKeyDictionary()
#: Names are never reused: after a partial deallocation, some may still exist on the server.
_unused = itertools.count()


def run_prepared(database: Database, text: str, parameters: Sequence[str]) -> list[str]:
    """Run a statement on this thread's connection, through psycopg if that is not possible.

    Returns:
      The one column that it returns.

    Raises:
      peewee.PeeweeException: As ``execute_sql()`` does.
    """
    connection = database.connection()
    names = _prepared.get(connection)
    if names is None and _is_able(connection):
        names = _prepared[connection] = {}
    if (
        names is None
        or (text not in names and len(names) >= _MOST)
        # If a prepared statement is gone, its transaction has failed and cannot be repaired.
        or connection.pgconn.transaction_status != sys.modules["psycopg"].pq.TransactionStatus.IDLE
    ):
        return [name for (name,) in database.execute_sql(text, parameters).fetchall()]
    _logger.debug((text, parameters))
    values = [parameter.encode() for parameter in parameters]
    with __exception_wrapper__:
        try:
            answer = _execute(connection.pgconn, names, text, values)
        except sys.modules["psycopg"].errors.InvalidSqlStatementName:
            # psycopg deallocates all prepared statements after a rollback.
            names.clear()
            answer = _execute(connection.pgconn, names, text, values)
    return [answer.get_value(row, 0).decode() for row in range(answer.ntuples)]


def _execute(pgconn: Any, names: dict[str, bytes], text: str, values: list[bytes]) -> Any:
    if (name := names.get(text)) is None:
        name = b"joblog_%d" % next(_unused)
        _checked(pgconn.prepare(name, _numbered(text)))
        names[text] = name
    return _checked(pgconn.exec_prepared(name, values))


def _numbered(text: str) -> bytes:
    """Return a statement with numbered parameters, as the server expects them."""
    first, *others = text.split("%s")
    return (first + "".join(f"${n}{part}" for n, part in enumerate(others, 1))).encode()


def _is_able(connection: Any) -> bool:
    """Return whether this is a connection of psycopg 3 that may prepare and wait."""
    if not hasattr(connection, "pgconn") or connection.prepare_threshold is None:
        return False
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("select"):
        # With gevent, waiting in libpq would block the whole process.
        return False
    return bool(connection.autocommit) and connection.info.encoding == "utf-8"


def _checked(answer: Any) -> Any:
    """Return a result of the server, or raise it if it is an error."""
    # It is imported: the result came through it.
    psycopg = sys.modules["psycopg"]
    if answer.status in (psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.TUPLES_OK):
        return answer
    error = psycopg.errors.error_from_result(answer)
    # Without an error code of the server, it is the connection that has ended.
    raise error if error.sqlstate else psycopg.OperationalError(str(error))
