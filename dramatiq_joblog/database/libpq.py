"""Statements of PostgreSQL that are prepared once, and then run in one call of libpq.

psycopg sends a statement, waits for its answer and fetches that in steps, before each of which
another thread may take the interpreter.  A thread that waits for a commit waits for them all.
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

#: As many are prepared on a connection at most: the server keeps the plan of each.
_MOST = 100

#: For each connection that can do it, how the server calls what is prepared there.
_prepared: MutableMapping[Any, dict[str, bytes]] = weakref.WeakKeyDictionary()
#: A name is never given twice: what was taken back in part may still have the others.
_unused = itertools.count()


def run_prepared(database: Database, text: str, parameters: Sequence[str]) -> list[str]:
    """Run a statement on this thread's connection, as psycopg does where it cannot be so.

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
        # A transaction could not be saved once its statement turned out to be gone.
        or connection.pgconn.transaction_status != sys.modules["psycopg"].pq.TransactionStatus.IDLE
    ):
        return [name for (name,) in database.execute_sql(text, parameters).fetchall()]
    _logger.debug((text, parameters))
    values = [parameter.encode() for parameter in parameters]
    with __exception_wrapper__:
        try:
            answer = _execute(connection.pgconn, names, text, values)
        except sys.modules["psycopg"].errors.InvalidSqlStatementName:
            # psycopg takes back all that is prepared once a transaction was rolled back.
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
    """Return a statement with its parameters as the server calls them."""
    first, *others = text.split("%s")
    return (first + "".join(f"${n}{part}" for n, part in enumerate(others, 1))).encode()


def _is_able(connection: Any) -> bool:
    """Return whether this is a connection of psycopg 3 that may prepare and wait."""
    if not hasattr(connection, "pgconn") or connection.prepare_threshold is None:
        return False
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("select"):
        # libpq would wait with all the process.
        return False
    return bool(connection.autocommit) and connection.info.encoding == "utf-8"


def _checked(answer: Any) -> Any:
    """Return an answer of the server's, or raise the error that it is."""
    # It is there: the answer came through it.
    psycopg = sys.modules["psycopg"]
    if answer.status in (psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.TUPLES_OK):
        return answer
    error = psycopg.errors.error_from_result(answer)
    # Without a number of the server's it is the connection that has ended.
    raise error if error.sqlstate else psycopg.OperationalError(str(error))
