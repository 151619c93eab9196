"""How long a message is unique, whatever happens to its sender and to replies."""

from __future__ import annotations

import dramatiq
import peewee
import pytest

from dramatiq_joblog import (
    ConfigurationError,
    DatabaseAwayError,
    DuplicateJob,
    Exclusive,
    JobLog,
    JobLogMiddleware,
    Unique,
    enqueue_once,
)
from dramatiq_joblog.locking.options import DEFAULT_UNIQUE_TTL

#: Milliseconds; as long as the database may take.
SLACK = 60_000


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    return make_broker("stub", "last", joblog=joblog)


def time_left(joblog):
    """Return the remaining milliseconds of the only unique key."""
    row = joblog.Lock.get(joblog.Lock.kind == "unique")
    return (row.expires_at - joblog.now()).total_seconds() * 1000


def is_taken(joblog):
    return joblog.Lock.select().where(joblog.Lock.kind == "unique").exists()


@pytest.mark.process
def test_a_sender_that_dies_at_once(joblog, database_url, redis_url, run_script):
    """A key has its full ttl once ``send()`` has returned, even if the sender dies right then."""
    died = run_script("dying_sender.py", database_url, redis_url)
    assert 3 == died.returncode, died.stderr
    assert time_left(joblog) > DEFAULT_UNIQUE_TTL - SLACK


@pytest.mark.parametrize("fails", [0, 1])
def test_a_start_and_a_retry_confirm(joblog, broker, worker, eventually, fails):
    """A key that has nearly expired gets its full ttl when its job starts, or is retried."""
    seen = []

    @dramatiq.actor(unique="key", min_backoff=SLACK)
    def work():
        seen.append(time_left(joblog))
        if fails:
            joblog.Lock.update(expires_at=joblog.now()).execute()
            raise ValueError

    work.send()
    joblog.core.writer.flush()
    joblog.Lock.update(expires_at=joblog.now()).execute()
    joblog.release()
    with worker(broker):
        eventually(lambda: seen)
        if fails:
            eventually(joblog.jobs.retrying().exists)
            assert time_left(joblog) > DEFAULT_UNIQUE_TTL - SLACK
            with pytest.raises(DuplicateJob):
                work.send()
        else:
            eventually(joblog.jobs.finished().exists)
            assert not is_taken(joblog)

    assert seen[0] > DEFAULT_UNIQUE_TTL - SLACK


def test_a_start_takes_no_key_from_another(joblog, broker, worker, eventually):
    """A job whose key has expired and is held by another runs, and does not touch it."""
    work = dramatiq.actor(lambda: None, actor_name="work", unique="key")
    first = work.send()
    joblog.core.writer.flush()
    joblog.Lock.update(expires_at=joblog.now()).execute()
    joblog.release()
    second = work.send_with_options(delay=SLACK)
    with worker(broker):
        eventually(lambda: joblog.get(first.message_id).state == "finished")

    assert second.message_id == joblog.Lock.get(joblog.Lock.kind == "unique").owner


def test_a_waiter_confirms(joblog, broker, worker, eventually):
    """A job that waits for its section is unique until it starts, however long that takes."""
    work = dramatiq.actor(
        lambda: None,
        actor_name="work",
        unique=Unique("key", until="started"),
        exclusive=Exclusive("section", on_conflict="wait"),
    )
    work.send()
    joblog.core.writer.flush()
    joblog.Lock.update(expires_at=joblog.now()).execute()
    lock = joblog.lock("section")
    lock.__enter__()
    with worker(broker):
        eventually(joblog.jobs.waiting().exists)
        assert time_left(joblog) > DEFAULT_UNIQUE_TTL - SLACK
        lock.__exit__(None, None, None)
        eventually(joblog.jobs.finished().exists)
    assert not is_taken(joblog)


@pytest.mark.parametrize("quiet", [True, False])
def test_a_copy_under_another_id(joblog, broker, quiet):
    """A copy of a message with a new id is a different message with the same key."""
    work = dramatiq.actor(lambda: None, actor_name="work", unique="key")
    first = work.send()
    copy = first.copy(message_id="another")
    if quiet:
        assert first.message_id == enqueue_once(broker, copy).message_id
    else:
        with pytest.raises(DuplicateJob, match=first.message_id):
            broker.enqueue(copy)
    assert 1 == broker.queues["default"].qsize()


def test_a_copy_with_other_arguments(joblog, broker):
    """A copy with a new id has the keys of its own arguments."""
    work = dramatiq.actor(
        lambda n: None, actor_name="work", unique="unique:{n}", exclusive="section:{n}"
    )
    first = work.send(1)
    broker.enqueue(first.copy(message_id="another", args=(2,)))
    joblog.core.writer.flush()
    assert ["unique:1", "unique:2"] == sorted(row.key for row in joblog.Lock.select())
    assert "section:2" == joblog.get("another").section


def test_the_same_message_again(joblog, broker):
    """A message that is enqueued again under the same id does not conflict with itself."""
    work = dramatiq.actor(lambda: None, actor_name="work", unique="key")
    broker.enqueue(work.send())
    assert 2 == broker.queues["default"].qsize()


def test_a_message_that_sends_another_on_its_way(joblog, broker):
    """If one message is sent from a hook of another, each has its own key."""

    class SendsAnother(dramatiq.Middleware):
        fails = False

        def after_enqueue(self, broker, message, delay):
            if message.args == (1,):
                work.send(2)

    broker.add_middleware(SendsAnother())
    enqueue, refused = type(broker).enqueue, []

    def refuses_first(self, message, *, delay=None):
        sent = enqueue(self, message, delay=delay)
        if message.args == (1,) and not refused:
            refused.append(message)
            raise ConnectionError("the answer is lost")
        return sent

    type(broker).enqueue = refuses_first
    try:
        # As its first actor is declared, the log begins to watch what is sent.
        work = dramatiq.actor(lambda n: None, actor_name="work", unique="{n}")
        with pytest.raises(ConnectionError):
            work.send(1)
    finally:
        type(broker).enqueue = enqueue
    assert ["2"] == [row.key for row in joblog.Lock.select()]


def test_inside_a_transaction_of_sqlite(tmp_path, make_broker):
    """A unique message is refused at once inside a transaction its claim would wait for."""
    database = peewee.SqliteDatabase(tmp_path / "app.db")
    joblog = JobLog(database)
    joblog.create_tables()
    broker = make_broker("stub", "last", joblog=joblog)
    work = dramatiq.actor(lambda: None, actor_name="work", unique="key")
    plain = dramatiq.actor(lambda: None, actor_name="plain")
    with database.atomic():
        with pytest.raises(ConfigurationError, match="send it after the transaction"):
            work.send()
        plain.send()
    work.send()
    assert 2 == broker.queues["default"].qsize()
    assert not joblog.core.writer.away
    joblog.close()
    database.close()


def test_a_claim_whose_answer_is_lost(joblog, broker, monkeypatch):
    """The key of a message that is not sent is released, even if the reply was lost."""
    atomic = joblog.core.transitions.atomic
    lost = []

    class Lost:
        def __enter__(self):
            self.transaction = atomic()
            self.transaction.__enter__()

        def __exit__(self, *exc_info):
            self.transaction.__exit__(*exc_info)
            if not lost and exc_info[0] is None:
                lost.append(True)
                raise DatabaseAwayError("the answer of a commit is lost")

    work = dramatiq.actor(lambda: None, actor_name="work", unique="key")
    monkeypatch.setattr(joblog.core.transitions, "atomic", Lost)
    with pytest.raises(Exception, match="the answer of a commit is lost"):
        work.send()
    joblog.core.writer.flush()
    monkeypatch.undo()
    assert lost
    work.send()


def test_two_logs_on_one_broker(joblog, make_broker, tmp_path):
    """Each log confirms its own keys."""
    other = JobLog(f"sqlite:///{tmp_path / 'other.db'}")
    other.create_tables()
    broker = make_broker("stub", "last", joblog=joblog)
    broker.add_middleware(JobLogMiddleware(other))
    work = dramatiq.actor(lambda: None, actor_name="work", unique="key")
    work.send()
    assert time_left(joblog) > DEFAULT_UNIQUE_TTL - SLACK
    other.close()
