"""Critical sections and unique keys, with real actors and real worker threads."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict

import dramatiq
import peewee
import pytest
import redis
import servers
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import (
    MiddlewareError,
    Retries,
    default_middleware,
)
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from dramatiq_joblog import (
    ConfigurationError,
    DuplicateJob,
    Exclusive,
    JobLog,
    JobLogError,
    JobLogMiddleware,
    Unique,
    current_job,
    enqueue_once,
)
from dramatiq_joblog.broker import refusals
from dramatiq_joblog.recording.events import Ended, Started


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    broker = make_broker("stub", "last", joblog=joblog)
    broker.fail_fast_default = False
    return broker


class Gate:
    """An actor's body that blocks until it is released."""

    def __init__(self):
        self.entered = threading.Event()
        self.go = threading.Event()
        self.inside = 0
        self.most = 0
        self.order = []
        self.fences = []
        self._lock = threading.Lock()

    def stay(self, name):
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.order.append(name)
            self.fences.append(current_job().fence)
        self.entered.set()
        self.go.wait(30)
        with self._lock:
            self.inside -= 1


@pytest.fixture
def gate():
    """Return a gate that is finally opened."""
    gate = Gate()
    yield gate
    gate.go.set()


def outcomes(joblog, jid):
    return [f.outcome for f in joblog.get(jid).failures]


# What becomes of a job that finds its section taken


@pytest.mark.parametrize("exclusive", ["finance:{user_id}", Exclusive("finance:{user_id}")])
def test_skip(joblog, broker, worker, gate, exclusive):
    """By default, a job that finds its section held is skipped, and its row names the holder."""

    @dramatiq.actor(exclusive=exclusive)
    def work(user_id):
        gate.stay(user_id)

    with worker(broker):
        first = work.send(7)
        assert gate.entered.wait(10)
        second, other = work.send(7), work.send(8)
        while joblog.get(second.message_id).state != "skipped":
            pass
        gate.go.set()
        broker.join("default")

    assert ["finished", "finished"] == [joblog.get(m.message_id).state for m in (first, other)]
    skipped = joblog.get(second.message_id)
    assert f"section 'finance:7' is held by {first.message_id} since" in skipped.skip_reason
    assert (None, "finance:7", []) == (
        skipped.started_at,
        skipped.section,
        list(skipped.failures),
    )
    assert [7, 8] == sorted(gate.order)
    assert [] == list(joblog.locks)


def test_fail(joblog, broker, worker, gate):
    """With ``fail``, it is dead, and its message is a dead letter."""

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="fail"))
    def work():
        gate.stay(1)

    with worker(broker):
        work.send()
        assert gate.entered.wait(10)
        second = work.send()
        while joblog.get(second.message_id).state != "dead":
            pass
        gate.go.set()
        broker.join("default")

    dead = joblog.get(second.message_id)
    assert ("conflict", "LockNotAcquired") == (dead.dead_reason, dead.error_type)
    assert [second.message_id] == [m.message_id for m in broker.dead_letters]


@pytest.mark.parametrize("position", ["first", "last", "before_retries"])
def test_retry(joblog, make_broker, worker, gate, eventually, caplog, position):
    """With ``retry``, it fails like any other, and its retry runs when the section is free."""
    broker = make_broker("stub", position, joblog=joblog)

    @dramatiq.actor(
        exclusive=Exclusive("key", on_conflict="retry"),
        max_retries=50,
        min_backoff=50,
        max_backoff=100,
    )
    def work():
        gate.stay(1)

    with worker(broker):
        first = work.send()
        assert gate.entered.wait(10)
        second = work.send()
        eventually(lambda: joblog.get(second.message_id).state == "retrying")
        gate.go.set()
        broker.join("default")

    job = joblog.get(second.message_id)
    assert ("finished", True) == (job.state, job.attempt > 1)
    assert {"retried"} == set(outcomes(joblog, second.message_id))
    assert "SectionTakenError" == job.failures[0].error_type
    assert first.message_id in job.failures[0].error_message
    assert 1 == gate.most
    # As for the host's own RateLimitExceeded: nothing is wrong.
    assert "unhandled exception" not in caplog.text


def test_wait(joblog, broker, worker, gate, eventually):
    """With ``wait``, it runs when the section is free, without using a thread or a retry."""

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait"), max_retries=0)
    def work(n):
        gate.stay(n)

    @dramatiq.actor
    def other():
        pass

    with worker(broker, worker_threads=2):
        first = work.send(1)
        assert gate.entered.wait(10)
        waiting = work.send(2)
        eventually(lambda: joblog.get(waiting.message_id).state == "waiting")
        assert joblog.get(waiting.message_id).eta is not None
        free = other.send()
        eventually(lambda: joblog.get(free.message_id).state == "finished")
        gate.go.set()
        broker.join("default")

    job = joblog.get(waiting.message_id)
    assert ("finished", 1, None) == (job.state, job.attempt, job.waiting_since)
    [waited] = job.failures
    assert ("waited", True) == (waited.outcome, waited.duration > 0)
    assert [1, 2] == gate.order == gate.fences
    assert 1 == gate.most
    assert "finished" == joblog.get(first.message_id).state


def test_the_oldest_first(joblog, broker, worker, gate, eventually):
    """Of many waiters, the one that has waited longest is next."""

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait"))
    def work(n):
        gate.stay(n)

    with worker(broker, worker_threads=4):
        work.send(0)
        assert gate.entered.wait(10)
        for n in range(1, 6):
            message = work.send(n)
            eventually(lambda jid=message.message_id: joblog.get(jid).state == "waiting")
        gate.go.set()
        broker.join("default", timeout=60_000)

    assert list(range(6)) == gate.order
    assert 1 == gate.most


def test_a_waiter_that_never_comes_back(joblog, broker, worker, job_factory, eventually):
    """A waiter that has missed its turn does not block those behind it."""
    job_factory(jid="gone", state="waiting", section="key", waiting_since=1, eta=1)

    work = dramatiq.actor(
        lambda: None, actor_name="work", exclusive=Exclusive("key", on_conflict="wait")
    )
    with worker(broker):
        message = work.send()
        broker.join("default")

    assert ("finished", []) == (
        joblog.get(message.message_id).state,
        outcomes(joblog, message.message_id),
    )


@pytest.mark.parametrize(
    ("on_timeout", "state", "reason"),
    [("dead", "dead", "wait_timeout"), ("skip", "skipped", None), ("retry", "retrying", None)],
)
def test_waited_too_long(joblog, broker, worker, gate, eventually, on_timeout, state, reason):
    """After ``wait_for``, the policy of ``on_timeout`` applies, and the row says so."""

    @dramatiq.actor(
        exclusive=Exclusive("key", on_conflict="wait", wait_for=300, on_timeout=on_timeout),
        min_backoff=60_000,
    )
    def work():
        gate.stay(1)

    with worker(broker):
        work.send()
        assert gate.entered.wait(10)
        second = work.send()
        eventually(lambda: joblog.get(second.message_id).state == state)
        gate.go.set()

    job = joblog.get(second.message_id)
    assert reason == job.dead_reason
    if on_timeout != "retry":
        assert "section 'key' is held by" in (job.skip_reason or job.error_message)
        assert ["waited"] == outcomes(joblog, second.message_id)


def test_a_limit(joblog, broker, worker, gate, eventually):
    """As many as the limit run at once."""

    @dramatiq.actor(exclusive=Exclusive("key", limit=2, on_conflict="wait"))
    def work(n):
        gate.stay(n)

    with worker(broker, worker_threads=4):
        messages = [work.send(n) for n in range(4)]
        states = [joblog.jobs.started(), joblog.jobs.waiting()]
        eventually(lambda: [gate.inside, *(query.count() for query in states)] == [2, 2, 2])
        gate.go.set()
        broker.join("default", timeout=30_000)

    assert 2 == gate.most
    assert {"finished"} == {joblog.get(m.message_id).state for m in messages}
    assert [1, 2, 3, 4] == sorted(gate.fences)


# What a job holds, and until when


def test_a_retry_keeps_its_section(joblog, broker, worker, eventually):
    """A job to be retried keeps its section, enters it again, and then releases it."""
    order = []

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait"), max_retries=2, min_backoff=400)
    def work(name, fails):
        order.append((name, current_job().attempt, current_job().fence))
        if current_job().attempt <= fails:
            raise ValueError

    with worker(broker):
        first = work.send("a", 1)
        eventually(lambda: joblog.get(first.message_id).state == "retrying")
        work.send("b", 0)
        broker.join("default", timeout=30_000)

    assert [("a", 1, 1), ("a", 2, 2), ("b", 1, 3)] == order


@pytest.mark.parametrize("end", ["dead", "skipped", "refused"])
def test_every_end_frees(joblog, make_broker, worker, end):
    """A section is released once its job has ended, in any way."""

    class Refuses(dramatiq.Middleware):
        def before_process_message(self, broker, message):
            if message.args[0] == "refused":
                raise MiddlewareError("no permit")

    stack = [*(m() for m in default_middleware), Refuses()]
    broker = make_broker("stub", "first", joblog=joblog, middleware=stack)

    @dramatiq.actor(exclusive="key", max_retries=0)
    def work(how):
        if how == "dead":
            raise ValueError
        if how == "skipped":
            raise dramatiq.middleware.SkipMessage

    with worker(broker):
        work.send(end)
        broker.join("default", fail_fast=False)
        assert [] == list(joblog.locks)
        last = work.send("works")
        broker.join("default", fail_fast=False)

    assert "finished" == joblog.get(last.message_id).state


@pytest.mark.parametrize("policy", ["wait", "skip", "fail"])
@pytest.mark.parametrize("attempt", [1, 2])
def test_a_lost_run_whose_section_is_taken(joblog, job_factory, policy, attempt):
    """An interrupted run is recorded, and its job waits if its section is held on redelivery."""
    section = {"key": "key", "limit": 1, "on_conflict": policy, "wait_for": None}
    section |= {"on_timeout": "dead", "ttl": 60_000}
    job_factory(jid="j", state="lost", token="a", worker="w", section="key", finished_at=None)
    held = {
        "kind": "section",
        "slot": 0,
        "fence": 1,
        "ttl": 60_000,
        "acquired_at": 0,
        "expires_at": 9 * 10**12,
    }
    joblog.Lock.create(**held, key="key", owner="other", token="o")
    joblog.release()
    row = {"jid": "j", "actor": "work", "queue": "default", "state": "started", "token": "b"}
    row |= {"attempt": attempt, "started_at": 0, "created_at": 0, "updated_at": 0, "process": None}
    row |= {"worker": "w", "section": "key"}
    joblog.core.writer.write(Started(row, section=section))

    job = joblog.get("j")
    assert "waiting" == job.state
    assert [("a", "interrupted")] == [(f.token, f.outcome) for f in job.failures]
    assert 1 == job.interruptions


def test_two_copies_of_one_message(joblog, broker, worker, gate, eventually):
    """A copy of a message whose job is running runs only when that has ended."""

    @dramatiq.actor(exclusive="key")
    def work():
        gate.stay(1)

    with worker(broker):
        message = work.send()
        assert gate.entered.wait(10)
        broker.enqueue(message)
        eventually(broker.queues["default"].empty)
        row = joblog.get(message.message_id)
        assert ("started", []) == (row.state, list(row.failures))
        gate.go.set()
        eventually(lambda: joblog.get(message.message_id).state == "finished")
        broker.join("default", timeout=30_000)

    assert [1, 1] == gate.order


def test_what_a_waiting_message_carries(joblog, make_broker, worker, gate, eventually):
    """Arguments, options and pipelines of a waiting message are unchanged."""
    stack = [*(m() for m in default_middleware), Results(backend=StubBackend())]
    broker = make_broker("stub", "last", joblog=joblog, middleware=stack)
    seen = []

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait"), store_results=True)
    def work(a, *, b):
        gate.stay(a)
        return a + b

    @dramatiq.actor(store_results=True)
    def double(n):
        seen.append(n)
        return 2 * n

    with worker(broker):
        work.send(0, b=0)
        assert gate.entered.wait(10)
        pipe = work.message_with_options(args=(1,), kwargs={"b": 2}, custom="x") | double.message()
        pipe.run()
        eventually(lambda: joblog.jobs.waiting().exists())
        gate.go.set()
        assert 6 == pipe.get_result(block=True, timeout=20_000)

    assert [3] == seen
    waited = joblog.jobs.of_actor("work").get()
    assert ([1], {"b": 2}) == (waited.args, waited.kwargs)


# The key


@pytest.mark.parametrize("holds", ["first", "second"])
def test_two_logs_on_one_broker(joblog, make_broker, worker, eventually, tmp_path, holds):
    """A job that waits for its key in one of two logs has ended in neither, and runs later."""
    other = JobLog(f"sqlite:///{tmp_path / 'other.db'}")
    other.create_tables()
    broker = make_broker("stub", "last", joblog=joblog)
    broker.add_middleware(JobLogMiddleware(other))
    runs = []
    work = dramatiq.actor(
        lambda: runs.append(1), actor_name="work", exclusive=Exclusive("key", on_conflict="wait")
    )
    keeper = joblog if holds == "first" else other
    with worker(broker):
        with keeper.lock("key"):
            message = work.send()
            eventually(lambda: keeper.get(message.message_id).state == "waiting")
            if holds == "second":
                eventually(lambda: joblog.get(message.message_id).state == "waiting")
        for log in (joblog, other):
            eventually(lambda log=log: log.get(message.message_id).state == "finished")
            assert 0 == log.locks.count()
    other.close()
    assert [1] == runs


def test_a_message_of_its_own(joblog, broker, worker, gate, eventually):
    """A message's section overrides its actor's, and False means none."""

    @dramatiq.actor(exclusive="actor")
    def work(n):
        gate.stay(n)

    with worker(broker, worker_threads=8):
        work.send(1)
        work.send_with_options(args=(2,), exclusive="message {n}")
        work.send_with_options(args=(3,), exclusive=Exclusive("message 3", ttl=5_000))
        work.send_with_options(args=(4,), exclusive=False)
        eventually(lambda: gate.inside == 4)
        assert ["actor", "message 2", "message 3"] == sorted(row.key for row in joblog.locks)
        gate.go.set()
        broker.join("default")


def test_the_key_is_made_once(joblog, broker, worker):
    """The key is made when a message is first sent, and kept through its retries."""
    keys = iter("abc")

    @dramatiq.actor(exclusive=Exclusive(lambda: next(keys)), max_retries=2, min_backoff=1)
    def work():
        if current_job().attempt < 3:
            raise ValueError

    with worker(broker):
        message = work.send()
        broker.join("default")

    job = joblog.get(message.message_id)
    assert ("finished", "a", "b") == (job.state, job.section, next(keys))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"exclusive": "finance:{user}"}, "'user' is not one of its parameters (user_id)"),
        ({"unique": "finance:{user}"}, "'user' is not one of its parameters (user_id)"),
        ({"exclusive": 7}, "exclusive=7: a key or Exclusive(...) is needed"),
        ({"unique": 7}, "unique=7: a key or Unique(...) is needed"),
        ({"exclusive": "x", "log_job": False}, "has exclusive, which needs log_job"),
    ],
)
def test_an_actor_that_cannot_work(broker, options, text):
    """A key that names no parameter, or is no key, is refused when the actor is declared."""
    with pytest.raises(ConfigurationError) as refused:
        dramatiq.actor(lambda user_id: None, actor_name="work", **options)
    assert "actor 'work'" in str(refused.value)
    assert text in str(refused.value)


def test_a_key_that_cannot_be_made(broker):
    """A message whose key cannot be made is not sent."""
    work = dramatiq.actor(lambda user: None, actor_name="work", exclusive=Exclusive("{user[id]}"))
    with pytest.raises(ConfigurationError, match="its key could not be made"):
        work.send({})
    assert broker.queues["default"].empty()


def test_without_a_database_it_does_not_run(tmp_path, make_broker, worker, eventually):
    """While the database is unavailable, a job with a section does not run; later it does."""
    folder = tmp_path / "log"
    joblog = JobLog(f"sqlite:///{folder}/jobs.db", spool=tmp_path / "spool")
    broker = make_broker("stub", "last", joblog=joblog)
    runs = []
    section = dramatiq.actor(lambda: runs.append("section"), actor_name="section", exclusive="key")
    plain = dramatiq.actor(lambda: runs.append("plain"), actor_name="plain")
    with worker(broker):
        section.send()
        plain.send()
        eventually(lambda: runs == ["plain"])
        folder.mkdir()
        joblog.create_tables()
        broker.join("default", timeout=60_000)

    assert ["plain", "section"] == runs
    assert 2 == joblog.jobs.finished().count()
    joblog.close()


def test_a_lease_that_is_over_before_the_body_begins(joblog, make_broker, worker, eventually):
    """A run whose grant arrives after its lease expired does not begin; it is requeued."""
    broker = make_broker("stub", "last", joblog=joblog)
    inside, order, leave = [], [], threading.Event()
    write = joblog.core.writer.write

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="wait", ttl=200))
    def section(name):
        assert [] == inside
        inside.append(name)
        if name == "second":
            leave.wait(30)
        order.append(inside.pop())

    def late(event):
        answer = write(event)
        if event.row["jid"] == first.message_id and answer.lease is not None and not order:
            # As when the writer is held up right after its commit, and renews nothing.
            joblog.core.locks.leases.forget(event.row["token"])
            eventually(lambda: answer.lease.lost)
            section.send("second")
            eventually(lambda: inside == ["second"])
            joblog.core.writer.write = write
        return answer

    joblog.core.writer.write = late
    with worker(broker):
        first = section.message("first")
        broker.enqueue(first)
        eventually(lambda: inside == ["second"])
        eventually(lambda: joblog.get(first.message_id).state in ("delayed", "waiting"))
        leave.set()
        eventually(lambda: order == ["second", "first"])
        eventually(lambda: joblog.jobs.finished().count() == 2)

    assert (1, []) == (
        joblog.get(first.message_id).attempt,
        list(joblog.get(first.message_id).failures),
    )


@pytest.mark.parametrize("policy", ["skip", "wait", "retry", "fail"])
def test_whatever_fails_it_does_not_run_unguarded(
    joblog, broker, worker, eventually, monkeypatch, caplog, policy
):
    """An error in the log itself never lets a job run without its section; it is requeued."""
    monkeypatch.setattr(refusals, "AWAY_DELAY", 50)
    runs, asked = [], []

    def broken(keys):
        asked.append(keys)
        raise ZeroDivisionError("a fault of ours")

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict=policy), max_retries=0)
    def work():
        runs.append(current_job().fence)

    with worker(broker):
        with monkeypatch.context() as patch:
            # The second is asked where a start is one statement.
            for name in ("disputed", "undisputed"):
                patch.setattr(joblog.core.locks.waiters, name, broken)
            message = work.send()
            eventually(lambda: len(asked) > 4)
            assert [] == runs
        broker.join("default", timeout=30_000)

    assert [1] == runs
    assert "finished" == joblog.get(message.message_id).state


def test_a_start_whose_answer_did_not_arrive(joblog):
    """A start that is written again keeps its section; one that lost it does not run."""
    section = asdict(Exclusive("key", ttl=60_000))
    instants = dict.fromkeys(("enqueued_at", "started_at", "created_at", "updated_at"), 1)
    row = {"jid": "job", "actor": "work", "queue": "default", "state": "started", "attempt": 1}
    row |= instants | {"token": "run", "process": None, "worker": "here"}
    start = Started(row, section=section)
    first, again = (joblog.core.writer.write(start) for _ in range(2))
    assert first.granted
    assert again.granted
    assert first.lease.fence == again.lease.fence == 1

    joblog.Lock.update(token="another", owner="another").execute()
    late = joblog.core.writer.write(start)
    assert not late.granted
    assert late.delay is not None


@pytest.mark.parametrize("count", [1, 3])
def test_statements_of_sections(joblog, asked, count):
    """Jobs that begin or end in separate sections share the same few statements."""
    if isinstance(joblog.database, peewee.MySQLDatabase):
        pytest.skip("MySQL takes each key in steps")
    joblog.database.connect(reuse_if_open=True)
    begins, ends, now = [], [], time.time_ns() // 1_000_000
    for n in range(count):
        section = asdict(Exclusive(f"key {n}"))
        row = {"jid": f"job {n}", "actor": "work", "queue": "default", "attempt": 1}
        row |= dict.fromkeys(("enqueued_at", "started_at", "created_at", "updated_at"), now)
        row |= {"token": f"run {n}", "process": None, "worker": "here"}
        begins.append(Started(row | {"state": "started"}, section=section))
        ended = row | {"state": "finished", "finished_at": now}
        ends.append(Ended(ended, section=section))

    def statements(events):
        with asked() as texts:
            answers = joblog.core.sections.write(events)
        assert all(answer.granted for answer in answers.values())
        return [text.lstrip("(").split()[0] for text in texts]

    joined = isinstance(joblog.database, peewee.PostgresqlDatabase)
    in_steps = ["SELECT", "SELECT", "INSERT", "INSERT"]
    assert (["WITH"] if joined else in_steps) == statements(begins)
    assert (["WITH"] if joined else ["INSERT", "UPDATE"]) == statements(ends)
    assert [None] * count == [lock.owner for lock in joblog.Lock.select()]


def test_ends_of_one_batch(joblog):
    """Of runs that end together, each releases its own section; an outdated run releases none."""
    now = time.time_ns() // 1_000_000

    def event(kind, state, jid, token, **more):
        row = {"jid": jid, "actor": "work", "queue": "default", "attempt": 1, "state": state}
        row |= dict.fromkeys(("enqueued_at", "started_at", "created_at", "updated_at"), now)
        row |= {"token": token, "process": None, "worker": "here"}
        section = asdict(Exclusive(f"key of {jid}"))
        return kind(row | more, section=section)

    def end(jid, token, state, **more):
        return event(Ended, state, jid, token, finished_at=now, **more)

    jids = ["ends", "dies", "retries", "other", "stale"]
    for jid in jids:
        assert joblog.core.writer.write(event(Started, "started", jid, f"run of {jid}")).granted
    joblog.Job.update(token="a later run").where(joblog.Job.jid == "stale").execute()
    ends = [
        end("ends", "run of ends", "finished"),
        end("dies", "run of dies", "dead"),
        end("retries", "run of retries", "retrying", eta=now),
        end("other", "of before", "finished"),
        end("stale", "run of stale", "finished"),
    ]
    # First without what needs several statements on any database.
    joblog.core.sections.write([ends[0], *ends[3:]])
    joblog.core.sections.write(ends)

    owners = {lock.key: (lock.owner, lock.token) for lock in joblog.Lock.select()}
    held = [owners[f"key of {jid}"] for jid in jids]
    free = (None, None)
    kept = [("retries", None), ("other", "run of other"), ("stale", "run of stale")]
    assert [free, free, *kept] == held


def test_waiting_anew_after_a_retry(joblog, broker, worker, gate, eventually):
    """A job whose wait timed out with the policy retry has the full waiting time next time."""

    @dramatiq.actor(
        exclusive=Exclusive("key", on_conflict="wait", wait_for=200, on_timeout="retry"),
        max_retries=20,
        min_backoff=10,
        max_backoff=20,
    )
    def work():
        gate.stay(1)

    with worker(broker):
        work.send()
        assert gate.entered.wait(10)
        second = work.send()
        eventually(lambda: outcomes(joblog, second.message_id).count("waited") >= 2)
        gate.go.set()
        broker.join("default", timeout=30_000)

    waits = [f for f in joblog.get(second.message_id).failures if f.outcome == "waited"]
    assert waits[1].started_at >= waits[0].finished_at
    assert "finished" == joblog.get(second.message_id).state


# Uniqueness


def test_a_duplicate(joblog, broker, worker):
    """A second message with the key of an unfinished job is not sent; the error names the job."""
    work = dramatiq.actor(lambda n: None, actor_name="work", unique="import:{n}")
    first = work.send(1)
    other = work.send(2)
    with pytest.raises(DuplicateJob, match="'import:1' is held by job") as duplicate:
        work.send(1)
    assert first.message_id == duplicate.value.jid
    assert 2 == broker.queues["default"].qsize()
    with worker(broker):
        broker.join("default")
    again = work.send(1)

    assert 3 == len({first.message_id, other.message_id, again.message_id})
    assert joblog.jobs.count() == 3


def test_the_quiet_way(joblog, broker):
    """``enqueue_once`` returns the existing message."""
    work = dramatiq.actor(lambda: None, actor_name="work", unique="key")
    first = enqueue_once(broker, work.message())
    second = enqueue_once(broker, work.message())

    assert first.message_id == second.message_id
    assert 1 == broker.queues["default"].qsize()


@pytest.mark.parametrize(("until", "duplicate"), [("started", False), ("finished", True)])
def test_until(joblog, broker, worker, gate, until, duplicate):
    """A key is unique until its job has started, or until it has finished."""

    @dramatiq.actor(unique=Unique("key", until=until))
    def work():
        gate.stay(1)

    def is_duplicate():
        try:
            work.send()
        except DuplicateJob:
            return True
        return False

    with worker(broker):
        work.send()
        assert gate.entered.wait(10)
        assert duplicate == is_duplicate()
        gate.go.set()
        broker.join("default")
    assert not is_duplicate()


def test_for_a_time(joblog, broker, worker, eventually):
    """A key unique for a time stays so after its job has finished, but no longer."""
    work = dramatiq.actor(
        lambda: None, actor_name="work", unique=Unique("key", until=None, ttl=1_500)
    )
    with worker(broker):
        work.send()
        broker.join("default")
        with pytest.raises(DuplicateJob):
            work.send()

        def sent():
            try:
                return work.send()
            except DuplicateJob:
                return None

        again = eventually(sent)
        broker.join("default")
    assert "finished" == joblog.get(again.message_id).state


def test_a_retry_is_no_duplicate(joblog, broker, worker):
    """A job that is retried, delayed or redelivered does not conflict with itself."""

    @dramatiq.actor(unique="key", max_retries=2, min_backoff=10)
    def work():
        if current_job().attempt < 3:
            raise ValueError

    with worker(broker):
        message = work.send_with_options(delay=50)
        broker.join("default")
        broker.enqueue(message)
        broker.join("default")

    assert ("finished", 3) == (
        joblog.get(message.message_id).state,
        joblog.get(message.message_id).attempt,
    )
    assert not broker.dead_letters


def test_every_end_frees_the_key(joblog, broker, worker):
    """A key is free when its job is dead or skipped, too."""

    @dramatiq.actor(unique="key", max_retries=0)
    def work(how):
        if how == "dead":
            raise ValueError
        raise dramatiq.middleware.SkipMessage

    with worker(broker):
        for how in ("dead", "skipped", "dead"):
            work.send(how)
            broker.join("default")

    assert 3 == joblog.jobs.count()


def test_no_retries_middleware_and_a_conflict(joblog, make_broker, worker, gate, eventually):
    """Without ``Retries`` a job whose policy is to retry is dead when its section is taken."""
    stack = [m() for m in default_middleware if m is not Retries]
    broker = make_broker("stub", "last", joblog=joblog, middleware=stack)

    @dramatiq.actor(exclusive=Exclusive("key", on_conflict="retry"))
    def work():
        gate.stay(1)

    with worker(broker):
        work.send()
        assert gate.entered.wait(10)
        second = work.send()
        eventually(lambda: joblog.get(second.message_id).state == "dead")
        gate.go.set()
        broker.join("default", fail_fast=False)

    assert 1 == gate.most


def test_a_send_that_fails(joblog):
    """A key is free again when its message could not be sent."""
    broker = RedisBroker(url=f"redis://127.0.0.1:{servers.free_port()}")
    broker.add_middleware(JobLogMiddleware(joblog))
    work = dramatiq.actor(lambda: None, actor_name="work", unique="key", broker=broker)
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            work.send()
    assert 0 == joblog.Lock.select().count()
    broker.close()


@pytest.mark.parametrize("position", ["first", "last"])
def test_a_duplicate_in_a_pipeline(joblog, make_broker, worker, eventually, position):
    """A duplicate in a pipeline is skipped with a reason; the job before it finishes."""
    broker = make_broker("stub", position, joblog=joblog)
    runs = []
    first = dramatiq.actor(lambda n: n, actor_name="first")

    @dramatiq.actor(unique="key")
    def second(number):
        runs.append(number)

    there = second.message_with_options(args=(0,), delay=60_000)
    broker.enqueue(there, delay=60_000)
    pipe = first.message(1) | second.message()
    with worker(broker):
        pipe.run()
        eventually(joblog.jobs.skipped().exists)
        eventually(joblog.jobs.of_actor("first").finished().exists)

    assert [] == runs
    skipped = joblog.jobs.of_actor("second").skipped().get()
    assert f"the key 'key' is held by job {there.message_id}" in skipped.skip_reason


def test_a_unique_send_without_a_database(tmp_path, make_broker):
    """A message that may be a duplicate is not sent, and the sender gets an error."""
    joblog = JobLog(f"sqlite:///{tmp_path}/missing/jobs.db")
    broker = make_broker("stub", "last", joblog=joblog)
    work = dramatiq.actor(lambda: None, actor_name="work", unique="key")
    with pytest.raises(JobLogError, match="key 'key' may not be unique"):
        work.send()
    assert broker.queues["default"].empty()
    joblog.close()


def test_a_delay_counts(joblog, broker, worker, eventually):
    """A delayed message is unique from its send until it starts."""
    work = dramatiq.actor(lambda: None, actor_name="work", unique=Unique("key", until="started"))
    with worker(broker):
        message = work.send_with_options(delay=2_000)
        with pytest.raises(DuplicateJob):
            work.send_with_options(delay=2_000)
        eventually(lambda: joblog.get(message.message_id).state == "finished")
        work.send()
        broker.join("default")


def test_for_a_time_from_its_send_on(joblog, broker, worker):
    """The time of a key unique for a time does not restart when its message moves."""
    work = dramatiq.actor(
        lambda: None, actor_name="work", unique=Unique("key", until=None, ttl=60_000)
    )
    message = work.send_with_options(delay=100)
    expires = joblog.Lock.get(joblog.Lock.kind == "unique").expires_at
    with worker(broker):
        broker.join("default")
    assert "finished" == joblog.get(message.message_id).state
    assert expires == joblog.Lock.get(joblog.Lock.kind == "unique").expires_at
