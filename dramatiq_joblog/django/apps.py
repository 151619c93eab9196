"""The app's configuration, which Django calls when it loads the app."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.signals import request_finished
from django.db.models.signals import post_migrate

from dramatiq_joblog.errors import ConfigurationError

from .checks import check_log, check_tables
from .conf import get_joblog
from .migrating import bring_own_columns


class JobLogConfig(AppConfig):
    """The app, whose label is ``joblog``."""

    name = "dramatiq_joblog.django"
    label = "joblog"
    verbose_name = "Job log"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect the signal handlers; nothing is opened."""
        checks.register(check_log)
        checks.register(check_tables, checks.Tags.database)
        request_finished.connect(give_back, dispatch_uid="dramatiq_joblog")
        post_migrate.connect(bring_own_columns, sender=self, dispatch_uid="dramatiq_joblog")
        try:
            log = get_joblog()
        except ConfigurationError:
            # The system check reports it.
            return
        for model in self.get_models():
            # The log's own model decides the names of its tables.
            model._meta.db_table = table_of(log, model)


def table_of(log: Any, model: Any) -> str:
    """Return the name of the log's table that a model of Django shows."""
    ours = {each.__name__: each._meta.table_name for each in log.core.tables}
    name: str = ours.get(model.__name__, log.Job._meta.table_name)
    return name


def give_back(**_: Any) -> None:
    """Return the log's connection that this request's thread opened."""
    try:
        log = get_joblog()
    except ConfigurationError:
        return
    log.release()
