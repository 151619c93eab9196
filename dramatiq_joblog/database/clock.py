"""The database's own clock: the only one that all workers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peewee import SQL, MySQLDatabase, SqliteDatabase

if TYPE_CHECKING:
    from peewee import Database

_SQLITE = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
# Not of NOW(): the hour that comes twice a year in a session's time zone would be ambiguous.
_MYSQL = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000)"
_POSTGRESQL = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"


def database_now(database: Database) -> SQL:
    """Return the expression for the database's time, in milliseconds since 1970."""
    if isinstance(database, SqliteDatabase):
        return SQL(_SQLITE)
    return SQL(_MYSQL if isinstance(database, MySQLDatabase) else _POSTGRESQL)
