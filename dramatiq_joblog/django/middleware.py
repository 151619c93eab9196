"""The middleware by a dotted path, as django_dramatiq's settings name theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings

from dramatiq_joblog.errors import ConfigurationError
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
      joblog: The log; by default that of the setting ``JOBLOG``.
      options: Options of :class:`dramatiq_joblog.JobLogMiddleware`; by default those of
        ``JOBLOG["MIDDLEWARE"]``.

    Raises:
      ConfigurationError: If the setting makes no sense.
    """

    def __init__(self, joblog: JobLog[Any] | None = None, **options: Any) -> None:
        options = options or setting().get("MIDDLEWARE", {})
        super().__init__(get_joblog() if joblog is None else joblog, **options)
        self._home = self._django_name()

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Refuse a message of a test whose job would be written to the database of development."""
        if self._django_name() != self._home:
            raise ConfigurationError(
                f"the job of this message would be written to {self.joblog.name}, and the tests "
                "have another database by now: run them by pytest with the fixture joblog_worker "
                "or joblog_broker, or leave JobLogMiddleware out of the settings of the tests"
            )
        super().before_enqueue(broker, message, delay)

    def _django_name(self) -> Any:
        """Return what Django calls the log's database now: its test runners rename it."""
        alias = self.joblog.django_alias
        return None if alias is None else settings.DATABASES[alias].get("NAME")
