"""A transaction that the database rolls back because of a deadlock is retried."""

from __future__ import annotations

import threading
import time

import pytest
from peewee import PeeweeException

from dramatiq_joblog import DatabaseAwayError, JobLog
from dramatiq_joblog.database.checkout import checked_out, in_transaction, transaction

pytestmark = pytest.mark.every_database


@pytest.fixture
def crossing(joblog, database_url, job_factory):
    """Return a function that runs two transactions which change two rows in crossed orders."""
    if database_url.startswith("sqlite"):
        pytest.skip("one transaction at a time writes to a file: none waits for the other")
    jids = [job_factory().jid for _ in range(2)]
    logs = [JobLog(database_url) for _ in range(2)]
    meeting, tries = threading.Barrier(2), []
    # The first tries only meet; the one that is then alone goes on.
    lock = threading.Lock()

    def change(log, order, name, run):
        met = False

        def work():
            nonlocal met
            for number, jid in enumerate(order):
                log.Job.update(note=name).where(log.Job.jid == jid).execute()
                if number == 0 and not met:
                    met = True
                    meeting.wait(30)
            with lock:
                tries.append(name)

        run(log.database, work)

    yield change, logs, jids, tries
    for log in logs:
        log.close()


@pytest.mark.parametrize("by_the_writer", [False, True], ids=["own_thread", "writer"])
def test_both_of_a_deadlock_are_done(crossing, joblog, by_the_writer):
    """Both transactions of a deadlock are finally committed, one after the other."""
    change, logs, jids, tries = crossing

    def run_of(log):
        return (lambda _, work: log.core.writer.call(work)) if by_the_writer else in_transaction

    threads = [
        threading.Thread(target=change, args=(log, order, name, run_of(log)))
        for log, order, name in zip(logs, (jids, jids[::-1]), "ab", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert ["a", "b"] == sorted(tries)
    assert 1 == len({joblog.get(jid).note for jid in jids})


def test_a_part_of_a_transaction_is_not_repeated(crossing):
    """A part of an open transaction is not retried: everything is rolled back."""
    change, logs, jids, tries = crossing
    errors = []

    def inside(database, work):
        try:
            with checked_out(database), transaction(database):
                in_transaction(database, work)
        except (DatabaseAwayError, PeeweeException) as e:
            # MariaDB has undone the savepoint too, and peewee asks for it.
            errors.append(e)

    threads = [
        threading.Thread(target=change, args=(log, order, name, inside))
        for log, order, name in zip(logs, (jids, jids[::-1]), "ab", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert 1 == len(tries)
    assert 1 == len(errors)


@pytest.mark.parametrize("what", ["waiters", "leases"])
def test_what_a_process_renews_is_locked_in_order(
    joblog, database_url, job_factory, eventually, what
):
    """Renewing leases and waiters never deadlocks with acquiring keys."""
    if not database_url.startswith("postgres"):
        pytest.skip("an update of another database has no order of its own")
    names = ["z", "m", "a"]
    locks, now = joblog.core.locks, time.time_ns() // 1_000_000
    for name in names:
        job_factory(jid=name, state="waiting", started_at=None, finished_at=None, eta=now)
    taken = [joblog.lock(name) for name in names]
    for block in taken:
        block.__enter__()
    renewals = {
        "waiters": lambda: locks.presence.heartbeat(sorted(names)),
        "leases": locks.leases.renew,
    }
    renew = renewals[what]

    def renewing():
        with checked_out(joblog.database):
            renew()

    other = JobLog(database_url)
    with other.database.connection_context(), other.database.atomic():
        rows = other.Job if what == "waiters" else other.Lock
        column = rows.jid if what == "waiters" else rows.key
        list(rows.select().where(column == "a").for_update())
        thread = threading.Thread(target=renewing)
        thread.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        # In a transaction it would say the same again and again.
        with joblog.database.connection_context():
            eventually(lambda: joblog.database.execute_sql(waiting).fetchone() == (1,))
        # The holder of this one would wait for us, as we for it.
        list(rows.select().where(column == "z").for_update())
    thread.join(30)
    for block in taken:
        block.__exit__(None, None, None)
    other.close()
