"""Servers named in the environment, read before tests clear it."""

from __future__ import annotations

import os

REDIS_URL = os.environ.get("REDIS_URL")
MYSQL_URL = os.environ.get("JOBLOG_TEST_MYSQL")
POSTGRES_URL = os.environ.get("JOBLOG_TEST_POSTGRES")
RABBITMQ_URL = os.environ.get("JOBLOG_TEST_RABBITMQ")
#: Whether any server is named.
ANY = any((REDIS_URL, MYSQL_URL, POSTGRES_URL, RABBITMQ_URL))
#: Whether to use the stand-in even if there is a Redis, in order to test it.
STAND_IN = os.environ.get("JOBLOG_TEST_REDIS") == "stand-in"
