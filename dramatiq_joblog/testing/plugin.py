"""The fixtures and hooks, as pytest sees them.

pytest imports this whenever it starts, in each project of the environment, so what they need is
imported when a test first asks for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dramatiq import Broker

    from dramatiq_joblog.joblog import JobLog

    from .broker import JobLogBroker, JobLogWorker


def pytest_configure(config: pytest.Config) -> None:
    """Move logs to Django's test databases, where there is pytest-django."""
    if config.pluginmanager.has_plugin("django"):
        config.pluginmanager.register(_late("django"), f"{__package__}.django")


@pytest.fixture
def joblog_app_broker() -> Broker | None:
    """Return the broker that your actors are declared on; override it if it is not the global one.

    It is never changed.
    """
    broker: Broker | None = importlib.import_module("dramatiq.broker").global_broker
    return broker


@pytest.fixture
def joblog(
    request: pytest.FixtureRequest, joblog_app_broker: Broker | None, tmp_path: Path
) -> Iterator[JobLog[Any]]:
    """Return your log, moved to a SQLite file of this test; a new log if your broker has none.

    A log with a job model of your own stays on its database, with the tables that its foreign
    keys refer to.  Under pytest-django it is moved to Django's test database, as is a log that
    was made by ``JobLog.from_django()``.
    """
    with _late("fixtures").log_of_test(request, joblog_app_broker, tmp_path) as log:
        yield log


@pytest.fixture
def joblog_broker(joblog: JobLog[Any], joblog_app_broker: Broker | None) -> Iterator[JobLogBroker]:
    """Return the global broker of this test, in memory, with your actors and your middleware.

    A message to any other broker is refused meanwhile.
    """
    with _late("fixtures").broker_of_test(joblog, joblog_app_broker) as broker:
        yield broker


@pytest.fixture
def joblog_worker(joblog: JobLog[Any], joblog_broker: JobLogBroker) -> JobLogWorker:
    """Return a worker that runs the jobs that a test sends."""
    worker: JobLogWorker = _late("broker").JobLogWorker(joblog, joblog_broker)
    return worker


# Any: a module, whose names mypy does not know.
def _late(name: str) -> Any:
    return importlib.import_module(f".{name}", __package__)
