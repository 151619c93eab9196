"""A pytest plugin that runs your actors in your tests, and returns their rows.

pytest finds it automatically.  Its fixtures move your actors to a broker in memory and your log to
a SQLite file of the test, and restore both; nothing has to be started or cleared.
"""

from .broker import DEFAULT_LIMIT, JobLogBroker, JobLogWorker
from .django import pytest_collection_finish, pytest_fixture_setup, pytest_unconfigure
from .fixtures import joblog, joblog_app_broker, joblog_broker, joblog_worker

__all__ = [
    "DEFAULT_LIMIT",
    "JobLogBroker",
    "JobLogWorker",
    "joblog",
    "joblog_app_broker",
    "joblog_broker",
    "joblog_worker",
    "pytest_collection_finish",
    "pytest_fixture_setup",
    "pytest_unconfigure",
]
