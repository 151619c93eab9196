"""Each kind of database outage: jobs go on, and finally each row is right."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import traceback
from urllib.parse import urlsplit

import databases
import dramatiq
import psycopg
import pytest
import servers
from proxy import Proxy

from dramatiq_joblog import JobLog
from dramatiq_joblog.database import connection as connections
from dramatiq_joblog.recording import writer as writers
from dramatiq_joblog.recording.events import Enqueued
from dramatiq_joblog.recording.spool import Spool

#: More than are worked on at once.
JOBS = 40


@pytest.fixture
def own_server(postgres_server):
    """Return a PostgreSQL that the test may stop."""
    if postgres_server.pid is None:
        pytest.skip("a server that is named in the environment is not ours to stop")
    server = servers.start_postgres()
    yield server
    server.stop()


@pytest.fixture
def server(request):
    """Return the PostgreSQL of the test; its own, if it is to be stopped."""
    callspec = getattr(request.node, "callspec", None)
    stopped = callspec is not None and callspec.params.get("way") == "stopped"
    return request.getfixturevalue("own_server" if stopped else "postgres_server")


@pytest.fixture
def url(server):
    """Return the URL of a new database of the test's PostgreSQL."""
    with databases.new_postgres(server.url) as made:
        yield made


@pytest.fixture
def proxy(server):
    """Return a proxy before PostgreSQL."""
    proxy = Proxy(server.url)
    yield proxy
    proxy.close()


@pytest.fixture
def through_proxy(proxy, url):
    """Return the URL of an empty PostgreSQL database behind the proxy."""
    return proxy.through(url)


class Outages:
    """Ways for PostgreSQL behind a proxy, and for a SQLite file, to fail and to come back."""

    def __init__(self, proxy=None, path=None, server=None, url=None):
        self.proxy = proxy
        self.path = path
        self.server = server
        self.url = url

    def refusing(self):
        self.proxy.refuse()
        return self.proxy.resume

    def silent(self):
        self.proxy.hang()
        return self.proxy.resume

    def stopped(self):
        self.server.process.send_signal(self.server.stop_signal)
        self.server.process.wait(timeout=30)

        def back():
            self.server.process = self.server.again()

        return back

    def read_only(self):
        name = urlsplit(self.url).path.strip("/")

        def switch(value):
            with psycopg.connect(self.server.url, autocommit=True) as connection:
                setting = f"default_transaction_read_only = {value}"
                connection.execute(f"ALTER DATABASE {name} SET {setting}")
            self.proxy.cut()  # it holds for new connections

        switch("on")
        return lambda: switch("off")

    def table_locked(self):
        other = psycopg.connect(self.url)
        other.execute("LOCK TABLE joblog_job IN ACCESS EXCLUSIVE MODE")
        return other.close

    def locked(self):
        other = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")

        def back():
            other.execute("COMMIT")
            other.close()

        return back

    def moved(self):
        folder = self.path.parent
        away = folder.with_name("away")
        shutil.move(folder, away)
        return lambda: shutil.move(away, folder)


def run_through(joblog, make_broker, worker, leave, eventually):
    """Run jobs before, during and after an outage; return how many ran, and what they were."""
    broker = make_broker("stub", "last", joblog=joblog)
    broker.fail_fast_default = False
    runs = []
    lock = threading.Lock()

    @dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=20)
    def work(n):
        with lock:
            runs.append(n)
            first = runs.count(n) == 1
        if n % 4 == 1 and first:
            raise ValueError("breaks once")
        if n % 4 == 2:
            raise ValueError("breaks always")

    with worker(broker, worker_threads=8):
        for n in range(8):
            work.send(n)
        broker.join("default")
        back = leave()
        for n in range(8, JOBS):
            work.send(n)
        broker.join("default", timeout=60_000)
        was_away = joblog.core.writer.away
        back()
        eventually(lambda: not joblog.core.writer.away, timeout=30)
        for n in range(JOBS, JOBS + 8):
            work.send(n)
        broker.join("default")
    return was_away, runs


def expected_rows():
    ends = {0: ("finished", 1, []), 1: ("finished", 2, ["retried"])}
    ends |= {2: ("dead", 2, ["retried", "dead"]), 3: ("finished", 1, [])}
    return {n: ends[n % 4] for n in range(JOBS + 8)}


def rows(joblog):
    return {
        job.args[0]: (str(job.state), job.attempt, [f.outcome for f in job.failures])
        for job in joblog.jobs
    }


@pytest.mark.parametrize("way", ["refusing", "silent", "stopped", "read_only", "table_locked"])
def test_postgres_away(
    server,
    url,
    proxy,
    through_proxy,
    make_broker,
    worker,
    eventually,
    way,
    tmp_path,
):
    """With any outage of PostgreSQL, jobs go on, events are kept, and finally each row is right."""
    joblog = JobLog(through_proxy, spool=tmp_path / "spool")
    joblog.create_tables()
    leave = getattr(Outages(proxy=proxy, server=server, url=url), way)

    was_away, runs = run_through(joblog, make_broker, worker, leave, eventually)

    assert was_away
    assert expected_rows() == rows(joblog)
    assert len(runs) == sum(attempt for _, attempt, _ in expected_rows().values())
    assert [] == list((tmp_path / "spool").iterdir())
    joblog.close()


@pytest.mark.parametrize("way", ["locked", "moved"])
def test_sqlite_away(make_broker, worker, eventually, way, tmp_path):
    """The same for a SQLite file that is locked for long, or missing for a while."""
    path = tmp_path / "log" / "jobs.db"
    path.parent.mkdir()
    joblog = JobLog(f"sqlite:///{path}", spool=tmp_path / "spool")
    joblog.create_tables()
    leave = getattr(Outages(path=path), way)

    was_away, _ = run_through(joblog, make_broker, worker, leave, eventually)

    # A file that is moved is still the one that is open, and still available.
    assert was_away or way == "moved"
    assert expected_rows() == rows(joblog)
    joblog.close()


def test_a_full_database(make_broker, worker, eventually, tmp_path):
    """The same for a full SQLite database, once there is room again."""
    joblog = JobLog(f"sqlite:///{tmp_path / 'jobs.db'}", spool=tmp_path / "spool")
    joblog.create_tables()
    limit = {"pages": None}
    write = joblog.core.transitions.write

    def limited(events):
        # The limit belongs to a connection, and the writer opens new ones.
        if limit["pages"] is not None:
            joblog.database.execute_sql(f"PRAGMA max_page_count = {limit['pages']}")
        return write(events)

    joblog.core.transitions.write = limited

    def full():
        [(pages,)] = joblog.database.execute_sql("PRAGMA page_count").fetchall()
        limit["pages"] = pages

        def room():
            limit["pages"] = 1_000_000

        return room

    was_away, _ = run_through(joblog, make_broker, worker, full, eventually)

    assert was_away
    assert expected_rows() == rows(joblog)
    joblog.close()


def test_block(proxy, through_proxy, make_broker, worker, eventually):
    """With ``on_outage="block"``, no job ends or starts until it is written."""
    joblog = JobLog(through_proxy, on_outage="block")
    joblog.create_tables()
    broker = make_broker("stub", "last", joblog=joblog)
    runs = []

    @dramatiq.actor
    def work(number):
        runs.append(number)

    with worker(broker):
        work.send(1)
        broker.join("default")
        proxy.refuse()
        work.send(2)
        eventually(broker.queues["default"].empty)
        assert [1] == runs
        assert not joblog.core.writer.away
        proxy.resume()
        broker.join("default")

    assert [1, 2] == runs
    assert 2 == joblog.jobs.finished().count()
    joblog.close()


def test_drop(proxy, through_proxy, make_broker, worker, eventually, caplog):
    """With ``on_outage="drop"``, jobs go on; dropped events are counted, and logged afterwards."""
    joblog = JobLog(through_proxy, on_outage="drop")
    joblog.create_tables()
    broker = make_broker("stub", "last", joblog=joblog)
    runs = []

    @dramatiq.actor
    def work(number):
        runs.append(number)

    with worker(broker):
        proxy.refuse()
        for n in range(10):
            work.send(n)
        broker.join("default")
        proxy.resume()
        eventually(lambda: not joblog.core.writer.away)
        assert 30 == joblog.core.writer.lost
        assert "The job log's database is back; 30 event(s) were dropped meanwhile." in caplog.text
        work.send(10)
        broker.join("default")

    assert list(range(11)) == sorted(runs)
    assert 1 == joblog.jobs.count()
    joblog.close()


def test_drop_until_the_end(tmp_path, caplog):
    """If the database is unavailable until the process ends, the dropped events are logged too."""
    joblog = JobLog(f"sqlite:///{tmp_path / 'none' / 'jobs.db'}", on_outage="drop")
    row = {"actor": "work", "queue": "default", "state": "enqueued", "attempt": 1, "jid": "a"}

    joblog.core.writer.write(Enqueued(row | {"created_at": 0, "updated_at": 0}))
    joblog.close()

    assert "1 event(s) of the job log were not written and are lost" in caplog.text


def test_a_policy_that_is_none(tmp_path):
    """An unknown policy is refused, with the known ones."""
    with pytest.raises(ValueError, match=r"on_outage='wait' is not known; use one of \('spool'"):
        JobLog(f"sqlite:///{tmp_path}/jobs.db", on_outage="wait")


def test_another_process_replays(tmp_path, eventually):
    """Events that a process left on disk are replayed by the next one."""
    url = f"sqlite:///{tmp_path / 'log' / 'jobs.db'}"
    row = {"actor": "work", "queue": "default", "state": "enqueued", "attempt": 1}

    first = JobLog(url, spool=tmp_path / "spool")
    event = Enqueued(row | {"jid": "a", "created_at": 0, "updated_at": 0})
    first.core.writer.write(event)
    assert first.core.writer.away
    first.close()
    assert 1 == len(list((tmp_path / "spool").iterdir()))

    (tmp_path / "log").mkdir()
    second = JobLog(url, spool=tmp_path / "spool")
    second.create_tables()
    second.core.writer.put(Enqueued(event.row | {"jid": "b"}))
    eventually(lambda: second.jobs.count() == 2)
    assert [] == list((tmp_path / "spool").iterdir())
    second.close()


def test_what_a_dead_process_left_takes_long(monkeypatch, postgres_database, tmp_path, eventually):
    """It is replayed step by step, so all of it may take longer than the database may be silent."""
    monkeypatch.setattr(connections, "CUT_AFTER", 1_000)
    monkeypatch.setattr(writers, "ADOPT_EVERY", 200)
    row = {"actor": "work", "queue": "default", "state": "enqueued", "attempt": 1}
    row |= {"created_at": 0, "updated_at": 0}
    folder = tmp_path / "spool"
    left = Spool(folder)
    left.append([Enqueued(row | {"jid": f"left-{n}"}) for n in range(2_000)])
    left.forget()
    joblog = JobLog(postgres_database, spool=folder)
    joblog.database.execute_sql(
        "CREATE FUNCTION slow() RETURNS trigger AS "
        "'BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END' LANGUAGE plpgsql"
    )
    table = joblog.Job._meta.table_name
    joblog.database.execute_sql(
        f"CREATE TRIGGER slow BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    joblog.release()
    try:
        joblog.core.writer.put(Enqueued(row | {"jid": "own"}))
        # It is let in between two steps.
        eventually(lambda: joblog.get("own"))
        assert joblog.jobs.count() < 2_001
        eventually(lambda: joblog.jobs.count() == 2_001, timeout=60)
        eventually(lambda: not list(folder.iterdir()))
    finally:
        joblog.database.execute_sql("DROP FUNCTION slow CASCADE")
        joblog.close()


def test_chores_during_a_replay(tmp_path, eventually):
    """A process that replays many events sends heartbeats; it reports its end only afterwards."""
    joblog = JobLog(f"sqlite:///{tmp_path / 'log' / 'jobs.db'}", spool=tmp_path / "spool")
    writer = joblog.core.writer
    row = {"actor": "work", "queue": "default", "state": "enqueued", "attempt": 1}
    for n in range(450):
        writer.put(Enqueued(row | {"jid": str(n), "created_at": 0, "updated_at": 0}))
    eventually(lambda: writer.away)
    writer.flush()
    away, ended = [], []
    writer.every(1, lambda: away.append(writer.away))
    writer.end_chore(ended.append, lambda: ended.append(writer.away))
    (tmp_path / "log").mkdir()
    joblog.create_tables()
    eventually(lambda: joblog.jobs.count() == 450)
    eventually(lambda: not writer.away)

    eventually(lambda: ended)
    assert True in away
    assert [False] == ended
    joblog.close()


FULL = """
    import resource, sys
    from dramatiq_joblog import JobLog
    from dramatiq_joblog.recording.events import Enqueued

    joblog = JobLog(sys.argv[1], spool=sys.argv[2])
    joblog.create_tables()
    whole = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file of this process may grow beyond it: neither the database's nor the spool's.
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, whole[1]))
    row = dict(actor="work", queue="default", state="enqueued", attempt=1)
    row |= dict(created_at=0, updated_at=0, args='["' + "x" * 5000 + '"]')
    for n in range(400):
        joblog.core.writer.put(Enqueued(row | {"jid": f"j{n}"}))
    while not joblog.core.writer.flush(timeout=0.1) and not joblog.core.writer.away:
        pass
    print("full", flush=True)
    sys.stdin.readline()
    resource.setrlimit(resource.RLIMIT_FSIZE, whole)
    joblog.core.writer.flush(timeout=60)
    while joblog.core.writer.away:
        joblog.core.writer.flush(timeout=1)
    joblog.close()
"""


def test_no_room_anywhere(tmp_path, sqlite_url):
    """With the database and the spool on a full disk, nothing is lost: all jobs wait for room."""
    spool = tmp_path / "spool"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FULL), sqlite_url, str(spool)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "full\n" == child.stdout.readline(), child.communicate()
        _, errors = child.communicate("room\n", timeout=60)
    finally:
        child.kill()
    joblog = JobLog(sqlite_url)
    assert 0 == child.returncode, errors
    assert {f"j{n}" for n in range(400)} == {job.jid for job in joblog.jobs}, errors
    assert [] == list(spool.glob("*"))
    joblog.close()


@pytest.mark.parametrize("away", ["refusing", "wrong password"])
def test_no_password_is_logged(postgres_server, tmp_path, caplog, away):
    """No log line and no error about an unavailable database contains its password."""
    password = "hunter2-Zx9"
    port = urlsplit(postgres_server.url).port if away == "wrong password" else 1
    url = f"postgresql://nobody:{password}@127.0.0.1:{port}/nowhere"
    caplog.set_level("DEBUG")
    joblog = JobLog(url, spool=tmp_path / "spool")
    joblog.core.writer.write(Enqueued({"jid": "a", "state": "enqueued"}))
    raised = []
    for ask in (
        joblog.create_tables,
        lambda: joblog.core.writer.call(print),
        lambda: joblog.get("a"),
    ):
        with pytest.raises(Exception) as error:
            ask()
        raised.append("".join(traceback.format_exception(error.value)))
    said = [*caplog.messages, *raised, repr(joblog.doctor()), joblog.name, repr(joblog)]
    assert joblog.core.writer.away
    assert "is unavailable" in caplog.text
    assert password not in "\n".join(said)
    joblog.close()
