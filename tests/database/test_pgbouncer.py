"""PgBouncer in transaction mode: the log leaves no state on shared connections."""

from __future__ import annotations

import dramatiq
import pgbouncer
import psycopg
import pytest
import servers
from playhouse.db_url import connect

from dramatiq_joblog import JobLog
from dramatiq_joblog.database.dialects.postgresql import is_behind_pooler


@pytest.fixture
def pooled_url(postgres_url):
    """Return the URL of a PgBouncer that shares two connections to an empty database."""
    try:
        with pgbouncer.running(postgres_url, connections=2) as url:
            yield url
    except servers.ServerMissingError as e:
        pytest.skip(str(e))


@pytest.fixture(params=["url", "psycopg", "psycopg2"])
def pooled_log(request, pooled_url):
    """Return a log behind it: by URL, or with a passed-in database."""
    options = {
        "psycopg": {"prefer_psycopg3": True, "prepare_threshold": None},
        "psycopg2": {},
    }
    log = JobLog(
        pooled_url
        if request.param == "url"
        else connect(pooled_url.replace("postgresql", "postgresql+pool"), **options[request.param])
    )
    log.create_tables()
    yield log
    log.close()
    log.database.close_all()


@pytest.mark.full
def test_jobs_behind_a_pooler(pooled_log, pooled_url, make_broker, worker):
    """Jobs that query the log often all finish, and other clients get no timeout of ours."""
    broker = make_broker(joblog=pooled_log)

    @dramatiq.actor(max_retries=0)
    def work():
        for _ in range(8):
            assert not pooled_log.jobs.in_progress().of_type("import").exists()

    with worker(broker, worker_threads=4):
        for _ in range(60):
            work.send()
        broker.join("default", timeout=60_000)
    pooled_log.core.writer.flush()

    assert pooled_log.jobs.finished().count() == 60
    settings = set()
    with (
        psycopg.connect(pooled_url, prepare_threshold=None) as one,
        psycopg.connect(pooled_url, prepare_threshold=None) as other,
    ):
        # Both are in a transaction: these are the two connections that all share.
        for shared in (one, other):
            for name in ("statement_timeout", "lock_timeout"):
                settings.add(shared.execute(f"SHOW {name}").fetchone()[0])
    assert settings == {"0"}
    assert {finding.name for finding in pooled_log.doctor() if not finding.ok} <= {"durability"}


def test_doctor_sees_what_a_pooler_would_mix_up(pooled_url):
    """A database that prepares statements through a pooler is a finding, with its cure."""
    log = JobLog(connect(pooled_url, prefer_psycopg3=True))
    log.create_tables()

    (found,) = [finding for finding in log.doctor() if finding.name == "pooler"]

    assert not found.ok
    assert "prepare_threshold=None" in found.cure
    log.close()


@pytest.mark.parametrize("psycopg3", [True, False])
def test_a_direct_connection_has_timeouts(postgres_url, psycopg3):
    """Without a pooler, the writer's connection has timeouts, and a reader's has none."""
    log = JobLog(connect(postgres_url, prefer_psycopg3=psycopg3))
    log.create_tables()

    def timeout():
        return log.database.execute_sql("SHOW statement_timeout").fetchone()[0]

    assert log.core.writer.call(timeout) == "3s"
    with log.database.connection_context():
        assert not is_behind_pooler(log.database)
        assert timeout() == "0"
    log.close()
