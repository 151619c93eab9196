"""Running many jobs again: in batches, none twice, whatever fails in the middle."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, MiddlewareError
from playhouse.test_utils import count_queries

from dramatiq_joblog import (
    Exclusive,
    JobLog,
    JobLogMiddleware,
    RequeueError,
    RequeueInterruptedError,
    Unique,
    current_job,
)
from dramatiq_joblog.broker import bulk
from dramatiq_joblog.broker.sending import Sending, can_pipeline
from dramatiq_joblog.locking.turn import Turn

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def small_batches(monkeypatch):
    """Set the batch size to four jobs."""
    monkeypatch.setattr(bulk, "BATCH", 4)


@pytest.fixture
def dead(job_factory):
    """Return a function that inserts a number of dead jobs, and returns their jids."""

    def make(count, *, first=0, **columns):
        row = {"state": "dead", "args": [], "kwargs": {}, **columns}
        numbers = range(first, first + count)
        return [job_factory(jid=f"old-{n:03}", **row).jid for n in numbers]

    return make


class Watching(Middleware):
    """Records each enqueue, and how many messages the broker has then."""

    def __init__(self):
        self.told = []
        self.brokers = set()

    def before_enqueue(self, broker, message, delay):
        """Record that a message is about to be enqueued."""
        self.brokers.add(broker)
        self.told.append(("before", message.message_id))

    def after_enqueue(self, broker, message, delay):
        """Record how many messages Redis has."""
        self.brokers.add(broker)
        there = broker.do_qsize("default")
        self.told.append(("after", message.message_id, there))


def declare(name="work", **options):
    ran = []

    @dramatiq.actor(actor_name=name, **options)
    def work(*args, **kwargs):
        ran.append(current_job().jid)

    work.ran = ran
    return work


def run(broker, worker, **options):
    with worker(broker, **options):
        for queue in broker.get_declared_queues():
            broker.join(queue)


def replays(joblog):
    """Return the new jobs of each old one, from the rows of the new ones."""
    job = joblog.Job
    rows = job.select(job.replay_of, job.jid).where(job.replay_of.is_null(False)).tuples()
    return Counter(old for old, _ in rows)


# How they are sent


def test_redis_takes_a_batch_in_one_round_trip(joblog, make_broker, dead, worker):
    """All messages are in Redis before ``after_enqueue`` is called for the first one."""
    watching = Watching()
    broker = make_broker("redis", joblog=joblog, middleware=[watching])
    work = declare()
    old = dead(5)

    result = joblog.requeue_all(joblog.jobs.dead(), who="ada")

    sent = [message.message_id for message in result.sent]
    befores = [("before", jid) for jid in sent]
    assert befores + [("after", jid, 5) for jid in sent] == watching.told
    assert {broker} == watching.brokers
    run(broker, worker)
    assert sorted(sent) == sorted(work.ran)
    assert Counter(old) == replays(joblog)
    assert [joblog.get(jid).replayed_by for jid in old] == sent
    assert {("requeue", "ada")} == {(deed.what, deed.who) for deed in joblog.actions}
    told = {deed.jid: deed.detail for deed in joblog.actions}
    assert {jid: f"as {joblog.get(jid).replayed_by}" for jid in old} == told


def test_what_is_not_known_is_sent_one_by_one(joblog, make_broker):
    """A broker with a custom or replaced `enqueue` gets each message separately."""
    broker = make_broker("redis", joblog=joblog)
    declare()
    ours = vars(broker)["enqueue"]
    assert can_pipeline(broker, ours)
    assert not can_pipeline(broker)
    assert not can_pipeline(StubBroker())

    class Other(RedisBroker):
        def enqueue(self, message, *, delay=None):
            return super().enqueue(message, delay=delay)

    assert not can_pipeline(Other())
    assert can_pipeline(RedisBroker())
    broker.enqueue = lambda message, delay=None: ours(message, delay=delay)
    assert not can_pipeline(broker, ours)


@pytest.mark.parametrize("kind", ["redis", "rabbit", "stub"])
def test_each_broker_sends_all_of_them_in_order(joblog, make_broker, dead, small_batches, kind):
    """With any broker, all jobs are sent once, oldest first, and marked as run again."""
    make_broker(kind, joblog=joblog)
    declare()
    old = dead(10)

    result = joblog.requeue_all(joblog.jobs.dead())

    assert old == [message.options["joblog_replay_of"] for message in result.sent]
    joblog.core.writer.flush()
    assert Counter(old) == replays(joblog)
    assert [] == joblog.requeue_all(joblog.jobs.dead()).sent


def test_a_batch_costs_as_many_statements_as_one_job(joblog, make_broker, dead):
    """The number of statements grows with the number of batches, not of jobs."""
    make_broker("stub", joblog=joblog)
    declare()
    joblog.release()

    def spent(count, first):
        dead(count, first=first)
        joblog.core.writer.flush()
        with count_queries() as counted:
            joblog.requeue_all(joblog.jobs.dead())
        return counted.count

    one, many = spent(1, 0), spent(60, 1)
    # The rows of what was enqueued are written as the writer's thread gets to them.
    assert many < one + 15


# What each of them follows


class Refuses(Middleware):
    """Refuses a message, as a middleware may."""

    def before_enqueue(self, broker, message, delay):
        """Refuse one that says so."""
        if message.kwargs.get("refused"):
            raise MiddlewareError("this one is not for us")


@pytest.mark.parametrize("kind", ["redis", "stub"])
def test_one_that_cannot_be_sent_does_not_stop_the_others(joblog, make_broker, dead, kind):
    """An unknown actor, an undeclared queue, a duplicate or a refusal is reported by jid."""
    broker = make_broker(kind, joblog=joblog, middleware=[Refuses()])
    declare()
    declare("moved", queue_name="nowhere")
    broker.get_actor("moved").queue_name = "never declared"
    declare("once", unique=Unique("one"))
    dead(1)
    dead(1, first=1, actor="gone")
    dead(1, first=2, actor="moved", queue="gone too")
    dead(2, first=3, actor="once")
    dead(1, first=5, kwargs={"refused": True})
    dead(1, first=6, withheld="it is secret")
    dead(1, first=7, args={"no": "list"})
    dead(1, first=8)

    result = joblog.requeue_all(joblog.jobs.dead())

    sent = [message.options["joblog_replay_of"] for message in result.sent]
    refused = dict(result.refused)
    if kind == "redis":
        # Redis needs no declaration.
        assert "old-002" in sent
        sent.remove("old-002")
    else:
        assert "never declared" in refused.pop("old-002")
    assert ["old-000", "old-003", "old-008"] == sent
    assert ["old-001", "old-004", "old-005", "old-006", "old-007"] == sorted(refused)
    for jid, reason in {
        "old-001": "no actor 'gone' is declared",
        "old-004": "is held by job",
        "old-005": "this one is not for us",
        "old-006": "it is secret",
        "old-007": "cannot be read",
    }.items():
        assert reason in refused[jid]


def test_sections_and_keys_are_kept(joblog, make_broker, dead, worker):
    """A job of a batch gets the same section and unique key as one requeued alone."""
    broker = make_broker("redis", joblog=joblog)

    @dramatiq.actor(exclusive=Exclusive("s:{n}", on_conflict="wait"))
    def alone(n):
        """Do nothing."""

    @dramatiq.actor(unique="u:{n}")
    def once(n):
        """Do nothing."""

    dead(2, actor="alone", args=[7])
    dead(2, first=2, actor="once", args=[7])

    result = joblog.requeue_all(joblog.jobs.dead())

    first, second, third = (message.options for message in result.sent)
    assert "s:7" == first["joblog_section"]["key"] == second["joblog_section"]["key"]
    assert "u:7" == third["joblog_unique"]["key"]
    assert ["old-003"] == list(result.refused)
    run(broker, worker)
    assert {"finished"} == {joblog.get(m.message_id).state for m in result.sent}


def test_named_jobs_run_again_each_time(joblog, make_broker, dead):
    """A named job runs again even if it was before, each time as a new job."""
    make_broker("stub", joblog=joblog)
    declare()
    [old] = dead(1)

    jids = [bulk.requeue_named(joblog.core, [old, old, "nobody"], who="ada") for _ in range(2)]

    first, second = (each.sent[0].message_id for each in jids)
    assert first != second
    assert second == joblog.get(old).replayed_by
    assert {"nobody": "the log has no job 'nobody'"} == jids[0].refused
    once_more = bulk.requeue_named(joblog.core, [old], who="ada", repeat=False)
    assert ([], {}) == (once_more.sent, once_more.refused)


def test_what_runs_again_meanwhile_is_left_alone(joblog, make_broker, dead, small_batches):
    """A job of a later batch that was requeued meanwhile is not sent a second time."""
    make_broker("stub", joblog=joblog)
    declare()
    old = dead(6)

    def meddle(done, _total):
        if done == 1:
            joblog.requeue(old[4])

    result = joblog.requeue_all(joblog.jobs.dead(), progress=meddle)

    assert [*old[:4], old[5]] == [m.options["joblog_replay_of"] for m in result.sent]
    joblog.core.writer.flush()
    assert Counter(old) == replays(joblog)


def test_progress_is_of_all(joblog, make_broker, dead, small_batches):
    """Progress counts each job once its batch is recorded, out of the number found."""
    make_broker("stub", joblog=joblog)
    declare()
    dead(6)
    seen = []

    def note(done, total):
        noted = joblog.jobs.where(joblog.Job.replayed_by.is_null(False)).count()
        seen.append((done, total, noted))

    joblog.requeue_all(joblog.jobs.dead(), progress=note)

    assert [(1, 6, 4), (2, 6, 4), (3, 6, 4), (4, 6, 4), (5, 6, 6), (6, 6, 6)] == seen


# What fails in the middle


@pytest.mark.full
@pytest.mark.process
@pytest.mark.parametrize("after", [4, 1, 3, 6])
def test_a_crash_between_sending_and_noting(
    joblog, database_url, redis_url, dead, worker, eventually, run_script, after
):
    """If the process is killed and the call repeated, every job runs exactly once."""
    old = dead(7)
    joblog.release()
    died = run_script("dying_requeue.py", database_url, redis_url, after)
    assert 3 == died.returncode, died.stderr
    broker = RedisBroker(url=redis_url, middleware=[JobLogMiddleware(joblog)])
    dramatiq.set_broker(broker)
    work = declare()
    assert broker.do_qsize("default") >= after

    result = joblog.requeue_all(joblog.jobs.dead())

    assert {} == result.refused
    assert len(old) - (4 if after > 4 else 0) <= len(result.sent) <= len(old)
    run(broker, worker, worker_threads=1)
    assert Counter(work.ran) == Counter(joblog.get(jid).replayed_by for jid in old)
    assert Counter(old) == replays(joblog)
    assert {"finished"} == {joblog.get(jid).state for jid in work.ran}
    broker.close()


class TablesVanish(Middleware):
    """Removes a table of the log after a number of messages."""

    def __init__(self, joblog, after):
        self.joblog, self.left = joblog, after

    def rename(self, old, new):
        """Rename a table."""
        with self.joblog.database.connection_context():
            self.joblog.database.execute_sql(f"ALTER TABLE {old} RENAME TO {new}")

    def after_enqueue(self, broker, message, delay):
        """Count."""
        self.left -= 1
        if self.left == 0:
            self.rename("joblog_action", "away")


def test_a_database_that_fails_midway(joblog, make_broker, dead, small_batches):
    """The error has what was sent and how many are left; the same call then sends only those."""
    vanish = TablesVanish(joblog, 6)
    broker = make_broker("stub", joblog=joblog, middleware=[vanish])
    declare()
    old = dead(10)
    joblog.release()

    with pytest.raises(RequeueInterruptedError, match=r"8 jobs run again.*2 are left") as broken:
        joblog.requeue_all(joblog.jobs.dead())

    assert old[:8] == [m.options["joblog_replay_of"] for m in broken.value.sent]
    vanish.rename("away", "joblog_action")
    again = joblog.requeue_all(joblog.jobs.dead())
    assert old[4:] == [m.options["joblog_replay_of"] for m in again.sent]
    assert [m.message_id for m in broken.value.sent[4:]] == [m.message_id for m in again.sent[:4]]
    assert 10 == broker.queues["default"].qsize()
    assert Counter(old) == replays(joblog)


class MemoryIsFull(Middleware):
    """Fills Redis's memory after a number of messages."""

    def __init__(self, after):
        self.left = after

    def before_enqueue(self, broker, message, delay):
        """Count."""
        self.left -= 1
        if self.left == 0:
            broker.client.config_set("maxmemory", 1)


def test_a_redis_that_refuses_midway(
    real_redis, joblog, make_broker, dead, small_batches, worker, redis_url
):
    """If Redis refuses a batch, nothing of it is sent, and repeating the call sends it."""
    broker = make_broker("redis", joblog=joblog, middleware=[MemoryIsFull(6)])
    work = declare()
    old = dead(10)

    try:
        with pytest.raises(RequeueInterruptedError, match="6 are left, from job old-004") as broken:
            joblog.requeue_all(joblog.jobs.dead())
    finally:
        broker.client.config_set("maxmemory", 0)

    assert old[:4] == [m.options["joblog_replay_of"] for m in broken.value.sent]
    assert (6, "old-004") == (broken.value.left, broken.value.jid)
    assert 4 == broker.do_qsize("default")
    assert old[4:] == [
        m.options["joblog_replay_of"] for m in joblog.requeue_all(joblog.jobs.dead()).sent
    ]
    run(broker, worker)
    assert Counter(joblog.get(jid).replayed_by for jid in old) == Counter(work.ran)


def test_two_that_do_so_at_once(joblog, database_url, redis_url, dead, small_batches, worker):
    """If two processes requeue the same jobs at the same time, each job is sent by one."""
    old = dead(40)
    joblog.release()
    logs = [JobLog(database_url) for _ in range(2)]
    brokers, both, sent = [], threading.Barrier(2), []
    for log in logs:
        broker = RedisBroker(url=redis_url, middleware=[JobLogMiddleware(log)])
        brokers.append(broker)
        dramatiq.actor(lambda: None, actor_name="work", broker=broker)

    def requeue(log):
        both.wait(10)
        sent.extend(m.options["joblog_replay_of"] for m in log.requeue_all(log.jobs.dead()).sent)

    threads = [threading.Thread(target=requeue, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert Counter(old) == Counter(sent)
    assert 40 == brokers[0].do_qsize("default")
    for log, broker in zip(logs, brokers, strict=True):
        broker.close()
        log.close()


def test_another_that_takes_long(joblog, make_broker, dead, monkeypatch):
    """While another process requeues jobs, the call waits, and then raises."""
    monkeypatch.setattr(bulk, "PATIENCE", 100)
    make_broker("stub", joblog=joblog)
    declare()
    dead(1)

    turn = Turn(joblog.core.locks, "requeue", lasts=60_000)
    with turn.take(), pytest.raises(RequeueError, match="another process runs jobs of this log"):
        joblog.requeue_all(joblog.jobs.dead())

    assert 1 == len(joblog.requeue_all(joblog.jobs.dead()).sent)


def test_a_copy_of_a_delivery_is_not_run(joblog, make_broker, dead, worker):
    """A message that was sent twice, because the first was not recorded, runs once."""
    broker = make_broker("redis", joblog=joblog)
    work = declare()
    [old] = dead(1)
    [message] = joblog.requeue_all(joblog.jobs.dead()).sent
    run(broker, worker)

    copy = message.copy(options={"joblog_delivery": [f"again {message.message_id}", None]})
    with bulk.moving():
        Sending().send(broker, [copy])
    run(broker, worker)

    assert [message.message_id] == work.ran
    assert "finished" == joblog.get(joblog.get(old).replayed_by).state
