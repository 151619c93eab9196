"""The group-commit writer: batches, forks, exits, poison, and an unavailable database."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import peewee
import psycopg
import pytest

from dramatiq_joblog import JobLog
from dramatiq_joblog.recording.events import Ended, Enqueued, Started

NOW = 1_800_000_000_000


def row(jid, state="enqueued", **columns):
    return {
        "jid": jid,
        "actor": "work",
        "queue": "default",
        "state": state,
        "attempt": 1,
        "enqueued_at": NOW,
        "created_at": NOW,
        "updated_at": NOW,
        **columns,
    }


def jids(joblog):
    return sorted(job.jid for job in joblog.jobs)


def test_nothing_starts_before_the_first_event(tmp_path):
    """A log without events has no thread, no connection and no file."""
    path = tmp_path / "jobs.db"
    before = {*threading.enumerate()}
    joblog = JobLog(f"sqlite:///{path}")

    assert joblog.core.writer.flush()
    joblog.close()

    # A thread of an earlier test may end meanwhile.
    assert before >= {*threading.enumerate()}
    assert not path.exists()


def test_many_waiters_share_a_commit(joblog):
    """Events that arrive while a batch is written form the next batch, and all are answered."""
    batches = []
    gate, entered = threading.Event(), threading.Event()
    write = joblog.core.transitions.write

    def slow(events):
        batches.append(len(events))
        entered.set()
        gate.wait(10)
        return write(events)

    joblog.core.transitions.write = slow
    threads = [
        threading.Thread(
            target=joblog.core.writer.write,
            args=(Started(row(f"j{n}", "started", token=f"{n}")),),
        )
        for n in range(9)
    ]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(joblog.core.writer._inbox._receipts) < 8:
        pass
    gate.set()
    for thread in threads:
        thread.join(10)

    assert [1, 8] == batches
    assert [f"j{n}" for n in range(9)] == jids(joblog)


def test_what_rides(joblog):
    """An event that rides takes no separate commit, and is written at the latest by wake()."""
    batches = []
    write = joblog.core.transitions.write
    joblog.core.transitions.write = lambda events: batches.append(len(events)) or write(events)
    joblog.core.writer.write(Enqueued(row("first")))

    riding = joblog.core.writer.ride(Enqueued(row("rides")))
    assert not riding.acquire(timeout=0.1)
    joblog.core.writer.write(Enqueued(row("next")))
    assert riding.acquire(blocking=False)
    riding = joblog.core.writer.ride(Enqueued(row("alone")))
    joblog.core.writer.wake()
    assert riding.acquire(timeout=30)

    assert [1, 2, 1] == batches
    assert ["alone", "first", "next", "rides"] == jids(joblog)


class Due:
    """An event that is due at once."""

    due = 0.0
    is_dropped = False

    def __init__(self, event):
        self._event = event

    def events(self):
        return [self._event]


def test_what_is_due_comes_after_what_was_submitted(joblog):
    """Also if both waited for a slow batch: it may withdraw what was submitted."""
    written, gate, entered = [], threading.Event(), threading.Event()
    write = joblog.core.transitions.write

    def slow(events):
        entered.set()
        assert gate.wait(30)
        written.extend(event.jid for event in events)
        return write(events)

    joblog.core.transitions.write = slow
    joblog.core.writer.put(Enqueued(row("slow")), awaited=True)
    assert entered.wait(30)
    joblog.core.writer.put(Enqueued(row("submitted")), awaited=True)
    joblog.core.writer.put_later(Due(Enqueued(row("due"))))
    gate.set()
    assert joblog.core.writer.flush()
    assert ["slow", "submitted", "due"] == written


def test_rows_keep_the_order_of_sending(joblog):
    """Jobs that are written together have ids in the order of sending."""
    names = [f"{n * 7919 % 100}" for n in range(100)]

    joblog.core.transitions.write(
        [Enqueued(row(jid, enqueued_at=NOW + n)) for n, jid in enumerate(names)]
    )

    assert names[::-1] == [job.jid for job in joblog.jobs]


def test_a_jobs_events_keep_their_order(joblog):
    """Events of one job in the same batch are written one after the other."""
    gate, entered = threading.Event(), threading.Event()
    write = joblog.core.transitions.write

    def slow(events):
        entered.set()
        gate.wait(10)
        return write(events)

    joblog.core.transitions.write = slow
    joblog.core.writer.put(Enqueued(row("other")))
    assert entered.wait(10)
    joblog.core.writer.put(Enqueued(row("j")))
    joblog.core.writer.put(Started(row("j", "started", token="t")))
    joblog.core.writer.put(Ended(row("j", "finished", token="t", finished_at=NOW)))
    gate.set()

    assert "finished" == joblog.get("j").state


def test_poison_does_not_take_its_batch(joblog, caplog):
    """An event that the database refuses is stored without the refused part; others unchanged."""
    poisoned = row("b", args="[1]", max_retries=2**80)
    gate, entered = threading.Event(), threading.Event()
    write = joblog.core.transitions.write

    def slow(events):
        entered.set()
        gate.wait(10)
        return write(events)

    joblog.core.transitions.write = slow
    joblog.core.writer.put(Enqueued(row("first")))
    assert entered.wait(10)
    for event in (row("a", args="[1]"), poisoned, row("c", args="[1]")):
        joblog.core.writer.put(Enqueued(event))
    gate.set()

    assert ["a", "b", "c", "first"] == jids(joblog)
    assert [1] == joblog.get("a").args == joblog.get("c").args
    assert "not stored" in joblog.get("b").note
    assert 0 == joblog.core.writer.lost


@pytest.mark.parametrize("part", ["row", "failure", "lines"])
def test_poison_in_a_batch_of_every_table(joblog, part):
    """Whatever the database refuses of an event, the rows of others are written, in each table."""
    events = []
    for jid in "abc":
        run = {"jid": jid, "token": f"run-{jid}", "attempt": 1}
        line = {"number": 1, "time": NOW, "level": "INFO", "logger": "x", "text": "hello"}
        dead = row(jid, "dead", token=f"run-{jid}", finished_at=NOW)
        events.append(Ended(dead, {**run, "outcome": "dead"}, [{**run, **line}]))
    too_large = {"row": events[1].row, "failure": events[1].failure, "lines": events[1].lines[0]}
    too_large[part] |= {"max_retries" if part == "row" else "attempt": 2**80}
    gate = threading.Event()
    chore = threading.Thread(target=joblog.core.writer.call, args=(lambda: gate.wait(10),))
    chore.start()
    for event in (*events, Enqueued(row("sent"))):
        joblog.core.writer.put(event)
    gate.set()
    chore.join()

    lost = part == "failure"
    assert ["a", *("b" for _ in range(not lost)), "c", "sent"] == jids(joblog)
    for jid in "ac":
        job = joblog.get(jid)
        assert (1, 1) == (job.failures.count(), job.lines.count())
    assert lost == joblog.core.writer.lost


@pytest.mark.new_database
def test_tables_that_were_not_made_yet(database_url, caplog, eventually):
    """Without tables, events are kept, the cure is logged, and they are written once there are."""
    joblog = JobLog(database_url)
    with caplog.at_level(logging.ERROR):
        joblog.core.writer.write(Started(row("j", "started", token="t")))
    assert joblog.core.writer.away
    assert "create_tables()" in caplog.text
    joblog.create_tables()
    eventually(lambda: not joblog.core.writer.away)

    assert "started" == joblog.get("j").state
    joblog.close()


def test_waits_for_a_locked_file(tmp_path):
    """A SQLite file that another connection locks briefly is waited for."""
    path = tmp_path / "jobs.db"
    joblog = JobLog(f"sqlite:///{path}")
    joblog.create_tables()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = threading.Thread(
        target=joblog.core.writer.write, args=(Started(row("j", "started", token="t")),)
    )
    writing.start()
    writing.join(0.2)
    was_waiting = writing.is_alive()
    other.execute("COMMIT")
    writing.join(10)
    other.close()

    assert was_waiting
    assert "started" == joblog.get("j").state
    joblog.close()


def test_a_deadlock_is_tried_again(postgres_url):
    """A batch that the database rolls back for a deadlock is written at the next attempt."""
    joblog = JobLog(postgres_url)
    joblog.create_tables()
    for jid in ("a", "b"):
        joblog.core.writer.write(Enqueued(row(jid)))
    go_on = threading.Event()
    with psycopg.connect(postgres_url) as other:
        # Of the two it is the log that notices.
        other.execute("SET deadlock_timeout = '1min'")
        other.execute("UPDATE joblog_job SET note = 'b' WHERE jid = 'b'")
        held = threading.Thread(target=joblog.core.writer.call, args=(lambda: go_on.wait(30),))
        held.start()
        for jid in ("a", "b"):
            joblog.core.writer.put(Started(row(jid, "started", token=jid)))
        go_on.set()
        # Waits for the batch, which waits for this.
        waiting = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        with psycopg.connect(postgres_url, autocommit=True) as watch:
            while not watch.execute(waiting).fetchone()[0]:
                pass
        other.execute("UPDATE joblog_job SET note = 'a' WHERE jid = 'a'")
    held.join()
    joblog.core.writer.flush()

    assert not joblog.core.writer.away
    assert 2 == joblog.jobs.started().count()
    assert {"a", "b"} == {job.note for job in joblog.jobs}
    joblog.close()


def test_a_connection_that_was_cut(postgres_url):
    """A connection that the server cut is replaced, and nothing is lost."""
    joblog = JobLog(postgres_url)
    joblog.create_tables()
    joblog.core.writer.write(Started(row("a", "started", token="t")))
    joblog.database.execute_sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    joblog.core.writer.write(Started(row("b", "started", token="t")))

    assert ["a", "b"] == jids(joblog)
    assert 0 == joblog.core.writer.lost
    joblog.close()


def test_a_chore_with_more_to_do(joblog, eventually):
    """A chore that returns True is called again at once, and otherwise after its interval."""
    calls = []

    def work_through():
        calls.append(joblog.database.is_closed())
        return len(calls) < 3

    joblog.core.writer.every(3_600_000, work_through)

    eventually(lambda: len(calls) >= 3)
    joblog.core.writer.flush()
    assert [False] * 3 == calls


def test_a_senders_transaction(joblog, database_url):
    """An enqueue row is not part of the sender's transaction, and survives its rollback."""
    with joblog.database.atomic() as transaction:
        if not database_url.startswith("sqlite"):
            # In one SQLite file the second to write waits for the first to end.
            joblog.Job.insert(row("mine")).execute()
        joblog.core.writer.put(Enqueued(row("j")))
        assert joblog.core.writer.flush(timeout=10)
        transaction.rollback()
    assert ["j"] == jids(joblog)


@pytest.mark.parametrize(("end", "code"), [("return", 0), ("exit", 3), ("raise", 1)])
def test_rows_survive_the_exit_of_the_sender(joblog, database_url, run_script, end, code):
    """Submitted events are written before a process ends in any regular way."""
    assert code == run_script("forgetful_sender.py", database_url, end).returncode
    assert 200 == joblog.jobs.count()


def child(joblog, jid):
    joblog.core.writer.put(Enqueued(row(jid)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork(joblog):
    """A forked child has its own writer, and does not disturb the parent's."""
    joblog.core.writer.write(Enqueued(row("before")))
    children = [
        multiprocessing.get_context("fork").Process(target=child, args=(joblog, f"child {n}"))
        for n in range(3)
    ]
    for process in children:
        process.start()
    joblog.core.writer.write(Enqueued(row("meanwhile")))
    for process in children:
        process.join(30)
    joblog.core.writer.write(Enqueued(row("after")))

    assert [0, 0, 0] == [process.exitcode for process in children]
    assert ["after", "before", "child 0", "child 1", "child 2", "meanwhile"] == jids(joblog)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_bare_fork_that_exits_at_once(joblog):
    """The parent's connections survive a child that ends without cleaning up."""
    joblog.core.writer.write(Enqueued(row("before")))
    assert 1 == joblog.jobs.count()
    pid = os.fork()
    if not pid:
        os._exit(0 if joblog.jobs.count() == 1 else 1)
    _, status = os.waitpid(pid, 0)

    joblog.core.writer.write(Enqueued(row("after")))
    assert 0 == status
    assert ["after", "before"] == jids(joblog)


@pytest.mark.full
def test_spawn(joblog, database_url):
    """A spawned child writes its submitted events before it ends."""
    sender = Path(__file__).parents[1] / "support" / "spawn_sender.py"
    subprocess.run([sys.executable, sender, database_url], check=True, timeout=60)
    assert ["parent", "spawned"] == jids(joblog)


def test_two_logs_do_not_meet(sqlite_url, postgres_url):
    """Two logs on two databases live in one process, each with its own rows."""
    logs = [JobLog(sqlite_url), JobLog(postgres_url)]
    for log in logs:
        log.create_tables()
    for n, log in enumerate(logs):
        log.core.writer.put(Enqueued(row(f"j{n}")))

    assert [["j0"], ["j1"]] == [jids(log) for log in logs]
    for log in logs:
        log.close()


def test_close_and_go_on(joblog):
    """A closed log reopens automatically."""
    joblog.core.writer.put(Enqueued(row("a")))
    joblog.close()
    joblog.core.writer.put(Enqueued(row("b")))

    assert ["a", "b"] == jids(joblog)


def test_a_database_of_the_users_own(tmp_path, eventually):
    """A passed-in peewee ``Database`` is used with the writer's own connections."""
    database = peewee.SqliteDatabase(tmp_path / "own.db")
    joblog = JobLog(database)
    joblog.create_tables()
    with database.connection_context():
        joblog.core.writer.write(Enqueued(row("a")))
        assert not database.is_closed()
    assert database.is_closed()

    assert ["a"] == jids(joblog)
    joblog.close()
