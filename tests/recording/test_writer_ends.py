"""The writer's end, its failures, and threads that wait meanwhile."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time

import dramatiq
import pytest

from dramatiq_joblog import JobLog, JobLogError
from dramatiq_joblog.recording.events import Enqueued

#: Seconds that nothing here takes, and a hang would.
LONG = 20


def event(kind, jid, **values):
    """Return an event of a job."""
    row = {"jid": jid, "actor": "work", "queue": "default", "attempt": 1, "token": f"t-{jid}"}
    return kind(row | {"enqueued_at": 0, "created_at": 0, "updated_at": 0} | values)


def sent(jid):
    """Return the event of a job that was sent."""
    return event(Enqueued, jid, state="enqueued", token=None)


#: Writer threads of logs that other tests left open.
others = set()


@pytest.fixture(autouse=True)
def of_other_tests():
    """Exclude existing writer threads."""
    others.clear()
    others.update(writers())


def writers():
    """Return the live writer threads of this test's logs."""
    threads = {t for t in threading.enumerate() if t.name == "dramatiq_joblog writer"}
    return list(threads - others)


@pytest.fixture
def log(sqlite_database):
    """Return a log on SQLite, with tables."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


def test_closing_beside_senders(log):
    """A log that is closed repeatedly while threads send writes everything, and never hangs."""
    over = threading.Event()

    def send(number):
        n = 0
        while not over.is_set():
            assert log.core.writer.write(sent(f"{number}-{n}"))
            n += 1
        return n

    counts = []
    threads = [threading.Thread(target=lambda n=n: counts.append(send(n))) for n in range(3)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    for _ in range(30):
        log.close()
    took = time.monotonic() - began
    over.set()
    for thread in threads:
        thread.join(LONG)

    assert took < LONG
    assert not any(thread.is_alive() for thread in threads)
    log.close()
    assert log.jobs.count() == sum(counts)
    assert writers() == []


def test_closing_from_several_threads(log):
    """A log may be closed twice, and by several threads at once; it stays usable."""
    log.core.writer.write(sent("a"))
    threads = [threading.Thread(target=log.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    log.close()

    assert not any(thread.is_alive() for thread in threads)
    assert writers() == []
    log.core.writer.write(sent("b"))
    assert {job.jid for job in log.jobs} == {"a", "b"}


def test_closing_on_the_writers_own_thread(log, eventually):
    """A chore may close its own log."""
    log.core.writer.every(3_600_000, log.core.writer.close)

    eventually(lambda: not writers())
    log.core.writer.write(sent("a"))
    assert log.get("a").state == "enqueued"


def test_closing_in_the_child_of_a_fork(log):
    """A forked child closes its own resources, and the parent continues."""
    log.core.writer.write(sent("a"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log.close()
            log.core.writer.write(sent("b"))
            log.close()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)

    assert status == 0
    log.core.writer.write(sent("c"))
    assert {job.jid for job in log.jobs} == {"a", "b", "c"}


class Broken(BaseException):
    """An unexpected error."""


@pytest.mark.expects_critical
@pytest.mark.parametrize("error", [RuntimeError("broken"), Broken("broken")])
def test_a_writer_that_fails(log, monkeypatch, error):
    """An error in the writer is raised in waiting threads as not written; then it continues."""
    with monkeypatch.context() as broken:

        def fail(*_):
            raise error

        broken.setattr(log.core.writer._outage, "write", fail)
        broken.setattr(log.core.writer._turns, "_answer", fail)
        with pytest.raises(JobLogError, match="the job log's writer failed: broken"):
            log.core.writer.write(sent("a"))
        with pytest.raises(JobLogError, match="the job log's writer failed: broken"):
            log.core.writer.call(log.jobs.count)
        receipt = log.core.writer.put(sent("b"), awaited=True)
        assert receipt.acquire(timeout=LONG)
        assert receipt.error is not None

    assert log.core.writer.write(sent("c"))
    assert [job.jid for job in log.jobs] == ["c"]
    assert log.core.writer.lost == 2


@pytest.mark.expects_critical
@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(1), Broken("broken")])
def test_a_chore_that_fails(log, error):
    """A chore that raises anything neither ends the thread nor blocks waiting threads."""
    done = threading.Event()

    def fail():
        done.set()
        raise error

    log.core.writer.every(3_600_000, fail)

    assert done.wait(LONG)
    assert log.core.writer.write(sent("a"))
    assert log.core.writer.flush(timeout=LONG)


@pytest.mark.expects_critical
def test_an_outcome_that_was_not_written(log, make_broker, worker, monkeypatch):
    """A job whose outcome failed in the writer is not acknowledged."""
    broker = make_broker(joblog=log)
    failed = threading.Event()
    write = log.core.writer._outage.write

    def fail_of_ends(events):
        if any(event.kind == "end" for event in events):
            failed.set()
            raise RuntimeError("broken")
        return write(events)

    @dramatiq.actor
    def work():
        pass

    with monkeypatch.context() as broken:
        broken.setattr(log.core.writer._outage, "write", fail_of_ends)
        with worker(broker):
            message = work.send()
            assert failed.wait(LONG)

    assert broker.queues["default"].unfinished_tasks == 1
    assert log.get(message.message_id).state == "started"


EXIT = """
    import logging, sys
    from dramatiq_joblog import JobLog
    from dramatiq_joblog.recording import writer
    from dramatiq_joblog.recording.events import Enqueued, Event
    writer.Writer.close.__defaults__ = (0.5,)
    logging.basicConfig(format="%(message)s")
    log = JobLog("postgresql://ada@127.0.0.1:1/x", on_outage="block", spool=sys.argv[1])
    for n in range(3):
        log.core.writer.put(Enqueued(dict(jid=str(n), state="enqueued", attempt=1)))
"""


def test_the_end_while_the_database_is_unavailable(tmp_path):
    """A process with ``on_outage="block"`` that ends in an outage reports dropped events."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXIT), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=LONG * 3,
    )

    assert "3 event(s) of the job log were not written and are lost" in done.stderr


def test_closing_while_the_database_is_unavailable(tmp_path, caplog):
    """Closing such a log reports it too, and the log is usable afterwards."""
    log = JobLog("postgresql://ada@127.0.0.1:1/x", on_outage="block", spool=tmp_path)
    log.core.writer.put(sent("a"))
    log.core.writer.put(sent("b"))
    with caplog.at_level(logging.ERROR, "dramatiq_joblog"):
        log.core.writer.close(timeout=0.2)

    assert "2 event(s) of the job log were not written and are lost" in caplog.text
    assert log.core.writer.lost == 2
    assert writers() == []
