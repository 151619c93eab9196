"""Odd values in messages and rows affect neither outcomes nor readers."""

from __future__ import annotations

import enum
import itertools
import pickle
from collections import OrderedDict

import dramatiq
import pytest
import tiers
from dramatiq import Message
from dramatiq.common import current_millis
from dramatiq.errors import Retry
from everything import ask_everything

from dramatiq_joblog import CancelError, Exclusive, RequeueError
from dramatiq_joblog.states import FINAL

#: What another producer's JSON may hold.
ODD = (
    -1,
    1.5,
    2**70,
    True,
    "LOUD",
    "x" * 300,
    "a\x00b\ud800<b>'\"%s{}",
    [],
    {"a": [None]},
    float("nan"),
)
LABELS = ("job_type", "job_user", "log_lines", "max_interruptions", "rerun", "start", "tenant")
OURS = ("joblog_parent", "joblog_root", "joblog_replay_of", "joblog_note", "joblog_duplicate")
BONDS = ("exclusive", "unique", "joblog_section", "joblog_unique")
HOSTS = ("max_retries", "retries", "throws", "traceback", "requeue_timestamp", "redis_message_id")
OPTIONS = (*LABELS, *OURS, *BONDS, *HOSTS, "unknown")


def put(broker, **attributes):
    """Put a message in the broker's queue like another producer, without calling hooks."""
    known = {"queue_name": "default", "actor_name": "work", "args": (), "kwargs": {}, "options": {}}
    message = Message(**known | attributes)
    broker.queues[message.queue_name].put(message.encode())
    return message


def odd_messages(every, first):
    """Yield the attributes of messages, each with one odd value.

    Of what options may hold it is *every* so many from the *first* on, so that each value and
    each option is there.
    """
    for (i, name), (j, value) in itertools.product(enumerate(OPTIONS), enumerate(ODD)):
        if (i + j) % every == first:
            yield {"options": {name: value}}
    for value in ODD:
        yield {"args": (value,)}
        yield {"kwargs": {"value": value}}
        yield {"message_timestamp": value}
        yield {"message_id": f"odd {value!r}"}
    for value in (None, "soon", "1764000000000", 10**20, -(10**20)):
        yield {"message_timestamp": value}
    for value in ("", " ", "a ", "x" * 300, "\ud800", 7, 1.5):
        yield {"message_id": value}


@pytest.fixture
def working(joblog, make_broker, worker):
    """Return a broker, and a function that runs all its messages with a worker."""
    broker = make_broker(joblog=joblog)
    ran = []

    @dramatiq.actor(max_retries=0)
    def work(value=None):
        ran.append(value)

    def run():
        with worker(broker):
            broker.join("default", timeout=120_000, fail_fast=False)
        joblog.core.writer.flush(timeout=30)
        return ran

    return broker, run


@pytest.mark.one_database
def test_odd_messages_are_logged_and_run(joblog, database_url, working):
    """Each message with an odd value has its outcome, and all queries work afterwards."""
    broker, run = working
    # In the first tier a sixth of them.
    every = 1 if tiers.whole() else 6
    sent = [put(broker, **attributes) for attributes in odd_messages(every, first=0)]

    ran = run()

    assert joblog.core.writer.lost == 0
    jobs = {message.message_id: joblog.get(message.message_id) for message in sent}
    for message in sent:
        job = jobs[message.message_id]
        bound = {"exclusive", "joblog_section", "joblog_duplicate"} & message.options.keys()
        expected = FINAL if bound else {"finished"}
        assert job.state in expected, (message, job.state, job.error_message, job.note)
        assert job.state != "dead" or job.error_message
    assert len(ran) == sum(
        job.state == "finished" for message in sent for job in [jobs[message.message_id]]
    )
    ask_everything(joblog, database_url, some=8)
    for job in list(joblog.jobs)[::5]:
        try:
            again = joblog.requeue(job.jid)
        except RequeueError:
            continue
        assert again.args == tuple(job.args)
    run()
    with pytest.raises(CancelError):
        joblog.cancel(sent[0].message_id)


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("label", "value"), [("job_type", 7), ("job_type", []), ("log_lines", "LOUD"), ("start", 7)]
)
def test_a_label_never_decides(joblog, working, label, value):
    """An unusable label is noted on the row, and the job runs."""
    broker, run = working
    message = put(broker, options={label: value})

    run()

    job = joblog.get(message.message_id)
    assert "finished" == job.state
    assert label in job.note


def test_a_label_does_not_lose_a_retry(joblog, make_broker, worker):
    """A job with an odd label that fails is retried like any other."""
    broker = make_broker(joblog=joblog)
    runs = []

    @dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=1)
    def work():
        runs.append(1)
        if len(runs) < 2:
            raise ValueError

    message = put(broker, options={"job_type": {}, "log_lines": "LOUD", "unique": 7})
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)

    assert ("finished", 2) == (joblog.get(message.message_id).state, len(runs))


@pytest.mark.one_database
@pytest.mark.parametrize("bond", [7, [], {"key": 7}, {"limit": 1}, {"key": "k", "limit": "x"}, "x"])
def test_a_section_that_cannot_be_read(joblog, working, bond):
    """An unreadable section makes only its own job dead, with the reason."""
    broker, run = working
    odd = put(broker, options={"joblog_section": bond})
    held = put(broker, options={"joblog_section": bond, "eta": current_millis() + 100})
    good = put(broker)

    run()

    for message in (odd, held):
        job = joblog.get(message.message_id)
        assert "dead" == job.state
        assert "joblog_section" in job.error_message
    assert "finished" == joblog.get(good.message_id).state


def test_a_section_that_cannot_be_read_of_an_actor_with_one(joblog, make_broker, worker):
    """The actor's section replaces an unreadable one."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(exclusive=Exclusive("own"))
    def work():
        pass

    message = put(broker, options={"joblog_section": 7})
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)

    job = joblog.get(message.message_id)
    assert ("finished", "own") == (job.state, job.section)
    assert "joblog_section" in job.note


@pytest.mark.one_database
@pytest.mark.parametrize("bond", [7, [], {"key": 7}, {"key": "k", "ttl": "x"}])
def test_a_uniqueness_that_cannot_be_read(joblog, working, bond):
    """A message with an unreadable unique key is not unique, and runs."""
    broker, run = working
    message = put(broker, options={"joblog_unique": bond})

    run()

    job = joblog.get(message.message_id)
    assert "finished" == job.state
    assert "joblog_unique" in job.note


@pytest.mark.one_database
@pytest.mark.parametrize("delay", [1.5, 100.25, 10.0])
def test_a_retry_with_a_fraction(joblog, make_broker, worker, delay):
    """A retry whose delay is not a whole number of milliseconds is logged, and runs."""
    broker = make_broker(joblog=joblog)
    runs = []

    @dramatiq.actor(max_retries=1, exclusive="k")
    def work():
        runs.append(1)
        if len(runs) < 2:
            raise Retry(delay=delay)

    message = work.send()
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)

    job = joblog.get(message.message_id)
    assert ("finished", 2, 1) == (job.state, len(runs), len(list(job.failures)))
    assert 0 == joblog.locks.count()


@pytest.mark.full
def test_a_delay_of_ages(joblog, database_url, make_broker):
    """A message due in the year 12020 is stored with the last possible instant."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor
    def work():
        pass

    message = work.send_with_options(delay=10_000 * 365 * 86_400_000)
    joblog.core.writer.flush()

    job = joblog.get(message.message_id)
    assert ("delayed", 9999) == (job.state, job.eta.year)
    assert "eta" in job.note
    ask_everything(joblog, database_url, some=1)
    assert "dead" == joblog.cancel(message.message_id).state
    assert broker is not None


def test_retries_for_ever(joblog, working):
    """A job that may be retried forever keeps its arguments, and None means no limit."""
    broker, run = working
    many = put(broker, args=(7,), options={"max_retries": 2**31})
    none = put(broker, args=(7,), options={"max_retries": None})

    run()

    assert [7] == joblog.get(many.message_id).args
    assert 2**31 - 1 == joblog.get(many.message_id).max_retries
    assert ([7], None) == (
        joblog.get(none.message_id).args,
        joblog.get(none.message_id).max_retries,
    )


#: Columns, and what an older or a newer version, or a person, may have written there.
ODD_ROWS = [
    *(("args", text) for text in ("{bad", "7", '"x"', "[NaN, 1e999]", '["\\ud800"]', "null")),
    *(
        ("kwargs", text)
        for text in ("[", "[1]", '{"a": Infinity}', '{"a":' * 500 + "1" + "}" * 500)
    ),
    *(("meta", text) for text in ("x", "[1]", '{"a": NaN}')),
    *(("progress", text) for text in ("[1]", '"x"', '{"done": "x", "total": []}')),
    ("progress", '{"done": NaN, "total": 1, "text": [7]}'),
    *(("options", text) for text in ("[1]", '{"pipe_target": 7}', '{"job_type": []}')),
    *itertools.product(
        ("eta", "enqueued_at", "started_at", "finished_at", "waiting_since", "updated_at"),
        (10**18, -(10**18), 0, -1),
    ),
    *(("state", text) for text in ("paused", "", "DEAD")),
    *(("dead_reason", text) for text in ("bored", "")),
    *itertools.product(("duration", "queue_time"), (-1, 2**62)),
    *itertools.product(("attempt", "max_retries", "interruptions"), (-1, 0, 2**31 - 1)),
    ("worker", "nowhere"),
    ("worker", ""),
    ("user_id", "--7"),
    ("parent_jid", "odd"),
    ("root_jid", "odd"),
    ("actor", ""),
    ("error_type", ""),
    ("job_type", ""),
    ("note", ""),
]


@pytest.mark.full
@pytest.mark.one_database
def test_odd_rows_are_shown(joblog, database_url, job_factory):
    """Of a row with arbitrary values, everything possible is shown."""
    states = ("dead", "started", "retrying", "waiting", "delayed", "finished", "lost")
    param = joblog.database.param
    # How a row is shown does not depend on the database.
    is_sqlite = "sqlite" in database_url
    rows = ODD_ROWS * (2 if tiers.whole() else 1)
    for (column, value), state in zip(rows, itertools.cycle(states), strict=False):
        number = job_factory(state=state, section="k", error_type="E", worker="h:1:2").id
        joblog.database.execute_sql(
            f"UPDATE joblog_job SET {column} = {param} WHERE id = {param}", (value, number)
        )
    failure = {"outcome": "new", "attempt": -1, "token": "t", "started_at": 0, "finished_at": -5}
    for state in ("dead", "retried"):
        joblog.Failure.create(jid=job_factory(jid=state, state="dead").jid, **failure)

    some = 40 if tiers.whole() else 16
    ask_everything(joblog, database_url, some=some if is_sqlite else 8)
    assert 10 == len(joblog.cancel_all(joblog.jobs, limit=10).cancelled)
    assert joblog.dismiss(*(job.jid for job in joblog.jobs), who="ada")


def test_odd_arguments_under_another_encoder(joblog, working):
    """Values that JSON would silently change, unlike the encoder, are withheld."""
    broker, run = working
    before = dramatiq.get_encoder()
    dramatiq.set_encoder(Pickle())
    try:
        values = [Kind.A, OrderedDict(a=1), (1, (2,)), {1: 2}, b"x", {1, 2}, 10**5000]
        sent = [put(broker, args=(value,)) for value in values]
        plain = put(broker, args=([1, {"a": None}],))
        run()
        # Alone: Dramatiq 1 compares the messages that wait with each other.
        sent.append(put(broker, args=(Rude(),)))
        run()
        for message in sent:
            assert "finished" == joblog.get(message.message_id).state
            with pytest.raises(RequeueError):
                joblog.requeue(message.message_id)
        assert joblog.requeue(plain.message_id).args == ([1, {"a": None}],)
    finally:
        dramatiq.set_encoder(before)


class Kind(str, enum.Enum):
    """A kind of work."""

    A = "a"


class Pickle(dramatiq.Encoder):
    """A field without conversion."""

    def encode(self, data):
        """Write."""
        return pickle.dumps(data)

    def decode(self, data):
        """Read."""
        return pickle.loads(data)


class Rude:
    """Raises in each method."""

    def _raise(self, *args):
        raise RuntimeError("rude")

    __eq__ = __repr__ = __str__ = __bool__ = __len__ = _raise
    __hash__ = None
