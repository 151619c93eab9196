"""Databases for the tests: new ones, and ones that are emptied instead of created again.

Creating the tables takes a second on MariaDB; deleting a test's rows takes milliseconds.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from typing import TYPE_CHECKING, Protocol

import psycopg
import pymysql
import servers

from dramatiq_joblog import JobLog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds that a leftover of a test may hold a lock, before its database is created again.
PATIENCE = 3


def named(url: str, name: str) -> str:
    """Return the URL of another database of the server at *url*."""
    return re.sub(r"/[^/?]*(\?|$)", rf"/{name}\1", url, count=1)


def new_name() -> str:
    """Return a new name for a database."""
    return f"joblog_test_{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def new_postgres(server_url: str) -> Iterator[str]:
    """Create an empty PostgreSQL database, and drop it at the end."""
    name = new_name()
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield named(server_url, name)
    # A new connection: a test may have stopped the server.
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def new_mysql(server_url: str) -> Iterator[str]:
    """Create an empty MariaDB or MySQL database, and drop it at the end."""
    name = new_name()
    connection = pymysql.connect(autocommit=True, **servers.mysql_options(server_url))
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        yield named(server_url, name)
        cursor.execute(f"DROP DATABASE {name}")


def make_tables(url: str) -> list[str]:
    """Create the log's tables; return those that jobs fill, with the jobs last."""
    log = JobLog(url)
    log.create_tables()
    with log.database.connection_context():
        tables = log.database.get_tables()
    log.close()
    filled = [table for table in tables if table != "joblog_job_migration"]
    return sorted(filled, key=lambda table: (table == "joblog_job", table))


class Dialect(Protocol):
    """Operations on a database, for each kind of server."""

    #: The exception of a failed statement.
    error: type[Exception]

    def new(self) -> contextlib.AbstractContextManager[str]:
        """Create a database, and drop it at the end."""

    def connect(self, url: str) -> contextlib.AbstractContextManager:
        """Return a connection that commits each statement."""

    def end_others(self, connection) -> None:
        """End every other connection to the database."""

    def shape(self, connection) -> list[tuple]:
        """Return all columns and indexes, and the versions that were applied."""

    def empty(self, connection, tables: list[str]) -> None:
        """Delete all rows, including those with foreign keys."""


class Postgres:
    """PostgreSQL."""

    error = psycopg.Error

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url

    def new(self) -> contextlib.AbstractContextManager[str]:
        return new_postgres(self._server_url)

    def connect(self, url: str) -> psycopg.Connection:
        connection = psycopg.connect(url, autocommit=True)
        connection.execute(f"SET lock_timeout = '{PATIENCE}s'")
        return connection

    def end_others(self, connection) -> None:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 3000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    def shape(self, connection) -> list[tuple]:
        return connection.execute(
            "SELECT c.relname, c.relkind::text, a.attname FROM pg_class c "
            "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
            "WHERE c.relnamespace = 'public'::regnamespace "
            "UNION ALL SELECT 'database', 'setting', unnest(setconfig) FROM pg_db_role_setting "
            "WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "UNION ALL SELECT 'version', 'applied', name FROM joblog_job_migration ORDER BY 1, 2, 3"
        ).fetchall()

    def empty(self, connection, tables: list[str]) -> None:
        connection.execute(";".join(f"DELETE FROM {table}" for table in tables))


class MySQL:
    """MariaDB and MySQL."""

    #: Tables whose rows have names that tests give.
    _NAMED = ("joblog_job", "joblog_lock")

    error = pymysql.MySQLError

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url

    def new(self) -> contextlib.AbstractContextManager[str]:
        return new_mysql(self._server_url)

    @contextlib.contextmanager
    def connect(self, url: str) -> Iterator[pymysql.Connection]:
        with contextlib.closing(
            pymysql.connect(autocommit=True, **servers.mysql_options(url))
        ) as connection:
            self._ask(connection, f"SET lock_wait_timeout = {PATIENCE}")
            self._ask(connection, f"SET innodb_lock_wait_timeout = {PATIENCE}")
            self._ask(connection, "SET foreign_key_checks = 0")
            yield connection

    def end_others(self, connection) -> None:
        others = self._ask(
            connection,
            "SELECT id FROM information_schema.processlist "
            "WHERE db = database() AND id <> connection_id()",
        )
        for (number,) in others:
            with contextlib.suppress(pymysql.MySQLError):  # it may have ended meanwhile
                self._ask(connection, f"KILL {number}")

    def shape(self, connection) -> list[tuple]:
        # A checksum: reading some hundred rows takes longer than most tests.
        return self._ask(
            connection,
            "SELECT COUNT(*), SUM(CRC32(CONCAT_WS('.', a, b, c))), SUM(CRC32(CONCAT(b, a))) FROM ("
            "SELECT table_name a, column_name b, column_type c FROM information_schema.columns "
            "WHERE table_schema = database() "
            "UNION ALL SELECT table_name, index_name, column_name "
            "FROM information_schema.statistics WHERE table_schema = database() "
            "UNION ALL SELECT 'version', 'applied', name FROM joblog_job_migration) AS shape",
        )

    def empty(self, connection, tables: list[str]) -> None:
        for table in tables:
            # What is deleted can be waited for until it is purged: a test that gives a job or a
            # key the name of another's would.
            how = "TRUNCATE" if table in self._NAMED else "DELETE FROM"
            self._ask(connection, f"{how} {table}")

    @staticmethod
    def _ask(connection, text: str) -> list[tuple]:
        with connection.cursor() as cursor:
            cursor.execute(text)
            return list(cursor.fetchall())


class Prepared:
    """A database with the log's tables, which all tests of a pytest worker use in turn."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._shape: list[tuple] = []
        self._tables: list[str] = []
        self._database = contextlib.ExitStack()
        self.url = ""

    def empty(self) -> str:
        """Return the URL of the database, emptied, or created again if its schema has changed."""
        if self.url and not self._emptied():
            self.close()
        if not self.url:
            self.url = self._database.enter_context(self._dialect.new())
            self._tables = make_tables(self.url)
            with self._dialect.connect(self.url) as connection:
                self._shape = self._dialect.shape(connection)
        return self.url

    def _emptied(self) -> bool:
        try:
            with self._dialect.connect(self.url) as connection:
                self._dialect.end_others(connection)
                if self._dialect.shape(connection) != self._shape:
                    return False
                self._dialect.empty(connection, self._tables)
        except self._dialect.error:
            return False
        return True

    def close(self) -> None:
        """Drop the database."""
        self._database.close()
        self.url = ""


class PreparedFile:
    """A SQLite file with the log's tables, which is copied for each test."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "template.db"

    def copy(self, path: Path) -> None:
        """Put a copy at *path*."""
        if not self._path.exists():
            making = self._path.with_suffix(".new")
            make_tables(f"sqlite:///{making}")
            making.rename(self._path)
        shutil.copyfile(self._path, path)
