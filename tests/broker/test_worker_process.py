"""A process with several workers: heartbeat and maintenance end with the last one."""

from __future__ import annotations

import threading

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware

#: Milliseconds.
BEAT, TIMEOUT = 50, 10_000


@pytest.fixture
def joblog(sqlite_database):
    """Return a log with its tables, on SQLite: the database does not matter here."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


@pytest.fixture
def broker_of(joblog):
    """Return a function that makes a broker of the log with frequent heartbeats."""
    made = []

    def make():
        broker = StubBroker()
        middleware = JobLogMiddleware(joblog, heartbeat=BEAT, heartbeat_timeout=TIMEOUT)
        broker.add_middleware(middleware)
        broker.emit_after("process_boot")
        broker.declare_queue("default")
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def start():
    """Return a function that starts a worker of a broker; all are stopped at the end."""
    started = []

    def begin(broker, **options):
        worker = dramatiq.Worker(broker, **{"worker_timeout": 10, "worker_threads": 2} | options)
        worker.start()
        started.append(worker)
        return worker

    yield begin
    for worker in started:
        worker.stop()


@pytest.fixture
def beats_on(joblog, eventually):
    """Return a function that waits for a heartbeat later than now, and returns its row."""

    def wait():
        before = joblog.now()

        def beat():
            return joblog.workers.where(
                joblog.Worker.heartbeat_at > before, joblog.Worker.ended_at.is_null()
            ).first()

        return eventually(beat)

    return wait


def test_the_heartbeat_outlasts_the_first_worker(joblog, broker_of, start, beats_on, eventually):
    """If the first of two workers stops, the process stays alive with the remaining threads."""
    broker = broker_of()
    first = start(broker, worker_threads=3)
    second = start(broker, worker_threads=2)
    assert 5 == eventually(lambda: joblog.workers.where(joblog.Worker.threads == 5).first()).threads

    first.stop()

    row = beats_on()
    assert 2 == eventually(lambda: joblog.workers.where(joblog.Worker.threads == 2).first()).threads
    assert (1, None) == (joblog.workers.count(), row.swept_at)
    second.stop()
    assert joblog.workers.get().ended_at is not None


def test_the_jobs_of_the_second_are_not_lost(joblog, broker_of, start, beats_on, sqlite_url):
    """Another process's check for dead processes takes no job from the remaining worker."""
    broker = broker_of()
    may_end, begun = threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker, exclusive=Exclusive("key", ttl=60_000))
    def work():
        begun.set()
        may_end.wait(10)

    first, _ = start(broker), start(broker)
    first.pause()
    jid = work.send().message_id
    assert begun.wait(10)
    first.stop()
    beats_on()

    other = JobLog(sqlite_url)
    other_broker = StubBroker()
    other_broker.add_middleware(JobLogMiddleware(other, heartbeat=BEAT, heartbeat_timeout=TIMEOUT))
    watcher = start(other_broker)
    other.core.writer.flush()

    assert "started" == joblog.get(jid).state
    assert [jid] == [lock.owner for lock in joblog.locks]
    watcher.stop()
    may_end.set()
    broker.join("default")
    other.close()


def test_a_worker_after_the_last_one(joblog, broker_of, start, beats_on):
    """A worker that starts after all have stopped is a new process; stopping twice ends once."""
    broker = broker_of()
    first = start(broker)
    name = joblog.core.worker_process.name
    first.stop()
    first.stop()
    assert joblog.core.worker_process.name is None

    start(broker)

    assert name != beats_on().process
    assert 2 == joblog.workers.count()


def test_stopping_twice_does_not_count_for_another(joblog, broker_of, start, beats_on):
    """Stopping a worker a second time does not affect the remaining one."""
    broker = broker_of()
    first, _ = start(broker), start(broker)

    first.stop()
    first.stop()

    assert 2 == beats_on().threads


def test_two_brokers_share_one_log(joblog, broker_of, start, beats_on, eventually):
    """The workers of two brokers are one process, whichever stops first."""
    one, two = broker_of(), broker_of()
    two.declare_queue("other")
    first, second = start(one), start(two)
    beats_on()
    eventually(lambda: {"default", "other"} <= set(joblog.workers.get().queues))

    first.stop()
    assert 1 == joblog.workers.count()
    beats_on()
    second.stop()

    assert joblog.workers.get().ended_at is not None


@pytest.mark.parametrize("stopped", ["first", "second"])
def test_waiters_come_forward_when_a_worker_has_stopped(broker_of, start, joblog, stopped):
    """A waiter in the remaining worker runs as soon as its section is free."""
    brokers = [broker_of(), broker_of()]
    workers = [start(broker) for broker in brokers]
    left = brokers[stopped == "first"]
    may_end, begun = threading.Event(), threading.Event()

    @dramatiq.actor(broker=left, exclusive=Exclusive("key", on_conflict="wait"))
    def work(wait):
        begun.set()
        if wait:
            may_end.wait(10)

    workers[stopped == "second"].stop()
    work.send(True)
    assert begun.wait(10)
    others = [work.send(False) for _ in range(3)]
    may_end.set()
    left.join("default", timeout=10_000)
    left.join("default.DQ", timeout=10_000)
    left.join("default", timeout=10_000)

    assert {"finished"} == {joblog.get(other.message_id).state for other in others}


def test_pausing_is_not_ending(broker_of, start, beats_on, joblog):
    """A paused worker still sends heartbeats, and runs jobs once resumed."""
    broker = broker_of()
    ran = threading.Event()
    actor = dramatiq.actor(ran.set, actor_name="work", broker=broker)
    worker = start(broker)
    worker.pause()
    beats_on()
    jid = actor.send().message_id
    worker.resume()

    assert ran.wait(10)
    broker.join("default")
    assert "finished" == joblog.get(jid).state
    beats_on()


def test_a_lock_by_hand_outlasts_the_workers(joblog, broker_of, start, beats_on, sqlite_url):
    """A key locked by hand in a worker process stays held when the worker has stopped."""
    worker = start(broker_of())
    beats_on()

    with joblog.lock("nightly report") as lease:
        worker.stop()
        other = JobLog(sqlite_url)
        other_broker = StubBroker()
        other_broker.add_middleware(JobLogMiddleware(other, heartbeat=BEAT))
        watcher = start(other_broker)
        other.core.writer.flush()

        assert ["nightly report"] == [lock.key for lock in joblog.locks]
        assert not lease.lost
        watcher.stop()
        other.close()


def test_the_lines_and_progress_of_the_second_are_kept(joblog, broker_of, start, beats_on):
    """Log lines and progress are still written after the other worker has stopped."""
    broker = broker_of()
    may_end, begun = threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker)
    def work():
        begun.set()
        may_end.wait(10)
        work.logger.warning("after")

    first, _ = start(broker), start(broker)
    first.pause()
    jid = work.send().message_id
    assert begun.wait(10)
    first.stop()
    may_end.set()
    broker.join("default")

    joblog.core.writer.flush()
    assert "after" in [line.text for line in joblog.get(jid).lines]
