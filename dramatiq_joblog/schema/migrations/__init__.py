"""The schema's versions, applied in order by peewee's own runner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger
from playhouse.migrations import Runner

from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.database.indexes import ensure_indexes
from dramatiq_joblog.database.silence import patient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peewee import Database

    from dramatiq_joblog.schema.tables import Tables


class _Migrator:
    """peewee's migrator, with the models of the log's tables, jobs first."""

    # Any: peewee's migrator has no types.
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
    """Bring the tables of a log to this version; safe to repeat, and to run in parallel.

    A schema that is newer than this code is left as it is: newer versions remove nothing that it
    needs.
    """
    job, database, models = tables.job, tables.database, tuple(tables)
    dialect = dialect_of(database)
    # A large table's new index takes its time.
    with patient(), dialect.migrating(database):
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
            dialect.tell_apart(model)


def compare(database: Database, job: Any) -> tuple[list[str], list[str]]:
    """Return the versions that the schema of a job table lacks, and those unknown to this code."""
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
