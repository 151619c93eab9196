"""The database's clock, the only one that all workers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peewee import SQL

from .dialects import dialect_of

if TYPE_CHECKING:
    from peewee import Database


def database_now(database: Database) -> SQL:
    """Return the expression for the database's time, in milliseconds since 1970."""
    return SQL(dialect_of(database).now)


def read_now(database: Database) -> int:
    """Return the database's time, in milliseconds since 1970."""
    ((now,),) = database.execute_sql(f"SELECT {dialect_of(database).now}").fetchall()
    return int(now)
