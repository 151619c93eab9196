"""Database URLs of other libraries; no text ever shows a password."""

from __future__ import annotations

import traceback
from urllib.parse import urlsplit

import pytest
from peewee import MySQLDatabase, PostgresqlDatabase, SqliteDatabase
from pydantic import MySQLDsn, PostgresDsn, SecretStr, TypeAdapter
from starlette import datastructures

from dramatiq_joblog import ConfigurationError, JobLog

PASSWORD = "hun/ter@2?#:%"
WORD = "swordfish"
QUOTED = "hun%2Fter%402%3F%23%3A%25"


class AlchemyURL:
    """Like SQLAlchemy's ``URL``: its ``str`` and ``repr`` hide the password."""

    drivername = "postgresql+psycopg"

    def render_as_string(self, hide_password=True):
        return f"postgresql+psycopg://ada:{'***' if hide_password else QUOTED}@db:5433/shop"

    __str__ = __repr__ = render_as_string


def opened(url):
    """Return the database of a log of *url*."""
    return JobLog(url).database


@pytest.mark.parametrize(
    "scheme",
    [
        "postgres",
        "postgresql",
        "postgresql+asyncpg",
        "postgresql+pg8000",
        "postgresql+pool",
        "postgresql+psycopg",
        "postgresql+psycopg2",
        "postgresql+psycopg_async",
        "POSTGRESQL+Psycopg",
        "postgres+asyncpg",
    ],
)
def test_any_driver_of_postgresql(scheme):
    """Whatever driver a URL names, the log uses its own, with the same address and password."""
    database = opened(f"{scheme}://ada:{QUOTED}@db:5433/shop?sslmode=require")

    assert isinstance(database, PostgresqlDatabase)
    assert "shop" == database.database
    for name, value in {
        "host": "db",
        "port": 5433,
        "user": "ada",
        "password": PASSWORD,
        "sslmode": "require",
    }.items():
        assert value == database.connect_params[name]


@pytest.mark.parametrize(
    "scheme",
    [
        "mysql",
        "mysql+pymysql",
        "mysql+aiomysql",
        "mysql+asyncmy",
        "mysql+mysqldb",
        "mariadb",
        "mariadb+pymysql",
    ],
)
def test_any_driver_of_mysql(scheme):
    """MySQL's and MariaDB's URLs are the same database, whatever driver they name."""
    database = opened(f"{scheme}://ada:{QUOTED}@db:3307/shop?charset=utf8mb4")

    assert isinstance(database, MySQLDatabase)
    assert ("shop", "db", 3307) == (
        database.database,
        database.connect_params["host"],
        database.connect_params["port"],
    )
    assert PASSWORD == database.connect_params["password"]
    assert "utf8mb4" == database.connect_params["charset"]


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+aiosqlite", "sqlite+pysqlite", "sqlite+pool"])
def test_any_driver_of_sqlite(tmp_path, monkeypatch, scheme):
    """A file is found by its absolute and relative path, and is writable."""
    monkeypatch.chdir(tmp_path)
    for rest in ("relative.db", f"{tmp_path}/absolute.db"):
        log = JobLog(f"{scheme}:///{rest}")
        assert isinstance(log.database, SqliteDatabase)
        log.create_tables()
        log.close()
    assert (tmp_path / "relative.db").exists()
    assert (tmp_path / "absolute.db").exists()


def test_options_that_only_asyncpg_knows():
    """Parameters unknown to libpq are left out, and TLS uses libpq's name."""
    params = opened(
        "postgresql+asyncpg://db/shop?ssl=true&prepared_statement_cache_size=0&application_name=a"
    ).connect_params

    assert ("require", "a") == (params["sslmode"], params["application_name"])
    assert not {"ssl", "prepared_statement_cache_size"} & set(params)


@pytest.mark.parametrize(
    "url",
    [
        AlchemyURL(),
        TypeAdapter(PostgresDsn).validate_python(f"postgresql+asyncpg://ada:{QUOTED}@db:5433/shop"),
        SecretStr(f"postgresql://ada:{QUOTED}@db:5433/shop"),
        datastructures.Secret(f"postgres://ada:{QUOTED}@db:5433/shop"),
        datastructures.URL(f"postgresql+psycopg2://ada:{QUOTED}@db:5433/shop"),
        urlsplit(f"postgresql://ada:{QUOTED}@db:5433/shop"),
    ],
    ids=["sqlalchemy", "pydantic", "secret", "starlette-secret", "starlette", "split"],
)
def test_an_object_that_is_a_url(url):
    """URL objects of settings libraries are accepted, with their hidden password."""
    log = JobLog(url)

    assert ("shop", "db") == (log.database.database, log.database.connect_params["host"])
    assert PASSWORD == log.database.connect_params["password"]
    assert PASSWORD not in log.name
    assert QUOTED not in log.name
    # It was made here, so that its connections are given back here.
    assert log.core._owned


def test_an_object_of_mysql():
    """Pydantic's other URL types are accepted too."""
    url = TypeAdapter(MySQLDsn).validate_python("mysql+pymysql://ada:x@db/shop")

    assert isinstance(opened(url), MySQLDatabase)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://ada:%s@db:54x3/shop", "cannot be used"),
        ("postgresql://ada:%s[@db/shop", "cannot be used"),
        ("postgresql://ada:%s\u2100@db/shop", "cannot be used"),
        ("oracle://ada:%s@db/shop", "does not begin with a known database"),
        ("oracle+cx://db/shop?user=ada&password=%s", "does not begin with a known database"),
        ("postgresql://db:x/shop?user=ada&password=%s", "cannot be used"),
        ("postgresql://db:x/shop?sslpassword=%s", "cannot be used"),
        ("mysql://db:x/shop?passwd=%s", "cannot be used"),
        ("ada:%s@db/shop", "does not begin with a known database"),
        ("host=db user=ada password=%s", "does not begin with a known database"),
        ("sqlite+pysqlcipher://:%s@/jobs.db", "names an encrypted file"),
    ],
)
def test_no_error_shows_a_password(url, says):
    """A refused URL is shown without its password, wherever that is in it."""
    with pytest.raises(ConfigurationError, match=says) as refused:
        JobLog(url % WORD)

    assert WORD not in "".join(traceback.format_exception(refused.value))


class Settings:
    """An object whose repr shows a password, and that is no URL."""

    def __repr__(self):
        return "Settings(password='hunter2')"


def test_what_is_no_database_is_named_by_its_type():
    """An object that is neither is refused without its repr, which may show a password."""
    with pytest.raises(ConfigurationError, match="type Settings is not a database") as refused:
        JobLog(Settings())

    assert "hunter2" not in str(refused.value)


def test_a_password_that_is_masked_already():
    """The str of a URL object that hides its password is refused with the cure."""
    with pytest.raises(ConfigurationError, match=r"render_as_string\(hide_password=False\)"):
        JobLog(str(AlchemyURL()))


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgres", "postgresql+psycopg"])
def test_a_log_of_such_a_url_works(postgres_url, scheme):
    """A log works with the URL that the application uses itself."""
    log = JobLog(postgres_url.replace("postgresql://", f"{scheme}://", 1))

    log.create_tables()

    assert 0 == log.jobs.count()
    log.close()
