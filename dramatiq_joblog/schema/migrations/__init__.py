"""The schema's versions, applied in order by peewee's own runner."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger
from peewee import MySQLDatabase, PostgresqlDatabase, SqliteDatabase
from playhouse.migrations import Runner

from dramatiq_joblog.database.indexes import ensure_indexes
from dramatiq_joblog.database.mysql import tell_apart
from dramatiq_joblog.errors import JobLogError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peewee import Database

    from dramatiq_joblog.schema.tables import Tables

# Any number that no one else uses for an advisory lock.
_LOCK = 0x6A6F_626C
#: Seconds to wait for another process that migrates, on MySQL.
_WAIT = 60


class _Migrator:
    """peewee's migrator, with the models of the log whose tables it changes, jobs first."""

    # Any: peewee's, which has no types.
    def __init__(self, migrator: Any, models: Sequence[Any]) -> None:
        self._migrator = migrator
        self.models = models

    def __getattr__(self, name: str) -> Any:
        return getattr(self._migrator, name)


class _Runner(Runner):  # type: ignore[misc]
    """Runs the migrations of one log."""

    def __init__(self, database: Database, job: Any, models: Sequence[Any] = ()) -> None:
        folder = str(Path(__file__).parent)
        super().__init__(database, folder, f"{job._meta.table_name}_migration")
        self.migrator: Any = _Migrator(self.migrator, models)


def migrate(tables: Tables[Any]) -> None:
    """Bring the tables of a log to this version; safe to repeat and to race.

    A schema that is newer than this code is left as it is: newer versions only add.
    """
    job, database, models = tables.job, tables.database, tuple(tables)
    with _alone(database):
        runner = _Runner(database, job, models)
        ahead = [m.name for m in runner.status() if m.path is None]
        if ahead:
            get_logger(__name__).warning(
                "The log's schema is newer than this code (it has %s): it is used as it is. "
                "Upgrade dramatiq_joblog on this machine.",
                ", ".join(ahead),
            )
        runner.up()
        _add_own_columns(runner.migrator, database, job)
        for model in models:
            model._schema.create_table(safe=True)
            ensure_indexes(model)
            if isinstance(database, MySQLDatabase):
                tell_apart(model)


def compare(database: Database, job: Any) -> tuple[list[str], list[str]]:
    """Return the versions that the schema of a job table lacks, and those that are not known."""
    runner = _Runner(database, job)
    status = runner.status()
    missing = [m.name for m in status if m.path is not None and not m.applied]
    return missing, [m.name for m in status if m.path is None]


def _add_own_columns(migrator: Any, database: Database, job: Any) -> None:
    table = job._meta.table_name
    there = {column.name for column in database.get_columns(table)}
    for field in job._meta.sorted_fields:
        if field.column_name not in there:
            migrator.migrate(migrator.add_column(table, field.column_name, field))


@contextlib.contextmanager
def _alone(database: Database) -> Iterator[None]:
    """Keep out every other process that migrates, in a transaction where DDL allows it."""
    if isinstance(database, SqliteDatabase):
        with database.atomic("IMMEDIATE"):
            yield
    elif isinstance(database, PostgresqlDatabase):
        with database.atomic():
            database.execute_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            yield
    elif isinstance(database, MySQLDatabase):
        # Each statement is committed by itself: whoever comes after a process that was killed
        # in the midst finds what it made, and makes the rest.
        name = "concat('dramatiq_joblog ', md5(database()))"
        ((taken,),) = database.execute_sql(f"SELECT get_lock({name}, {_WAIT})").fetchall()
        if taken != 1:
            raise JobLogError(f"another process has been migrating the log for {_WAIT} s")
        try:
            yield
        finally:
            database.execute_sql(f"SELECT release_lock({name})").fetchall()
    else:
        yield
