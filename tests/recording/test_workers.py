"""Worker processes that die, pause and come back, and their jobs."""

from __future__ import annotations

import os
import signal

import pytest

from dramatiq_joblog import ConfigurationError, JobLog, JobLogMiddleware
from dramatiq_joblog.recording.heartbeat import Heartbeat


@pytest.fixture
def heartbeat(joblog):
    """Return a function that makes the heartbeat of another process."""

    def make(timeout=30_000):
        return Heartbeat(joblog.core.tables, timeout=timeout)

    return make


def silence(joblog, process, milliseconds=60_000):
    """Age the last heartbeat of a process."""
    worker = joblog.Worker
    worker.update(heartbeat_at=worker.heartbeat_at - milliseconds).where(
        worker.process == process.process
    ).execute()


def test_a_process_appears(joblog, heartbeat):
    """After its first heartbeat, a process has a row with its identity."""
    process = heartbeat()
    process.describe(4, {"default", "mail"})
    process.beat()
    process.beat()

    [row] = joblog.workers
    assert (os.getpid(), 4, ["default", "mail"]) == (row.pid, row.threads, row.queues)
    assert (None, None) == (row.ended_at, row.swept_at)
    assert row.heartbeat_at >= row.started_at


@pytest.mark.parametrize("then", ["beat", "end"])
def test_a_process_tells_what_it_learned_later(joblog, heartbeat, then):
    """Threads and queues are stored even if the first heartbeat came before they were known."""
    process = heartbeat()
    process.beat()
    process.describe(4, {"default", "mail"})
    getattr(process, then)()

    [row] = joblog.workers
    assert (4, ["default", "mail"]) == (row.threads, row.queues)


def test_a_sign_of_life_costs_one_statement(joblog, heartbeat, job_factory, asked):
    """A heartbeat takes one statement, and the check of others one, however many jobs run."""
    process = heartbeat()
    for other in (process, heartbeat()):
        other.beat()
    for _ in range(8):
        job_factory(state="started", process=process.process)
    with asked() as texts:
        process.beat()

    assert 2 == len(texts)


def test_runs_of_a_silent_process_are_lost(joblog, heartbeat, job_factory):
    """Only the runs of a process without heartbeats for too long are lost."""
    dead, alive = heartbeat(), heartbeat()
    dead.beat()
    alive.beat()
    job_factory(jid="its", state="started", process=dead.process)
    job_factory(jid="its retry", state="retrying", process=dead.process)
    job_factory(jid="old, and alive", state="started", process=alive.process, started_at=0)
    job_factory(jid="of no process", state="started", started_at=0)
    alive.beat()
    assert not joblog.jobs.lost().exists()

    silence(joblog, dead)
    alive.beat()

    assert ["its"] == [job.jid for job in joblog.jobs.lost()]


def test_nothing_is_lost_at_once(joblog, heartbeat, job_factory):
    """A new process does not affect others' jobs, however long they have run."""
    running = heartbeat()
    running.beat()
    job_factory(state="started", process=running.process, started_at=0, updated_at=0)
    heartbeat().beat()

    assert 1 == joblog.jobs.started().count()


def test_a_process_that_was_paused_comes_back(joblog, heartbeat, job_factory):
    """A process that was considered gone but was only paused gets its runs back."""
    paused, other = heartbeat(), heartbeat()
    paused.beat()
    job_factory(jid="j", state="started", process=paused.process)
    silence(joblog, paused)
    other.beat()
    assert "lost" == joblog.get("j").state

    paused.beat()

    assert "started" == joblog.get("j").state
    other.beat()
    assert "started" == joblog.get("j").state


def test_a_process_that_ended(joblog, heartbeat, job_factory):
    """Open runs of a process that has reported its end are lost."""
    ended, other = heartbeat(), heartbeat()
    ended.beat()
    job_factory(jid="j", state="started", process=ended.process)
    ended.end()
    other.beat()

    assert "lost" == joblog.get("j").state
    [_, row] = joblog.workers
    assert row.ended_at is not None


def test_a_process_number_that_is_used_again(joblog, heartbeat, job_factory):
    """A process whose PID is reused is lost without heartbeats, like any other."""
    dead, alive = heartbeat(), heartbeat()
    dead.beat()
    job_factory(jid="j", state="started", process=dead.process)
    [row] = joblog.workers
    assert os.getpid() == row.pid  # which lives, and is not that process
    alive.beat()
    assert "started" == joblog.get("j").state

    silence(joblog, dead)
    alive.beat()
    assert "lost" == joblog.get("j").state


def test_silence_of_all_is_nobodys(joblog, heartbeat, job_factory):
    """After an outage without heartbeats, each process has time for one."""
    other, first = heartbeat(), heartbeat()
    for process in (other, first):
        process.beat()
    job_factory(jid="j", state="started", process=other.process)
    # As if the database had been away for a minute.
    silence(joblog, other)
    first._last -= 60
    first.beat()
    assert "started" == joblog.get("j").state

    # It stays silent, and is listened to for as long as it may be.
    first._listening_since -= 60
    first.beat()
    assert "lost" == joblog.get("j").state


@pytest.mark.parametrize("times", [(0, 10), (10, 10), (10, 5), (-1, 10)])
def test_times_that_make_no_sense(sqlite_url, times):
    """An invalid heartbeat, or one slower than its timeout, is refused."""
    with pytest.raises(ConfigurationError, match=r"the timeout must be the longer one|from 1 to"):
        JobLogMiddleware(JobLog(sqlite_url), heartbeat=times[0], heartbeat_timeout=times[1])


@pytest.mark.process
def test_a_killed_worker(joblog, victims, eventually, tmp_path):
    """The run of a killed worker becomes lost, and interrupted when its message is redelivered."""
    run, send, _ = victims
    with run(expects_critical="exited unexpectedly") as first:
        jid = send("waits")
        eventually((tmp_path / "began").exists)
        [worker] = first.workers
        eventually(lambda: joblog.workers.get().threads == 4)
        last_beat = joblog.workers.get().heartbeat_at
        eventually(lambda: joblog.workers.get().heartbeat_at > last_beat)
        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: first.process.poll() is not None)
    seen = joblog.workers.get().heartbeat_at
    assert "started" == joblog.get(jid).state

    # Another process sees it; it takes no messages of that queue.
    with run(args=["--queues", "other"]):
        eventually(lambda: joblog.get(jid).state == "lost", timeout=30)
        assert [] == list(joblog.get(jid).failures)

    (tmp_path / "go").touch()
    with run():
        eventually(lambda: joblog.get(jid).state == "finished", timeout=30)

    job = joblog.get(jid)
    [failure] = job.failures
    assert ("interrupted", 1, seen) == (failure.outcome, failure.attempt, failure.finished_at)
    assert (1, 1) == (job.attempt, job.interruptions)
    assert failure.worker != job.worker


@pytest.mark.process
@pytest.mark.parametrize(
    "actor", [pytest.param("poison", marks=pytest.mark.full), "bounded_poison"]
)
def test_a_poison_pill(joblog, victims, eventually, tmp_path, actor):
    """A job that kills its worker three times is marked; with an option, it is then dead."""
    run, send, _ = victims
    go = tmp_path / "go"
    jid = send(actor)
    for _ in range(3 if actor == "bounded_poison" else 4):
        go.unlink(missing_ok=True)
        with run(expects_critical="exited unexpectedly") as process:
            go.touch()
            eventually(lambda process=process: process.process.poll() is not None, timeout=30)
    if actor == "bounded_poison":
        with run():
            eventually(lambda: joblog.get(jid).state == "dead", timeout=30)

    job = joblog.get(jid)
    assert ["interrupted"] * 3 == [f.outcome for f in job.failures]
    assert 3 == job.interruptions
    assert "it may be a poison pill" in job.note
    dead = ("dead", "interrupted")
    assert (("started", None) if actor == "poison" else dead) == (job.state, job.dead_reason)
