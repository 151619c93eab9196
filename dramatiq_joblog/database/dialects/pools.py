"""The log's own pools of connections to servers, whose silence is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import MySQLDatabase, PostgresqlDatabase
from playhouse.pool import PooledMySQLDatabase, PooledPostgresqlDatabase

from dramatiq_joblog.database import silence
from dramatiq_joblog.database.silence import Watched, WatchedPool

if TYPE_CHECKING:
    from peewee import Database


class _WatchedPostgresql(Watched, PostgresqlDatabase):
    """PostgreSQL; its driver opens connections within the URL's ``connect_timeout``."""


class _WatchedMySQL(Watched, MySQLDatabase):
    """MySQL; its driver's ``connect_timeout`` ends before the server's greeting."""

    def _open(self) -> Any:
        raw = super()._open()
        if self.connect_params.get("defer_connect"):
            with self.watch.over(raw, silence.GREETED_WITHIN):
                raw.connect()
        return raw


class WatchedPostgresqlDatabase(
    WatchedPool,
    PooledPostgresqlDatabase,  # type: ignore[misc]
    _WatchedPostgresql,
):
    """A pool of connections to PostgreSQL."""


class WatchedMySQLDatabase(WatchedPool, PooledMySQLDatabase, _WatchedMySQL):  # type: ignore[misc]
    """A pool of connections to MySQL or MariaDB."""


#: The class for each kind of server.
POOLS: dict[str, type[Database]] = {
    "mysql": WatchedMySQLDatabase,
    "postgresql": WatchedPostgresqlDatabase,
}
