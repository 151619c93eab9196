"""Parameters of database URLs, and relative paths."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest
from peewee import SqliteDatabase

from dramatiq_joblog import ConfigurationError, JobLog

PLACES = ("sqlite:///jobs.db", "postgresql://ada@host/x", "mysql://ada@host/x")


@pytest.mark.parametrize("place", PLACES)
def test_the_pool_of_a_url(place):
    """The URL's pool size and timeouts override the log's."""
    database = JobLog(f"{place}?max_connections=4&timeout=2&stale_timeout=60").database

    sizes = database._max_connections, database._wait_timeout, database._stale_timeout
    assert sizes == (4, 2, 60)
    own = JobLog(place).database
    assert (own._max_connections, own._wait_timeout, own._stale_timeout) == (100, 10, 300)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("max_conections=4", "'max_conections', which .* does not know; did you mean 'max_conn"),
        ("zzz=1", "'zzz', which .* use max_connections"),
        ("max_connections=1", "max_connections=1: .* give at least 2"),
        ("max_connections=many", "cannot be used"),
    ],
)
def test_a_parameter_that_cannot_be_used(place, query, text):
    """An unknown parameter, or a pool that is too small, is refused with a sentence."""
    with pytest.raises(ConfigurationError, match=text):
        JobLog(f"{place}?{query}")


@pytest.mark.parametrize(
    "query", ["sslmode=require", "prepare_threshold=none", "options=-c%20x=1", "connect_timeout=1"]
)
def test_parameters_of_the_driver(query):
    """Parameters of the driver are passed on, and override the log's."""
    name, _, value = query.partition("=")
    given = JobLog(f"postgresql://ada@host/x?{query}").database.connect_params[name]

    assert str(given).replace(" ", "%20").lower() == value


@pytest.mark.parametrize(
    ("query", "environment", "expected"),
    [
        ("", None, "dramatiq_joblog"),
        ("?application_name=shop", None, "shop"),
        ("?fallback_application_name=shop", None, "shop"),
        ("", "from-outside", "from-outside"),
    ],
)
def test_the_name_of_connections(postgres_url, monkeypatch, query, environment, expected):
    """The server shows whose connections they are, unless the URL or PGAPPNAME says otherwise."""
    if environment is not None:
        monkeypatch.setenv("PGAPPNAME", environment)
    log = JobLog(postgres_url + query)

    with log.database.connection_context():
        ((name,),) = log.database.execute_sql("SHOW application_name").fetchall()

    assert name == expected
    log.close()


def test_the_name_of_connections_on_mysql():
    """On MySQL, it is the program's name, unless the URL overrides it."""
    params = [
        JobLog(f"mysql://ada@host/x{query}").database.connect_params["program_name"]
        for query in ("", "?program_name=shop")
    ]

    assert params == ["dramatiq_joblog", "shop"]


@pytest.mark.full
def test_prepare_threshold_without_psycopg3(postgres_url):
    """Where only psycopg2 is installed, the same URL is used."""
    code = """
        import sys
        sys.modules["psycopg"] = None
        from dramatiq_joblog import JobLog
        joblog = JobLog(sys.argv[1] + "?prepare_threshold=none")
        joblog.create_tables()
        print(joblog.jobs.count())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), postgres_url],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize(
    "make",
    [lambda: "sqlite:///jobs.db", lambda: "sqlite:///./jobs.db", lambda: SqliteDatabase("jobs.db")],
    ids=["url", "dotted", "database"],
)
def test_a_job_that_changes_the_folder(make, tmp_path, monkeypatch):
    """A relative path is relative to the working directory in which the log was created."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    log = JobLog(make(), spool="spool")
    log.create_tables()

    monkeypatch.chdir(there)
    log.record("note", who="ada")
    other = threading.Thread(target=log.record, args=["note"], kwargs={"who": "ada"})
    other.start()
    other.join()
    log.core.writer.call(log.jobs.count)

    assert log.actions.count() == 2
    assert log.core.spool.folder == here / "spool"
    assert {path.name for path in here.iterdir()} >= {"jobs.db"}
    assert list(there.iterdir()) == []
    log.close()
