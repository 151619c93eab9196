"""Django's migrations of the log's tables: each runs the log's own, on Django's connection.

Both use the log's table of versions, so ``manage.py migrate`` and ``dramatiq-joblog migrate`` may
run in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import connections, migrations, router

from dramatiq_joblog.database.borrowed import borrowed
from dramatiq_joblog.database.checkout import checked_out
from dramatiq_joblog.schema.migrations import compare, migrate

from .conf import get_joblog

if TYPE_CHECKING:
    from collections.abc import Sequence


def migration(*, after: str | None = None, state: Sequence[Any] = ()) -> type[migrations.Migration]:
    """Return a migration that brings the log's tables to the version of this code.

    Parameters:
      after: The name of the migration before it.
      state: The operations on Django's state of the models.
    """
    needs = [] if after is None else [("joblog", after)]
    steps: list[Any] = [migrations.RunPython(forwards, migrations.RunPython.noop)]
    if state:
        steps.append(migrations.SeparateDatabaseAndState(state_operations=[*state]))

    class Migration(migrations.Migration):
        # The log's migrations begin their own transactions, which SQLite requires.
        atomic = False
        initial = after is None
        dependencies = needs
        operations = steps

    return Migration


def forwards(_: Any, schema_editor: Any) -> None:
    """Bring the tables to this version, if they are in the database of the connection."""
    bring(schema_editor.connection.alias)


def bring_own_columns(using: str, **signal: Any) -> None:
    """After Django's migrations, add new columns of the user's own job model."""
    # ``flush`` also sends the signal, after each test.
    if "plan" in signal:
        bring(using)


def bring(alias: str) -> None:
    """Run the log's migrations on Django's connection, if its database is this one."""
    log = get_joblog()
    if alias != log.django_alias or not router.allow_migrate(alias, "joblog"):
        return
    connection = connections[alias]
    connection.ensure_connection()
    database = borrowed(log.database, connection.connection)
    with database.bind_ctx([*log.core.tables], bind_refs=False, bind_backrefs=False):
        try:
            with checked_out(database):
                migrate(log.core.tables)
        finally:
            database.close()


def missing(log: Any) -> list[str]:
    """Return the versions that a log's tables lack."""
    with checked_out(log.database):
        return compare(log.database, log.Job)[0]
