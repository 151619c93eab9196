"""System checks of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dramatiq.broker
from django.core import checks

from dramatiq_joblog.errors import ConfigurationError, DatabaseAwayError
from dramatiq_joblog.middleware import JobLogMiddleware

from .conf import discover_actors, get_joblog
from .migrating import missing

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_log(**_: Any) -> list[checks.CheckMessage]:
    """Return what is wrong with the setting ``JOBLOG`` and with the broker."""
    try:
        log = get_joblog()
    except ConfigurationError as e:
        return [checks.Error(f"{e}.", hint="Correct the setting JOBLOG.", id="joblog.E001")]
    found: list[checks.CheckMessage] = []
    if log.django_alias is None:
        found.append(
            checks.Info(
                f"The log was not made by JobLog.from_django(), but for {log.name}.",
                hint="Make its tables with: manage.py joblog migrate. Django's migrate does not.",
                id="joblog.I001",
            )
        )
    return found + _of_broker(log)


def _of_broker(log: Any) -> list[checks.CheckMessage]:
    discover_actors()
    broker = dramatiq.broker.global_broker
    if broker is None:
        # This process sends nothing, or the broker's module is not imported yet.
        return []
    logs = [m.joblog for m in broker.middleware if isinstance(m, JobLogMiddleware)]
    if any(each is log for each in logs):
        return []
    if logs:
        text = "The broker's JobLogMiddleware writes to another log than that of JOBLOG."
        hint = "Name that log by its dotted path: JOBLOG = 'shop.jobs.joblog'."
    else:
        text = f"The {type(broker).__name__} has no JobLogMiddleware: no job is logged."
        hint = "Add 'dramatiq_joblog.django.JobLogMiddleware' to DRAMATIQ_BROKER['MIDDLEWARE']."
    return [checks.Warning(text, hint=hint, id="joblog.W002")]


def check_tables(databases: Sequence[str] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """Return whether the tables are out of date, if the log's database is to be checked."""
    try:
        log = get_joblog()
    except ConfigurationError:
        # The other check reports it.
        return []
    if log.django_alias not in (databases or ()):
        return []
    try:
        lacking = missing(log)
    except DatabaseAwayError as e:
        return [checks.Warning(f"The log's database is unavailable: {e}", id="joblog.W004")]
    if not lacking:
        return []
    return [
        checks.Warning(
            f"The log's tables are not up to date: {', '.join(lacking)} did not run on {log.name}.",
            hint=f"Run: manage.py migrate joblog --database {log.django_alias}",
            id="joblog.W003",
        )
    ]
