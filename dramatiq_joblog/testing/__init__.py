"""A pytest plugin that runs your actors in your tests, and returns their rows.

pytest finds it automatically.  Its fixtures move your actors to a broker in memory and your log to
a SQLite file of the test, and restore both; nothing has to be started or cleared.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .plugin import joblog, joblog_app_broker, joblog_broker, joblog_worker, pytest_configure

if TYPE_CHECKING:
    from .broker import DEFAULT_LIMIT, JobLogBroker, JobLogWorker

__all__ = [
    "DEFAULT_LIMIT",
    "JobLogBroker",
    "JobLogWorker",
    "joblog",
    "joblog_app_broker",
    "joblog_broker",
    "joblog_worker",
    "pytest_configure",
]


def __getattr__(name: str) -> Any:
    """Import the other names when they are first used: pytest imports this at each start."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".broker", __name__), name)
