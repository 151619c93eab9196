"""The roles of docs/security.md, on a real PostgreSQL: each can do what the page says."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from urllib.parse import urlsplit

import dramatiq
import psycopg
import pytest
from starlette.testclient import TestClient

from dramatiq_joblog import DatabaseAwayError, Exclusive, JobLog, JobLogError
from dramatiq_joblog.web import dashboard

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
ROLES = ("joblog_owner", "joblog_writer", "joblog_reader")
PAGES = (
    *("/", "/jobs", "/dead", "/locks", "/queues", "/types", "/workers", "/actions"),
    *("/health", "/metrics", "/jobs.json?q=state:dead", "/overview.json", "/complete?q=st"),
)


@pytest.fixture
def urls(postgres_url):
    """Create the page's roles in a test database, and return the URL of each."""
    parts = urlsplit(postgres_url)
    database, address = parts.path.strip("/"), parts.netloc.rpartition("@")[2]
    # Roles belong to the server, which other tests share.
    names = {role: f"{role}_{database}"[:63] for role in ROLES}
    [statements] = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for role, name in names.items():
        statements = re.sub(rf"\b{role}\b", name, statements)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        # As PostgreSQL 15 and newer have it.
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.execute(statements.replace("change me", "secret"))
    yield {
        role: parts._replace(netloc=f"{name}:secret@{address}").geturl()
        for role, name in names.items()
    }
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for name in reversed(names.values()):
            connection.execute(f"DROP OWNED BY {name} CASCADE")
            connection.execute(f"DROP ROLE {name}")


@pytest.fixture
def filled(urls, make_broker, worker, caplog):
    """Return the writer's log on the owner's tables, with jobs of each kind."""
    owner = JobLog(urls["joblog_owner"])
    owner.create_tables()
    owner.close()
    joblog = JobLog(urls["joblog_writer"], keep={"skipped": 0})
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=1, job_user="user", unique="u:{user}")
    def fails(user):
        logging.getLogger("shop").info("a line")
        raise ValueError("of its own")

    @dramatiq.actor(broker=broker, exclusive=Exclusive("key:{user}"), job_type="import")
    def works(user):
        pass

    with worker(broker, worker_threads=1):
        fails.send(7)
        works.send(7)
        broker.join("default", fail_fast=False)
    works.send_with_options(args=(8,), delay=3_600_000)
    yield joblog
    joblog.close()


def test_the_writer_s_rights(filled, caplog):
    """The writer's role can run, retry, lock, cancel, requeue, prune and read."""
    dead = filled.jobs.dead().get()

    filled.requeue(dead.jid, who="ada")
    filled.cancel(filled.jobs.delayed().get().jid, who="ada")
    filled.dismiss(dead.jid, who="ada")
    filled.set_limit("erp", 0, who="ada")
    filled.mark("v1")
    with filled.lock("by hand"):
        assert 1 == filled.locks.count()
    filled.prune({"finished": 0})

    assert 0 == filled.jobs.finished().count()
    assert {"requeue", "cancel", "dismiss"} <= {action.what for action in filled.actions}
    assert [] == [f.text for f in filled.doctor() if f.name == "schema" and not f.ok]
    assert [] == [r.getMessage() for r in caplog.records if "permission" in r.getMessage()]


def test_what_the_writer_may_not(filled):
    """The writer's role cannot change the schema."""
    with pytest.raises(Exception, match=r"permission denied|must be owner"):
        filled.database.execute_sql("ALTER TABLE joblog_job ADD COLUMN more TEXT")
    with pytest.raises(Exception, match="permission denied"):
        filled.database.execute_sql("CREATE TABLE more (id INTEGER)")
    filled.release()


def test_the_reader_s_rights(filled, urls):
    """The reader's role can open every page, and each change is refused with the cure."""
    dead = filled.jobs.dead().get()
    joblog = JobLog(urls["joblog_reader"])

    with TestClient(dashboard(joblog, authorize=lambda _: "all")) as client:
        answers = {path: client.get(path) for path in (*PAGES, f"/jobs/{dead.jid}")}
    assert {200} == {answer.status_code for answer in answers.values()}
    assert not [path for path, answer in answers.items() if "permission denied" in answer.text]
    assert [dead.jid] == [job.jid for job in joblog.search("state:dead")]
    with pytest.raises((DatabaseAwayError, JobLogError), match="permission denied"):
        joblog.dismiss(dead.jid, who="ada")
    joblog.close()
