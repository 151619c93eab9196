"""Running jobs again."""

from __future__ import annotations

import threading

import brokers
import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.encoder import PickleEncoder
from dramatiq.message import get_encoder, set_encoder
from dramatiq.middleware import GroupCallbacks, Middleware, Retries, default_middleware
from dramatiq.rate_limits.backends import StubBackend

from dramatiq_joblog import (
    Exclusive,
    JobLog,
    JobLogMiddleware,
    JobNotFound,
    RequeueError,
    current_job,
)

#: What differs between databases is tried on each; the rest, that is ours alone, on one.
on_each_database = pytest.mark.parametrize(
    "database_url", ["sqlite", "postgres", "mysql"], indirect=True
)


@pytest.fixture
def database_url(request, database_of):
    """Return the URL of an empty database: SQLite, unless a test requests others."""
    return database_of(getattr(request, "param", "sqlite"))


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    return make_broker("stub", "last", joblog=joblog)


@pytest.fixture
def run(broker, worker):
    """Return a function that runs all messages sent."""

    def until_done():
        with worker(broker):
            for queue in broker.get_declared_queues():
                broker.join(queue, fail_fast=False)

    return until_done


@pytest.fixture
def broken():
    """Return an event: while it is not set, jobs of `work` fail."""
    return threading.Event()


@pytest.fixture
def work(broker, broken):
    """Return an actor that fails until the event is set, and the arguments of its runs."""
    seen = []

    @dramatiq.actor(max_retries=0, queue_name="mail")
    def work(*args, **kwargs):
        if not broken.is_set():
            raise ValueError("it is broken")
        seen.append((args, kwargs))

    work.seen = seen
    return work


@on_each_database
def test_a_dead_job_runs_again(joblog, work, run, broken):
    """It runs under a new jid with the same queue, arguments and options, linked both ways."""
    old = work.send_with_options(
        args=(1, "two"), kwargs={"three": [3]}, job_type="import", job_user=7, max_age=60_000
    )
    run()
    broken.set()

    new = joblog.requeue(old.message_id, who="ada")
    run()

    assert new.message_id != old.message_id
    assert [((1, "two"), {"three": [3]})] == work.seen
    before, after = joblog.get(old.message_id), joblog.get(new.message_id)
    assert ("dead", new.message_id) == (before.state, before.replayed_by)
    assert ("finished", old.message_id) == (after.state, after.replay_of)
    assert ("mail", "import", 7, 1) == (after.queue, after.job_type, after.user_id, after.attempt)
    assert before.options == after.options
    assert 60_000 == new.options["max_age"]
    [action] = list(joblog.Action.select())
    assert ("requeue", "ada", old.message_id) == (action.what, action.who, action.jid)
    assert new.message_id in action.detail


def test_it_is_enqueued_before_anything_is_marked(joblog, broker, work, run, monkeypatch):
    """A broker that fails leaves the old job as it was."""
    old = work.send()
    run()

    def fail(*_args, **_kwargs):
        raise ConnectionError("no broker")

    monkeypatch.setattr(broker, "enqueue", fail)
    with pytest.raises(ConnectionError):
        joblog.requeue(old.message_id)

    assert joblog.get(old.message_id).replayed_by is None
    assert not joblog.Action.select().exists()


def test_a_retried_job_runs_again_from_its_first_attempt(joblog, broker, run):
    """Options that Dramatiq added to the old message are not copied."""

    @dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=1)
    def work():
        raise ValueError(current_job().attempt)

    old = work.send_with_options(delay=1)
    run()
    new = joblog.requeue(old.message_id)

    assert {"joblog_delivery", "joblog_replay_of"} == {*new.options}
    assert old.message_id == new.options["joblog_replay_of"]
    run()
    assert ("dead", 2) == (joblog.get(new.message_id).state, joblog.get(new.message_id).attempt)
    assert [1, 2] == [run.attempt for run in joblog.get(new.message_id).failures]


@pytest.mark.parametrize("state", ["enqueued", "delayed", "waiting", "started", "retrying", "lost"])
def test_a_job_that_has_not_ended_is_refused(joblog, work, job_factory, state):
    """It is running, or will run; a job that is not running may be cancelled first."""
    job = job_factory(actor="work", state=state, args=[], kwargs={})

    refused = f"{job.jid} cannot be run again: it is {state}; only"
    with pytest.raises(RequeueError, match=refused) as caught:
        joblog.requeue(job.jid)
    assert ("cancel it first" in caught.value.reason) == (state != "started")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"actor": "gone"}, "no actor 'gone' is declared"),
        ({"args": None}, "its arguments could not be stored"),
        ({"withheld": "they are secret"}, "they are secret"),
        ({"withheld": "they are secret", "sealed": "x"}, "give JobLog the seal_key"),
    ],
)
def test_what_cannot_run_as_it_was_is_refused(joblog, work, job_factory, row, text):
    """The error has the reason, and nothing is sent."""
    job = job_factory(**{"args": [], "kwargs": {}} | row)

    with pytest.raises(RequeueError, match=text):
        joblog.requeue(job.jid)

    assert 1 == joblog.jobs.count()


def test_an_unknown_job_is_refused(joblog, work):
    """An unknown jid cannot be run again."""
    with pytest.raises(JobNotFound):
        joblog.requeue("nobody")


def test_a_process_without_a_broker(joblog, job_factory):
    """Without a middleware, the error says what is missing."""
    job = job_factory(args=[], kwargs={})

    with pytest.raises(RequeueError, match="no broker with a JobLogMiddleware of this log"):
        joblog.requeue(job.jid)
    with pytest.raises(
        RequeueError, match=r"^the jobs cannot be run again: .* no broker"
    ) as caught:
        joblog.requeue_all(joblog.jobs)
    assert "" == caught.value.jid


def test_a_broker_of_another_log(joblog, work, job_factory):
    """A broker without this log's middleware is refused."""
    job = job_factory(args=[], kwargs={})

    with pytest.raises(RequeueError, match="has no JobLogMiddleware of this log"):
        joblog.requeue(job.jid, broker=StubBroker())


def test_a_middleware_that_came_late(joblog, global_broker, job_factory):
    """If no actor was declared after the log's middleware was added, the global broker is used."""
    dramatiq.actor(lambda: None, actor_name="work")
    global_broker.add_middleware(JobLogMiddleware(joblog))
    job = job_factory(args=[], kwargs={})

    message = joblog.requeue(job.jid)

    assert job.jid == joblog.get(message.message_id).replay_of


def test_inside_a_transaction(joblog, work, job_factory):
    """Jobs cannot be requeued inside a transaction, which might be rolled back."""
    job = job_factory(args=[], kwargs={})

    with joblog.database.atomic(), pytest.raises(RequeueError, match="inside a transaction"):
        joblog.requeue(job.jid)


def test_arguments_that_are_too_long(joblog, work, run):
    """They were left out, so the job cannot run as it was."""
    old = work.send("x" * 100_000)
    run()

    with pytest.raises(RequeueError, match="arguments of 100004 characters are longer than 64000"):
        joblog.requeue(old.message_id)


def test_no_arguments_are_kept(database_url, make_broker, worker):
    """For a log without stored arguments, the error says so."""
    log = JobLog(database_url, store_args=False)
    log.create_tables()
    broker = make_broker("stub", "last", joblog=log)
    work = dramatiq.actor(lambda x: None, actor_name="work")
    message = work.send(1)
    with worker(broker):
        broker.join("default")

    with pytest.raises(RequeueError, match="keeps no arguments"):
        log.requeue(message.message_id)
    log.close()


@pytest.fixture
def pickled():
    """Set Dramatiq's encoder to pickle."""
    before = get_encoder()
    set_encoder(PickleEncoder())
    yield
    set_encoder(before)


@pytest.mark.parametrize("argument", [{7}, (1, 2), {1: 2}])
def test_arguments_that_json_would_change(joblog, pickled, work, run, argument):
    """Arguments that JSON does not support, unlike the encoder, are refused with the cure."""
    old = work.send([argument])
    run()

    with pytest.raises(RequeueError, match=r"JSON.*seal_key"):
        joblog.requeue(old.message_id)


@on_each_database
def test_sealed_arguments(database_url, pickled, make_broker, worker):
    """With a key, they are stored encrypted, and run again unchanged, even after a key rotation."""
    from cryptography.fernet import Fernet

    first, second = Fernet.generate_key(), Fernet.generate_key().decode()
    seen = []

    def declare(log):
        broker = make_broker("stub", "last", joblog=log)

        @dramatiq.actor
        def work(argument, *, key):
            seen.append((argument, key))

        return broker, work

    log = JobLog(database_url, seal_key=first)
    log.create_tables()
    broker, work = declare(log)
    old = work.send({7}, key=(1, 2))
    with worker(broker):
        broker.join("default")
    assert "{7}" not in log.get(old.message_id).sealed
    log.close()

    log = JobLog(database_url, seal_key=[second, first])
    broker, work = declare(log)
    new = log.requeue(old.message_id)
    with worker(broker):
        broker.join("default")
    assert [({7}, (1, 2))] * 2 == seen
    assert log.get(new.message_id).sealed is not None
    log.close()

    log = JobLog(database_url, seal_key=second)
    declare(log)
    with pytest.raises(RequeueError, match="no key in seal_key opens them"):
        log.requeue(old.message_id)
    log.requeue(new.message_id)
    log.close()


@on_each_database
def test_many_run_again(joblog, work, run, broken):
    """All matching jobs run again once, oldest first; refused ones are reported by jid."""
    messages = []
    for number in range(4):
        messages.append(work.send(number))
        joblog.core.writer.flush()
    long = work.send("x" * 100_000)
    running = joblog.Job.create(
        jid="r", actor="work", queue="mail", state="started", attempt=1, created_at=0, updated_at=0
    )
    run()
    broken.set()
    told = []

    result = joblog.requeue_all(joblog.jobs.of_actor("work"), limit=3, who="ada")
    again = joblog.requeue_all(
        joblog.jobs.of_actor("work"), progress=lambda done, total: told.append((done, total))
    )
    run()

    assert [m.message_id for m in messages[:3]] == [
        joblog.get(m.message_id).replay_of for m in result.sent
    ]
    assert {} == result.refused
    assert [messages[3].message_id] == [joblog.get(m.message_id).replay_of for m in again.sent]
    assert [long.message_id] == list(again.refused)
    assert "longer than" in again.refused[long.message_id]
    assert [(1, 2), (2, 2)] == told
    assert [0, 1, 2, 3] == sorted(args[0] for args, _ in work.seen)
    assert "started" == joblog.get(running.jid).state
    assert 4 == joblog.Action.select().count()


def test_a_section_of_the_message(joblog, broker, run):
    """A section and a unique key of the message itself also apply to its new run."""
    work = dramatiq.actor(lambda user_id: None, actor_name="work")
    old = work.send_with_options(
        args=(7,), exclusive=Exclusive("{{x}}:{user_id}", on_conflict="wait"), unique="u:{user_id}"
    )
    run()

    new = joblog.requeue(old.message_id)
    with pytest.raises(RequeueError, match="is held by job"):
        joblog.requeue(old.message_id)
    run()

    assert "{x}:7" == joblog.get(old.message_id).section == joblog.get(new.message_id).section
    mine = {"jid": new.message_id}
    assert old.options["joblog_section"] | mine == new.options["joblog_section"]
    assert "finished" == joblog.get(new.message_id).state


def test_a_pipeline_goes_on(joblog, broker, run, broken):
    """What follows a dead job in its pipeline follows its new run, under the jid that it had."""
    seen = []

    @dramatiq.actor(max_retries=0)
    def first(x):
        if not broken.is_set():
            raise ValueError("it is broken")
        return x + 1

    @dramatiq.actor
    def second(y):
        seen.append(y)

    pipe = first.message(1) | second.message()
    pipe.run()
    run()
    broken.set()
    joblog.requeue(pipe.messages[0].message_id)
    run()
    assert "finished" == joblog.get(pipe.messages[1].message_id).state

    # It has run now: the next one is another job.
    again = joblog.requeue(pipe.messages[0].message_id)
    run()
    assert [2, 2] == seen
    [last] = joblog.jobs.where(joblog.Job.parent_jid == again.message_id)
    assert ("finished", "second") == (last.state, last.actor)


def test_a_group_is_completed_once(joblog, make_broker, worker, broken):
    """A dead member's new run completes its group; a new run of a member that was counted does not.

    The group's callback runs when each member has finished once.
    """
    stack = [*(m() for m in default_middleware), GroupCallbacks(StubBackend())]
    broker = make_broker("stub", "last", joblog=joblog, middleware=stack)
    done = []

    @dramatiq.actor(max_retries=0)
    def member(name):
        if name == "broken" and not broken.is_set():
            raise ValueError("it is broken")

    @dramatiq.actor
    def callback():
        done.append(1)

    messages = [member.message("sound"), member.message("broken")]
    group = dramatiq.group(messages)
    group.add_completion_callback(callback.message())
    group.run()
    with worker(broker):
        broker.join("default", fail_fast=False)
        broken.set()
        joblog.requeue(messages[0].message_id)
        broker.join("default", fail_fast=False)
        assert [] == done
        joblog.requeue(messages[1].message_id)
        broker.join("default", fail_fast=False)
        joblog.requeue(messages[1].message_id)
        broker.join("default", fail_fast=False)
    assert [1] == done


class TablesVanish(Middleware):
    """Removes the table of jobs when a job is run again."""

    def __init__(self, joblog):
        self.joblog = joblog

    def rename(self, old, new):
        with self.joblog.database.connection_context():
            self.joblog.database.execute_sql(f"ALTER TABLE {old} RENAME TO {new}")

    def after_enqueue(self, broker, message, delay):
        if "joblog_replay_of" in message.options:
            self.rename("joblog_job", "away")


@on_each_database
def test_a_log_that_goes_away_meanwhile(joblog, make_broker, worker, caplog, eventually):
    """A job that was sent is reported as sent, even if it could not be marked."""
    vanish = TablesVanish(joblog)
    broker = make_broker("stub", "last", joblog=joblog, middleware=[Retries(max_retries=0), vanish])
    work = dramatiq.actor(lambda: None, actor_name="work")
    old = work.send()
    with worker(broker):
        broker.join("default")
    joblog.close()

    new = joblog.requeue(old.message_id)

    assert f"{old.message_id} runs again as {new.message_id}, unmarked" in caplog.text
    vanish.rename("away", "joblog_job")
    row = eventually(lambda: joblog.Job.get_or_none(joblog.Job.jid == new.message_id))
    assert old.message_id == row.replay_of
    joblog.close()


@pytest.mark.process
def test_in_another_process(
    joblog, sqlite_url, redis_url, run_worker_process, eventually, tmp_path
):
    """A job requeued by one process runs in another, on a real Redis."""
    broker = brokers.connect(redis_url, namespace="inside", impatient=True)
    broker.add_middleware(JobLogMiddleware(joblog))
    dramatiq.set_broker(broker)
    work = dramatiq.actor(lambda: None, actor_name="work")
    (tmp_path / "go").touch()
    environment = {
        "INSIDE_BROKER": redis_url,
        "INSIDE_DATABASE": sqlite_url,
        "INSIDE_FOLDER": str(tmp_path),
    }

    old = work.send()
    with run_worker_process("inside_worker", env=environment):
        eventually(lambda: joblog.get(old.message_id).state == "finished", timeout=30)
        new = joblog.requeue(old.message_id)
        eventually(lambda: joblog.get(new.message_id).state == "finished", timeout=30)

    before, after = joblog.get(old.message_id), joblog.get(new.message_id)
    assert (new.message_id, old.message_id) == (before.replayed_by, after.replay_of)
    assert ["begun", "done"] == [line.text for line in after.lines]
    brokers.disconnect(broker)
