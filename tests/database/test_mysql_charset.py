"""Connections to MySQL and MariaDB support every character."""

from __future__ import annotations

import peewee
import pytest
from peewee import MySQLDatabase
from playhouse.db_url import connect
from playhouse.pool import PooledMySQLDatabase

from dramatiq_joblog import JobLog
from dramatiq_joblog.database.url import open_database


@pytest.mark.parametrize(
    "database",
    [
        "mysql://db/shop",
        "mysql://db/shop?charset=utf8",
        MySQLDatabase("shop", charset="utf8"),
        PooledMySQLDatabase("shop", charset="utf8mb3"),
    ],
    ids=["url", "named in a URL", "of one's own", "a pool of one's own"],
)
def test_utf8_has_four_bytes(database):
    """MySQL's "utf8" has no emoji, so "utf8mb4" is used for every database."""
    assert "utf8mb4" == open_database(database).connect_params["charset"]


def test_another_charset_is_kept():
    """A charset other than MySQL's "utf8" is left unchanged."""
    assert "ascii" == open_database("mysql://db/shop?charset=ascii").connect_params["charset"]


@pytest.mark.parametrize("database_url", ["mysql"], indirect=True)
def test_an_emoji_in_a_database_of_ones_own(database_url):
    """An emoji is stored as one character even if the URL names MySQL's "utf8"."""
    database = connect(database_url, charset="utf8")
    log = JobLog(database)
    failure = {"jid": "j", "token": "t", "attempt": 1, "outcome": "dead"}
    log.Failure.create(traceback="\N{GRINNING FACE}" * 3, **failure)

    ((length,),) = log.Failure.select(peewee.fn.char_length(log.Failure.traceback)).tuples()

    assert 3 == int(length)
    log.close()
    database.close()
