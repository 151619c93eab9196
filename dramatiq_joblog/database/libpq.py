"""PostgreSQL statements that are prepared once, and then run in one call of libpq.

psycopg sends a statement, waits for the answer and fetches it in steps.  Before each step another
thread may take the interpreter lock, and a thread that waits for a commit waits for all of them.

The server keeps the plan of a prepared statement until it next analyses the tables.  The plan for a
table that was nearly empty reads all of it, so statements are prepared again as their uses double.
"""

from __future__ import annotations

import itertools
import logging
import sys
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peewee import __exception_wrapper__  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from peewee import Database

#: Where peewee logs statements.
_logger = logging.getLogger("peewee")

#: The most statements prepared on one connection: the server keeps the plan of each.
_MOST = 100

#: Prepare a statement again after so many uses, and after twice as many each time...
_AGAIN_AFTER = 32
#: ... until here: by then the server has analysed the tables.
_AGAIN_UNTIL = 32_768
#: Names are never reused: after a partial deallocation, some may still exist on the server.
_unused = itertools.count()


@dataclass
class _Prepared:
    """A prepared statement, its number of uses, and after how many to prepare it again."""

    name: bytes = field(default_factory=lambda: b"joblog_%d" % next(_unused))
    uses: int = 0
    again_after: int = _AGAIN_AFTER

    @property
    def is_due(self) -> bool:
        """Whether to prepare it again."""
        return self.uses >= self.again_after <= _AGAIN_UNTIL


#: The prepared statements of each connection that supports them, by their text.
_prepared: MutableMapping[Any, dict[str, _Prepared]] = weakref.WeakKeyDictionary()


def run_prepared(database: Database, text: str, parameters: Sequence[str]) -> list[str]:
    """Run a statement on this thread's connection, through psycopg if that is not possible.

    Returns:
      The one column that it returns.

    Raises:
      peewee.PeeweeException: As ``execute_sql()`` does.
    """
    connection = database.connection()
    known = _prepared.get(connection)
    if known is None and _is_able(connection):
        known = _prepared[connection] = {}
    if (
        known is None
        or (text not in known and len(known) >= _MOST)
        # If a prepared statement is gone, its transaction has failed and cannot be repaired.
        or connection.pgconn.transaction_status != sys.modules["psycopg"].pq.TransactionStatus.IDLE
    ):
        return [name for (name,) in database.execute_sql(text, parameters).fetchall()]
    _logger.debug((text, parameters))
    values = [parameter.encode() for parameter in parameters]
    with __exception_wrapper__:
        try:
            answer = _execute(connection.pgconn, known, text, values)
        except sys.modules["psycopg"].errors.InvalidSqlStatementName:
            # psycopg deallocates all prepared statements after a rollback.
            known.clear()
            answer = _execute(connection.pgconn, known, text, values)
    return [answer.get_value(row, 0).decode() for row in range(answer.ntuples)]


def _execute(pgconn: Any, known: dict[str, _Prepared], text: str, values: list[bytes]) -> Any:
    prepared = known.get(text)
    if prepared is None or prepared.is_due:
        again = _Prepared()
        _checked(pgconn.prepare(again.name, _numbered(text)))
        if prepared is not None:
            again.uses, again.again_after = prepared.uses, 2 * prepared.again_after
            # A proxy may have another name for it.
            pgconn.exec_(b"DEALLOCATE " + prepared.name)
        known[text] = prepared = again
    prepared.uses += 1
    return _checked(pgconn.exec_prepared(prepared.name, values))


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
