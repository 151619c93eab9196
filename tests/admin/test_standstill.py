"""The doctor's findings about stuck jobs: overdue, lost, in a queue without a worker."""

from __future__ import annotations

import threading
import time

import dramatiq
import pytest

from dramatiq_joblog import JobLog
from dramatiq_joblog.recording import mounts

HOUR = 3_600_000


def wrong(joblog):
    """Return the failed findings, by name."""
    joblog.release()
    found = {finding.name: finding for finding in joblog.doctor() if not finding.ok}
    # The PostgreSQL of the tests does not wait for the disk.
    found.pop("durability", None)
    return found


def ago(milliseconds):
    return int(time.time() * 1000) - milliseconds


@pytest.mark.parametrize("state", ["delayed", "retrying", "waiting"])
def test_overdue(joblog, job_factory, appear, state):
    """A job that has been due for three hours is reported with its state, its queue and a cure."""
    appear("default")
    job_factory(state=state, eta=ago(3 * HOUR), created_at=ago(4 * HOUR))
    job_factory(state=state, eta=ago(-3 * HOUR), created_at=ago(9 * HOUR), queue="in time")
    job_factory(state=state, eta=ago(1_000), queue="just due")

    found = wrong(joblog)

    assert {"overdue"} == set(found)
    assert f"1 {state} since" in found["overdue"].text
    assert "'default'" in found["overdue"].text
    assert "in time" not in found["overdue"].text
    assert "cancel" in found["overdue"].cure
    assert ("locks" in found["overdue"].cure) == (state == "waiting")


def test_lost_for_long(joblog, job_factory, appear):
    """A job lost a day ago is reported; one lost just now may still be redelivered."""
    appear("default")
    job_factory(state="lost")
    assert {} == wrong(joblog)

    job_factory(state="lost", updated_at=ago(24 * HOUR), created_at=ago(25 * HOUR))

    found = wrong(joblog)
    assert {"lost"} == set(found)
    assert "1 job is lost with its worker" in found["lost"].text
    assert "start a worker for 'default'" in found["lost"].cure


def test_a_queue_that_nobody_consumes(joblog, job_factory, appear):
    """Jobs in a queue without a worker are reported after minutes, others after an hour."""
    appear("default", "mail")
    for queue in ("default", "reports"):
        job_factory(state="enqueued", queue=queue, created_at=ago(180_000))

    found = wrong(joblog)

    assert {"queues"} == set(found)
    assert (
        "1 job waits in the queue 'reports', which no live worker consumes" in found["queues"].text
    )
    assert "default" not in found["queues"].text
    assert "start workers that consume 'reports'" in found["queues"].cure


def test_a_worker_that_has_ended_consumes_nothing(joblog, job_factory, appear):
    """The queues of an ended process count as without a worker."""
    appear("default").end()
    job_factory(state="enqueued", created_at=ago(180_000))

    assert "which no live worker consumes" in wrong(joblog)["queues"].text


def test_a_delayed_job_waits_from_its_release(joblog, job_factory, appear):
    """A job that was delayed for a day and has just reached its queue is not late."""
    appear("default")
    day = ago(24 * HOUR)
    job_factory(state="enqueued", created_at=day, enqueued_at=day, updated_at=ago(1_000))

    assert {} == wrong(joblog)


def test_all_threads_are_busy(joblog, job_factory, appear):
    """Jobs that wait while all threads of their queue are busy are reported with the cure."""
    worker, _ = appear("default", threads=2), appear("mail", threads=1)
    for _ in range(2):
        job_factory(state="started", process=worker.process)
    job_factory(state="enqueued", queue="mail", created_at=ago(180_000))
    assert {} == wrong(joblog)

    job_factory(state="enqueued", created_at=ago(180_000))

    found = wrong(joblog)
    assert {"threads"} == set(found)
    assert "All threads are busy (2 for 'default')" in found["threads"].text
    assert "--threads" in found["threads"].cure


def test_a_real_worker_whose_threads_are_busy(joblog, make_broker, worker):
    """A worker process's row is enough to see that it is busy."""
    broker = make_broker(joblog=joblog)
    begun, may_end = threading.Event(), threading.Event()

    @dramatiq.actor
    def work():
        begun.set()
        may_end.wait(20)

    work.send()
    with worker(broker, worker_threads=1):
        assert begun.wait(10)
        second = work.send().message_id
        joblog.core.writer.flush()
        joblog.Job.update(created_at=ago(180_000)).where(joblog.Job.jid == second).execute()
        found = wrong(joblog)
        may_end.set()
        broker.join("default")

    assert {"threads"} == set(found)


def test_the_oldest_are_found_by_an_index(sqlite_database, asked):
    """Each query reads an index in order, so that a large log costs no more."""
    joblog = JobLog(sqlite_database)
    with asked() as texts:
        joblog.doctor()
    questions = [text for text in texts if '"since"' in text and "LIMIT" in text]
    assert len(questions) >= 5

    for text in questions:
        plan = joblog.database.execute_sql(f"EXPLAIN QUERY PLAN {text}", _numbers(text)).fetchall()
        steps = [row[-1] for row in plan]
        assert any("USING INDEX joblog_job_state" in step for step in steps), steps
    joblog.close()


def _numbers(text):
    return (1,) * text.count("?")


MOUNTS = """
24 1 254:0 / / rw,relatime shared:1 - overlay overlay rw
25 24 0:5 / /proc rw - proc proc rw
26 24 0:22 / /run/state rw - tmpfs tmpfs rw
27 24 8:1 / /data\\040of\\040ours rw shared:2 - ext4 /dev/sda1 rw
broken
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/ada/.local", "overlay"),
        ("/run/state/joblog/abc", "tmpfs"),
        ("/run/statement", "overlay"),
        ("/data of ours/spool", "ext4"),
    ],
)
def test_the_file_system_of_a_folder(tmp_path, monkeypatch, folder, kind):
    """The deepest mount point above a folder decides, whether the folder exists or not."""
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mountinfo")
    assert mounts.file_system_of(tmp_path) is None

    (tmp_path / "mountinfo").write_text(MOUNTS)

    assert kind == mounts.file_system_of(type(tmp_path)(folder))


@pytest.mark.parametrize(
    ("on_outage", "volume", "warned"),
    [("spool", "log", True), ("block", "log", False), ("spool", "none", False)],
)
def test_a_spool_that_does_not_last(tmp_path, monkeypatch, on_outage, volume, warned):
    """A spool on volatile storage is reported, if it is used and the log is durable."""
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mountinfo")
    lines = MOUNTS + f"28 24 8:2 / {tmp_path}/{volume} rw - ext4 /dev/sda2 rw\n"
    (tmp_path / "mountinfo").write_text(lines)
    (tmp_path / "log").mkdir()
    url = f"sqlite:///{tmp_path}/log/jobs.db"
    joblog = JobLog(url, spool=tmp_path / "spool", on_outage=on_outage)
    joblog.create_tables()

    found = wrong(joblog)

    assert warned == ("spools" in found)
    if warned:
        assert "is on overlay, which is deleted with its container" in found["spools"].text
        assert "JobLog(spool=...)" in found["spools"].cure
    joblog.close()
