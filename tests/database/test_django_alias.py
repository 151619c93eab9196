"""JobLog.from_django(): a log in one of Django's databases, by Django's settings alone."""

from __future__ import annotations

import sys

import psycopg
import pytest
from playhouse.pool import PooledMySQLDatabase, PooledPostgresqlDatabase, PooledSqliteDatabase

from dramatiq_joblog import ConfigurationError, Job, JobLog

db = pytest.importorskip("django.db")


@pytest.fixture
def databases(monkeypatch):
    """Return a function that sets Django's DATABASES."""
    import pymysql
    from django.db.utils import ConnectionHandler

    monkeypatch.setitem(sys.modules, "MySQLdb", pymysql)
    monkeypatch.setitem(sys.modules, "_mysql", pymysql)

    def set_them(engine="postgresql", **settings):
        given = {"ENGINE": f"django.db.backends.{engine}", "NAME": "shop"} | settings
        monkeypatch.setattr(db, "connections", ConnectionHandler({"default": given}))

    return set_them


def test_postgresql(databases):
    """Address, role, password and options come from the alias, without Django's own options."""
    options = {"sslmode": "require", "pool": True, "assume_role": "owner", "application_name": "x"}
    databases(USER="ada", PASSWORD="a b@:/'", HOST="db", PORT=6543, OPTIONS=options)

    log = JobLog.from_django("default")

    assert isinstance(log.database, PooledPostgresqlDatabase)
    assert "shop" == log.database.database
    params = log.database.connect_params
    assert ("ada", "a b@:/'", "db", 6543) == tuple(
        params[name] for name in ("user", "password", "host", "port")
    )
    assert ("require", "x") == (params["sslmode"], params["application_name"])
    assert not {"pool", "assume_role"} & {*params}
    assert "default" == log.django_alias
    assert "a b" not in log.name


@pytest.mark.parametrize("host", ["", "/var/run/postgresql"])
def test_postgresql_by_a_socket(databases, host):
    """Without a host and password, libpq's defaults apply; a folder is that of the socket."""
    databases(HOST=host)
    params = JobLog.from_django().database.connect_params
    assert ({"host": host} if host else {}) == {k: v for k, v in params.items() if k == "host"}
    assert not {"user", "password", "port"} & {*params}


def test_postgresql_by_a_service(databases, postgres_server, tmp_path, monkeypatch):
    """A service file may define everything, including the database."""
    facts = psycopg.conninfo.conninfo_to_dict(postgres_server.url)
    names = {"dbname", "user", "password", "host", "port"}
    lines = [f"{name}={value}" for name, value in facts.items() if name in names]
    (tmp_path / "services").write_text("\n".join(["[shop]", *lines]))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    databases(NAME="", OPTIONS={"service": "shop"})

    log = JobLog.from_django()

    with log.database.connection_context():
        ((name,),) = log.database.execute_sql("SELECT current_database()").fetchall()
    assert facts["dbname"] == name
    log.database.close_all()


@pytest.mark.parametrize(
    ("host", "options", "expected"),
    [
        ("db", {"ssl_mode": "VERIFY_IDENTITY"}, {"host": "db", "ssl_verify_identity": True}),
        ("/run/mysqld.sock", {"isolation_level": "x"}, {"unix_socket": "/run/mysqld.sock"}),
        ("", {"ssl": {"ca": "ca.pem"}, "ssl_mode": "REQUIRED"}, {"ssl": {"ca": "ca.pem"}}),
        ("", {"charset": "utf8", "conv": {}}, {"charset": "utf8mb4"}),
    ],
)
def test_mysql(databases, host, options, expected):
    """Options of mysqlclient are translated for pymysql."""
    databases("mysql", USER="ada", PASSWORD="secret", HOST=host, OPTIONS=options)
    log = JobLog.from_django()
    assert isinstance(log.database, PooledMySQLDatabase)
    params = log.database.connect_params
    assert expected == {name: params[name] for name in expected}
    assert ("ada", "secret", 2) == (params["user"], params["password"], params["client_flag"])
    assert not {"isolation_level", "ssl_mode", "conv"} & {*params}


def test_sqlite(databases, tmp_path):
    """A SQLite file is used, whatever Django's options for it."""

    class ShopJob(Job):
        pass

    options = {"timeout": 20, "transaction_mode": "IMMEDIATE"}
    databases("sqlite3", NAME=tmp_path / "shop.sqlite3", OPTIONS=options)

    log = JobLog.from_django(model=ShopJob, keep={"finished": 1})

    assert isinstance(log.database, PooledSqliteDatabase)
    log.create_tables()
    assert 0 == log.jobs.count()
    assert "shopjob" == log.Job._meta.table_name
    log.close()


@pytest.mark.parametrize(
    ("alias", "settings", "text"),
    [
        ("defualt", {}, r"no alias 'defualt'; did you mean 'default'"),
        ("default", {"ENGINE": "django.db.backends.dummy"}, r"engine '.*dummy', which the log"),
        ("default", {"OPTIONS": {"colour": 1}}, r"\['default'\] has the option 'colour'"),
        ("default", {"engine": "sqlite3", "NAME": ":memory:"}, "is in memory"),
        ("default", {"engine": "mysql", "OPTIONS": {"read_timeuot": 1}}, "'read_timeuot'"),
    ],
)
def test_what_the_log_cannot_use(databases, alias, settings, text):
    """Unusable settings are refused with a sentence."""
    databases(**settings)
    with pytest.raises(ConfigurationError, match=text):
        JobLog.from_django(alias)


@pytest.mark.parametrize("mode", ["VERIFY_FULL", "", True])
def test_mysql_by_a_mode_that_is_not_known(databases, mode):
    """An unsupported TLS setting is refused, and never becomes an unencrypted connection."""
    databases("mysql", OPTIONS={"ssl_mode": mode})
    with pytest.raises(ConfigurationError, match=r"ssl_mode=.* is not known; use one of PREFERRED"):
        JobLog.from_django()
