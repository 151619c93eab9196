"""What differs between SQLite, PostgreSQL and MySQL, in one class for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peewee import MySQLDatabase, PostgresqlDatabase, Proxy, SqliteDatabase

from dramatiq_joblog.errors import ConfigurationError

from .mysql import MySQL
from .postgresql import PostgreSQL
from .sqlite import SQLite

if TYPE_CHECKING:
    from peewee import Database

    from .base import Dialect

_DIALECTS: tuple[tuple[type[Database], Dialect], ...] = (
    (SqliteDatabase, SQLite()),
    (PostgresqlDatabase, PostgreSQL()),
    (MySQLDatabase, MySQL()),
)


def dialect_of(database: Database) -> Dialect:
    """Return the dialect of a database; only this function checks its class.

    Raises:
      ConfigurationError: If it is none of these three.
    """
    if isinstance(database, Proxy):
        database = database.obj
    for kind, dialect in _DIALECTS:
        if isinstance(database, kind):
            return dialect
    raise ConfigurationError(
        f"{type(database).__name__} is not a database that the log knows: use peewee's "
        "SqliteDatabase, PostgresqlDatabase or MySQLDatabase, one of their subclasses, or a URL"
    )
