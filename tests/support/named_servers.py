"""Servers that the environment names, read before any test takes the names out of it."""

from __future__ import annotations

import os

REDIS_URL = os.environ.get("REDIS_URL")
MYSQL_URL = os.environ.get("JOBLOG_TEST_MYSQL")
POSTGRES_URL = os.environ.get("JOBLOG_TEST_POSTGRES")
RABBITMQ_URL = os.environ.get("JOBLOG_TEST_RABBITMQ")
#: Whether there is one.
ANY = any((REDIS_URL, MYSQL_URL, POSTGRES_URL, RABBITMQ_URL))
#: Whether to use the stand-in even where there is a Redis, to see what it is good for.
STAND_IN = os.environ.get("JOBLOG_TEST_REDIS") == "stand-in"
