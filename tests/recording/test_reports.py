"""Reports of running jobs: log lines and progress."""

from __future__ import annotations

import logging
import threading

import brokers
import dramatiq
import pytest

from dramatiq_joblog import JobLog, current_job

shop = logging.getLogger("shop.prices")


@pytest.fixture(autouse=True)
def levels():
    """Log INFO and above, like a worker process."""
    before = logging.root.level
    logging.root.setLevel(logging.INFO)
    yield
    logging.root.setLevel(before)


@pytest.fixture
def go_on():
    """Return an event that jobs wait for."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with a log with frequent heartbeats."""
    return make_broker("stub", "last", joblog=joblog, heartbeat=50, heartbeat_timeout=60_000)


def test_a_long_job_is_heard_of(joblog, broker, worker, eventually, go_on):
    """While a job runs, its lines and its last progress are written with the heartbeat."""

    @dramatiq.actor
    def work():
        shop.info("begun")
        for n in range(1_000):
            current_job().progress(n, 2_000, "reading prices")
        go_on.wait(60)
        shop.info("done")
        current_job().progress(2_000, 2_000)

    message = work.send()
    with worker(broker):
        eventually(lambda: joblog.jobs.where(joblog.Job.progress.is_null(False)).exists())
        job = eventually(lambda: joblog.jobs.started().first())
        eventually(job.lines.exists)
        assert {"done": 999, "total": 2_000, "text": "reading prices"} == job.progress
        assert ["begun"] == [line.text for line in job.lines]
        go_on.set()
        broker.join("default")
    job = joblog.get(message.message_id)
    assert ["begun", "done"] == [line.text for line in job.lines]
    assert {"done": 2_000, "total": 2_000, "text": None} == job.progress


def test_one_statement_for_all(joblog, broker, worker, asked, go_on):
    """The progress of all jobs of a process takes one statement, and none without news."""
    told = threading.Barrier(9, timeout=60)
    middleware = next(m for m in broker.middleware if getattr(m, "joblog", None) is joblog)

    @dramatiq.actor
    def work(n):
        current_job().progress(n, 8)
        shop.info("begun")
        told.wait()
        go_on.wait(60)

    for n in range(8):
        work.send(n)
    with worker(broker, worker_threads=8):
        joblog.core.writer.end_chore(middleware._reports.write, lambda: None)
        told.wait()
        joblog.core.writer.flush()

        def write():
            with asked() as texts:
                middleware._reports.write()
            return [text.split()[0] for text in texts]

        first, second = joblog.core.writer.call(write), joblog.core.writer.call(write)
        go_on.set()
        broker.join("default")
    assert ["INSERT", "UPDATE"] == [sql for sql in first if sql in ("INSERT", "UPDATE")]
    assert [] == [sql for sql in second if sql in ("INSERT", "UPDATE")]
    assert list(range(8)) == sorted(job.progress["done"] for job in joblog.jobs)


def test_track(joblog, broker, worker):
    """A loop reports its progress; the total is the length, if there is one."""
    seen = []

    @dramatiq.actor
    def work():
        track = current_job().track
        seen.extend(current_job()._run.reported for _ in track("abc"))
        seen.extend(current_job()._run.reported for _ in track(iter([1]), text="reading"))
        seen.extend(current_job()._run.reported for _ in track((n for n in range(2)), total=2))

    message = work.send()
    with worker(broker):
        broker.join("default")
    assert [(0, 3, None), (1, 3, None), (2, 3, None)] == seen[:3]
    assert [(0, 1, "reading")] == seen[3:4]
    assert [(0, 2, None), (1, 2, None)] == seen[4:]
    assert {"done": 2, "total": 2, "text": None} == joblog.get(message.message_id).progress


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ((0.5, 1), {"done": 0.5, "total": 1, "text": None}),
        ((True, float("inf")), {"done": 1, "total": None, "text": None}),
        (("many", None, 7), {"done": None, "total": None, "text": "7"}),
        ((1, 2, "token=hunter2"), {"done": 1, "total": 2, "text": "token=[redacted]"}),
        ((1, 2, "x" * 5_000), {"done": 1, "total": 2}),
    ],
)
def test_odd_progress(joblog, broker, worker, told, kept):
    """Any reported progress can be shown."""

    @dramatiq.actor
    def work():
        current_job().progress(*told)

    message = work.send()
    with worker(broker):
        broker.join("default")
    progress = joblog.get(message.message_id).progress
    assert kept == {name: progress[name] for name in kept}
    assert len(progress["text"] or "") < 1_100


def test_a_new_run_begins_anew(joblog, broker, worker, eventually, go_on):
    """The progress of a failed run stays on the row until the next run begins."""

    @dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=1)
    def work():
        if current_job().attempt == 1:
            current_job().progress(1, 2)
            raise ValueError
        go_on.wait(60)

    message = work.send()
    with worker(broker):
        job = eventually(lambda: joblog.jobs.started().where(joblog.Job.attempt == 2).first())
        assert job.progress is None
        go_on.set()
        broker.join("default")
    assert joblog.get(message.message_id).progress is None


@pytest.mark.full
def test_a_chatty_job_while_it_runs(joblog, broker, worker, eventually, go_on):
    """Its last lines are visible before it ends, and lines beyond the limit are deleted."""

    @dramatiq.actor
    def work():
        for n in range(3_000):
            shop.info("line %d", n)
        go_on.wait(60)
        for n in range(3_000, 6_000):
            shop.info("line %d", n)

    message = work.send()
    with worker(broker):
        job = eventually(lambda: joblog.jobs.started().first())
        eventually(lambda: joblog.Line.select().where(joblog.Line.text == "line 2999").exists())
        texts = [line.text for line in job.lines]
        go_on.set()
        broker.join("default")
    assert ("line 0", "line 2999") == (texts[0], texts[-1])
    texts = [line.text for line in joblog.get(message.message_id).lines]
    [gap] = [n for n, text in enumerate(texts) if text.startswith("[...")]
    left_out = 6_000 - len(texts) + 1
    assert f"[... {left_out} lines left out ...]" == texts[gap]
    assert [f"line {n}" for n in range(gap)] == texts[:gap]
    assert [f"line {n}" for n in range(gap + left_out, 6_000)] == texts[gap + 1 :]


def test_lines_outlive_an_outage(sqlite_database, make_broker, worker, eventually):
    """Lines logged during an outage are written with the outcome, once the database is back."""
    log = JobLog(sqlite_database)
    broker = make_broker("stub", "last", joblog=log, heartbeat=50, heartbeat_timeout=60_000)

    @dramatiq.actor
    def work():
        shop.info("begun")
        current_job().progress(1, 1)

    log.database.execute_sql("ALTER TABLE joblog_line RENAME TO away")
    message = work.send()
    with worker(broker):
        broker.join("default", timeout=60_000)
        assert log.core.writer.away
        log.database.execute_sql("ALTER TABLE away RENAME TO joblog_line")
        eventually(lambda: not log.core.writer.away, timeout=30)
    job = log.get(message.message_id)
    assert ["begun"] == [line.text for line in job.lines]
    assert {"done": 1, "total": 1, "text": None} == job.progress
    log.close()


@pytest.mark.process
@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_a_killed_worker(joblog, database_url, redis_url, run_worker_process, eventually, tmp_path):
    """Reports from before a worker was killed stay, and belong to the interrupted run."""
    environment = {
        "INSIDE_BROKER": redis_url,
        "INSIDE_DATABASE": database_url,
        "INSIDE_FOLDER": str(tmp_path),
    }
    broker = brokers.connect(redis_url, namespace="inside", impatient=True)
    dramatiq.set_broker(broker)
    work = dramatiq.actor(lambda: None, actor_name="work")
    message = work.send()
    with run_worker_process(
        "inside_worker", env=environment, expects_critical="exited unexpectedly"
    ) as first:
        eventually(joblog.Line.select().exists, timeout=30)
        job = eventually(lambda: joblog.jobs.where(joblog.Job.progress.is_null(False)).first())
        assert {"done": 1, "total": 2, "text": None} == job.progress
        first.workers[0].kill()
        # The command ends with its worker.
        first.process.wait(timeout=30)
    (tmp_path / "go").touch()
    with run_worker_process("inside_worker", env=environment):
        eventually(lambda: joblog.get(message.message_id).state == "finished", timeout=60)
    job = joblog.get(message.message_id)
    assert ["begun", "begun", "done"] == [line.text for line in job.lines]
    [interrupted] = job.failures
    assert ("interrupted", ["begun"]) == (
        interrupted.outcome,
        [line.text for line in interrupted.lines],
    )
    brokers.disconnect(broker)
