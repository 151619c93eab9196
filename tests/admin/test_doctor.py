"""The doctor reports each fault of a log, with its cure."""

from __future__ import annotations

import time

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries

from dramatiq_joblog import JobLog, JobLogMiddleware
from dramatiq_joblog.admin.audit import retries_lost
from dramatiq_joblog.admin.doctor import MAX_SPOOLED, MAX_WAIT
from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.recording.events import Enqueued
from dramatiq_joblog.recording.heartbeat import Heartbeat
from dramatiq_joblog.recording.spool import Spool


def wrong(joblog, broker=None):
    """Return the failed findings, by name."""
    return {f.name: f for f in joblog.doctor(broker) if not f.ok}


def now():
    return int(time.time() * 1000)


def test_a_healthy_log(joblog, database_url, make_broker):
    """For a healthy log, all checks are ok, each with a sentence, and nothing is changed."""
    broker = make_broker("stub", "last", joblog=joblog)
    dramatiq.actor(print, actor_name="prints")
    found = joblog.doctor(broker)

    pooler = ["pooler"] if "postgresql" in database_url else []
    standing = ["queues", "threads", "overdue", "lost", "retries", "errors", "types"]
    looked_at = [*pooler, "clock", "workers", "sections", *standing, "spools", "middleware"]
    assert ["connection", "schema", "durability", *looked_at] == [f.name for f in found]
    # The PostgreSQL of the tests does not wait for the disk.
    expected = {"durability"} if "postgresql" in database_url else set()
    assert expected == set(wrong(joblog, broker))
    assert all(f.text and bool(f.cure) != f.ok for f in found)
    assert joblog.database.is_closed()
    assert 0 == joblog.jobs.count() == joblog.workers.count()


def test_no_database(tmp_path):
    """An unavailable database is a finding, without its password; the rest is still reported."""
    url = "postgresql://ada:hunter2@127.0.0.1:1/shop"
    joblog = JobLog(url, spool=tmp_path / "spool")
    found = joblog.doctor()

    assert ["connection", "spools"] == [f.name for f in found]
    assert "is unavailable" in found[0].text
    assert "refused" in found[0].text
    assert "hunter2" not in repr(found)


@pytest.mark.new_database
def test_no_tables(database_url):
    """Missing tables are reported, with the command that creates them."""
    joblog = JobLog(database_url)
    found = wrong(joblog)
    assert "0001_initial, " in found["schema"].text
    assert "create_tables()" in found["schema"].cure
    assert "could not be checked" in found["workers"].text
    joblog.close()


def test_newer_tables(joblog):
    """Tables of a newer version are reported."""
    joblog.database.execute_sql(
        "INSERT INTO joblog_job_migration (name, applied) VALUES ('9999_moon', '2030-01-01')"
    )
    joblog.release()
    assert "they have 9999_moon" in wrong(joblog)["schema"].text


@pytest.mark.parametrize("skew", [-3_600_000, 3_600_000])
def test_a_wrong_clock(joblog, monkeypatch, skew):
    """A host whose clock is an hour ahead of or behind the database's is reported."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + skew * 1_000_000)
    text = wrong(joblog)["clock"].text
    told = int(text.removeprefix("Clocks differ: this host's clock is ").split()[0])
    assert skew == pytest.approx(told, abs=60_000)


def test_a_worker_with_a_wrong_clock(joblog):
    """A worker whose host's clock is wrong is reported with the host's name."""
    worker = Heartbeat(joblog.core.tables, timeout=30_000)
    worker.beat()
    assert "clock" not in wrong(joblog)

    joblog.Worker.update(host="web7", skew=-90_000).execute()
    joblog.release()
    assert "that of the worker on web7 was -90000 ms off" in wrong(joblog)["clock"].text


def test_workers_that_are_gone(joblog, job_factory):
    """A process that is gone, with runs not marked as lost yet, is reported."""
    gone, live = (Heartbeat(joblog.core.tables, timeout=30_000) for _ in range(2))
    gone.beat()
    job_factory(state="started", process=gone.process)
    job_factory(state="started", process=live.process)
    live.beat()
    assert "workers" not in wrong(joblog)

    worker = joblog.Worker
    worker.update(heartbeat_at=0).where(worker.process == gone.process).execute()
    joblog.release()
    found = wrong(joblog)["workers"]
    assert "(1 run)" in found.text
    assert "1 worker process live" in found.text


def test_runs_of_nobody(joblog, job_factory):
    """A run of a process without a row is reported."""
    job_factory(state="started", process="x" * 16)
    assert "1 job is started whose worker process is not known" in wrong(joblog)["workers"].text


def test_a_stuck_section(joblog, job_factory):
    """A section held by a finished job is reported with its key."""
    row = {"kind": "section", "slot": 0, "fence": 1, "ttl": 1, "expires_at": now() + 60_000}
    job_factory(jid="ended")
    job_factory(jid="running", state="started")
    joblog.Lock.create(**row, key="stuck", owner="ended")
    joblog.Lock.create(**row, key="held", owner="running")
    joblog.release()

    found = wrong(joblog)["sections"]
    assert "'stuck' by job ended" in found.text
    assert "1 of them with a lease that has not expired" in found.text
    assert "held'" not in found.text


def test_jobs_that_wait_for_nobody(joblog, job_factory):
    """Jobs that have waited long are reported by queue, with whether a worker consumes it."""
    served = Heartbeat(joblog.core.tables, timeout=30_000)
    served.describe(1, {"served"})
    served.beat()
    for queue in ("served", "forgotten", "forgotten"):
        job_factory(state="enqueued", queue=queue, created_at=now() - MAX_WAIT - 60_000)
    job_factory(state="enqueued", queue="fresh")
    joblog.release()

    text = wrong(joblog)["queues"].text
    assert "2 jobs wait in the queue 'forgotten', which no live worker consumes" in text
    assert "1 job waits in the queue 'served'" in text
    assert "fresh" not in text


def test_lost_retries(joblog, job_factory):
    """Jobs whose retry was lost are reported until each was run again or dismissed."""
    jids = []
    for reason in ("retry_lost", "no_retries", "retry_lost", "retry_lost"):
        job = job_factory(state="dead", dead_reason=reason)
        jids.append(job.jid)
    joblog.Job.update(replayed_by="x").where(joblog.Job.jid == jids[2]).execute()
    assert 2 == retries_lost(joblog.Job, host_now())[0]
    assert wrong(joblog)["retries"].text.startswith("2 jobs have lost their retry")
    joblog.dismiss(jids[0], jids[3], who="ada")
    assert "retries" not in wrong(joblog)


def test_spools(sqlite_database, tmp_path):
    """Old events in this host's spool are reported: number, age and process."""
    folder = tmp_path / "spool"
    joblog = JobLog(sqlite_database, spool=folder)
    other = Spool(folder)
    other.append([Enqueued({"jid": "a"})])
    assert "spools" not in wrong(joblog)

    [path] = folder.iterdir()
    made = now() - MAX_SPOOLED * 1000 - 60_000
    path = path.rename(folder / f"{made:015}-1-aa.spool")
    text = wrong(joblog)["spools"].text
    assert f"1 file of {path.stat().st_size} bytes" in text
    assert "that are gone" not in text

    other.forget()
    found = wrong(joblog)["spools"]
    assert "1 of them by processes that are gone" in found.text
    assert "start a worker here" in found.cure
    joblog.close()


def test_middleware(joblog):
    """A broker is reported if it lacks the log's middleware, has two, or has older actors."""
    broker = StubBroker(middleware=[Retries()])
    assert "has no JobLogMiddleware" in wrong(joblog, broker)["middleware"].text

    dramatiq.actor(print, actor_name="early", broker=broker)
    broker.add_middleware(JobLogMiddleware(joblog))
    assert "after the actors early" in wrong(joblog, broker)["middleware"].text
    with pytest.raises(ConfigurationError, match="2 JobLogMiddleware"):
        broker.add_middleware(JobLogMiddleware(joblog))
    assert "more than once" in wrong(joblog, broker)["middleware"].text

    class OwnRetries(Retries):
        pass

    own = StubBroker(middleware=[JobLogMiddleware(joblog), OwnRetries()])
    assert "middleware" not in wrong(joblog, own)
    bare = StubBroker(middleware=[JobLogMiddleware(joblog)])
    assert "no Retries" in wrong(joblog, bare)["middleware"].text
