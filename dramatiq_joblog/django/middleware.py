"""The middleware for settings that name it by a dotted path, as django_dramatiq's do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import connections

from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.errors import ConfigurationError, SectionUnknownError
from dramatiq_joblog.middleware import JobLogMiddleware as _JobLogMiddleware

from .conf import get_joblog, setting

if TYPE_CHECKING:
    from dramatiq import Broker, Message

    from dramatiq_joblog.joblog import JobLog


class JobLogMiddleware(_JobLogMiddleware):
    """Writes each job's life to the project's log.

    Example:
      >>> DRAMATIQ_BROKER = {
      ...     "BROKER": "dramatiq.brokers.redis.RedisBroker",
      ...     "MIDDLEWARE": ["dramatiq_joblog.django.JobLogMiddleware"],
      ... }

    Parameters:
      joblog: The log; by default the one of the setting ``JOBLOG``.
      options: Options of :class:`dramatiq_joblog.JobLogMiddleware`; by default those of
        ``JOBLOG["MIDDLEWARE"]``.

    Raises:
      ConfigurationError: If the setting is invalid.
    """

    def __init__(self, joblog: JobLog[Any] | None = None, **options: Any) -> None:
        options = options or setting().get("MIDDLEWARE", {})
        super().__init__(get_joblog() if joblog is None else joblog, **options)
        self._home = self._django_name()

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Refuse a message of a test whose job would be written to the development database."""
        if self._django_name() != self._home:
            raise ConfigurationError(
                f"the job of this message would be written to {self.joblog.name}, but the tests "
                "now use another database: run them by pytest with the fixture joblog_worker "
                "or joblog_broker, or leave JobLogMiddleware out of the settings of the tests"
            )
        try:
            super().before_enqueue(broker, message, delay)
        except SectionUnknownError as e:
            if not self._is_held_up():
                raise
            raise SectionUnknownError(
                f"{e}: this thread is inside a transaction of Django's on the same SQLite file, "
                "which keeps the log from writing: send by transaction.on_commit(), or give the "
                "log a file of its own by JOBLOG['DATABASE']"
            ) from e

    def _is_held_up(self) -> bool:
        """Return whether the log would wait for a Django transaction that this thread is in."""
        alias = self.joblog.django_alias
        if alias is None or not dialect_of(self.joblog.database).writes_alone:
            return False
        return bool(connections[alias].in_atomic_block)

    def _django_name(self) -> Any:
        """Return Django's current name of the log's database, which its test runners change."""
        alias = self.joblog.django_alias
        return None if alias is None else settings.DATABASES[alias].get("NAME")
