"""A message runs as often as it was enqueued; only redeliveries do not run again."""

from __future__ import annotations

import asyncio
import threading

import dramatiq
import pytest
from dramatiq.middleware import (
    AsyncIO,
    CurrentMessage,
    Middleware,
    MiddlewareError,
    Retries,
    SkipMessage,
    default_middleware,
)

from dramatiq_joblog import current_job
from dramatiq_joblog.broker.deliveries import delivery_of, hold, moving, stamp

DATABASES = ["sqlite", "postgres", "mysql"]
TIMES = 3

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def stack(*more):
    return [*(m() for m in default_middleware), CurrentMessage(), *more]


def at_once(broker, message):
    broker.enqueue(message)


def later(broker, message):
    broker.enqueue(message, delay=30)


def a_copy(broker, message):
    broker.enqueue(message.copy(), delay=30)


def on_another_thread(broker, message):
    thread = threading.Thread(target=later, args=(broker, message))
    thread.start()
    thread.join()


def told(job):
    runs = [str(f.outcome) for f in job.failures]
    return str(job.state), job.attempt, job.dead_reason, runs


@pytest.mark.parametrize("again", [at_once, later, a_copy, on_another_thread])
@pytest.mark.parametrize(
    ("kind", "database_url"),
    [
        ("stub", "sqlite"),
        pytest.param("redis", "postgres", marks=pytest.mark.every_database),
        ("rabbit", "mysql"),
    ],
    indirect=["database_url"],
)
def test_polling(joblog, make_broker, worker, eventually, kind, again):
    """A job that enqueues its own message again continues, and each run is recorded."""
    broker = make_broker(kind, joblog=joblog, middleware=stack())
    seen = []

    @dramatiq.actor(max_retries=0, max_interruptions=1)
    def polls():
        seen.append(current_job().attempt)
        if len(seen) < TIMES:
            again(broker, CurrentMessage.get_current_message())

    with worker(broker, worker_threads=1):
        sent = polls.send()
        eventually(lambda: len(seen) == TIMES)
        eventually(lambda: joblog.get(sent.message_id).state == "finished")

    assert [1] * TIMES == seen
    expected = ("finished", 1, None, ["finished"] * (TIMES - 1))
    assert expected == told(joblog.get(sent.message_id))


@only_sqlite
def test_an_open_run_counts_as_interrupted(joblog, make_broker, worker, eventually):
    """A run beside a later one counts as interrupted until it ends: it may be killed before."""
    broker = make_broker("stub", joblog=joblog, middleware=stack())
    leave, runs = threading.Event(), []

    @dramatiq.actor(max_retries=0)
    def works():
        runs.append(current_job().attempt)
        if len(runs) == 1:
            broker.enqueue(CurrentMessage.get_current_message())
            leave.wait(30)

    with worker(broker, worker_threads=2):
        jid = works.send().message_id
        eventually(lambda: joblog.get(jid).state == "finished")
        assert (1, ["interrupted"]) == (joblog.get(jid).interruptions, told(joblog.get(jid))[3])
        leave.set()
        eventually(lambda: told(joblog.get(jid))[3] == ["finished"])
    assert joblog.get(jid).interruptions is None


@only_sqlite
def test_a_job_that_goes_on_has_not_ended(joblog, make_broker, worker, eventually):
    """Between two runs of a job that enqueues its own message with a delay, it is delayed."""
    broker = make_broker("stub", joblog=joblog, middleware=stack())

    @dramatiq.actor
    def polls():
        broker.enqueue(CurrentMessage.get_current_message(), delay=3_600_000)

    with worker(broker):
        sent = polls.send()
        eventually(lambda: joblog.get(sent.message_id).state == "delayed")
        job = joblog.get(sent.message_id)
        broker.flush_all()

    assert job.eta > job.started_at
    assert (None, [("finished", None)]) == (
        job.finished_at,
        [(f.outcome, f.error_type) for f in job.failures],
    )


@only_sqlite
def test_an_async_actor_that_enqueues_its_message(joblog, make_broker, worker, eventually):
    """The message may be enqueued on any thread, including that of the event loop."""
    broker = make_broker("stub", joblog=joblog, middleware=stack(AsyncIO()))
    seen = []

    @dramatiq.actor
    async def polls():
        seen.append(1)
        message = CurrentMessage.get_current_message()
        if len(seen) < TIMES:
            await asyncio.sleep(0)
            broker.enqueue(message)

    with worker(broker, worker_threads=1):
        sent = polls.send()
        broker.join("default")

    assert TIMES == len(seen)
    assert ("finished", 1, None, ["finished"] * 2) == told(joblog.get(sent.message_id))


class EnqueuesAgain(Middleware):
    """Enqueues each message once more, in a given hook."""

    def __init__(self, hook) -> None:
        self.done = set()
        setattr(self, hook, self._hook)

    def _hook(self, broker, message, **_):
        if message.message_id not in self.done:
            self.done.add(message.message_id)
            broker.enqueue(message.copy())


@only_sqlite
@pytest.mark.parametrize("position", ["first", "last"])
@pytest.mark.parametrize("hook", ["after_process_message", "before_ack", "after_ack"])
def test_another_middleware_that_enqueues_again(joblog, make_broker, worker, hook, position):
    """Messages that another middleware enqueues after the body run too, in whichever hook."""
    broker = make_broker("stub", position, joblog=joblog, middleware=stack(EnqueuesAgain(hook)))
    seen = []

    @dramatiq.actor
    def works():
        seen.append(1)

    with worker(broker, worker_threads=1):
        sent = works.send()
        broker.join("default")

    assert 2 == len(seen)
    assert ("finished", 1, None, ["finished"]) == told(joblog.get(sent.message_id))


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
def test_a_copy_that_overtakes(joblog, make_broker, worker, eventually):
    """Two deliveries that run at the same time are both recorded, and neither as interrupted."""
    broker = make_broker("redis", joblog=joblog, middleware=stack())
    may_end, began = threading.Event(), []

    @dramatiq.actor(max_interruptions=1)
    def works():
        began.append(1)
        if len(began) == 1:
            broker.enqueue(CurrentMessage.get_current_message())
            assert may_end.wait(30)

    with worker(broker, worker_threads=2):
        sent = works.send()
        eventually(lambda: joblog.get(sent.message_id).state == "finished")
        may_end.set()
        broker.join("default")
        eventually(lambda: told(joblog.get(sent.message_id))[3] == ["finished"])

    job = joblog.get(sent.message_id)
    assert (2, None, "finished") == (len(began), job.interruptions, job.state)


@pytest.mark.parametrize(
    ("kind", "database_url"),
    [
        ("stub", "sqlite"),
        pytest.param("redis", "postgres", marks=pytest.mark.every_database),
        ("rabbit", "mysql"),
    ],
    indirect=["database_url"],
)
def test_a_dead_letter_that_is_put_back(joblog, make_broker, worker, eventually, kind):
    """A dead job whose message is enqueued again without its retries runs, and its end is kept."""
    broker = make_broker(kind, joblog=joblog, middleware=stack())
    works_now = threading.Event()

    @dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=10)
    def breaks(number):
        if not works_now.is_set():
            raise ValueError("row 7 is broken")

    with worker(broker, worker_threads=1):
        sent = breaks.send(1)
        eventually(lambda: joblog.get(sent.message_id).state == "dead")
        joblog.Job.update(dismissed_at=1).execute()
        works_now.set()
        # As dramatiq_dashboard does it.
        options = {"eta": sent.message_timestamp, "retries": 0}
        broker.enqueue(sent.copy(args=(2,), options=options))
        eventually(lambda: joblog.get(sent.message_id).state == "finished")

    job = joblog.get(sent.message_id)
    assert ("finished", 1, None, ["retried", "dead"]) == told(job)
    assert ([2], None) == (job.args, job.dismissed_at)


@only_sqlite
@pytest.mark.parametrize("kind", ["redis", "rabbit"])
def test_a_group_that_is_run_twice(joblog, make_broker, worker, eventually, kind):
    """Each message of a group runs as often as the group is run, on any broker."""
    broker = make_broker(kind, joblog=joblog, middleware=stack())
    seen = []

    @dramatiq.actor
    def works(number):
        seen.append(number)

    group = dramatiq.group([works.message(1), works.message(2)])
    with worker(broker, worker_threads=1):
        for times in (1, 2):
            group.run()
            eventually(lambda times=times: len(seen) == 2 * times)
            rows = [("finished", 1, None, ["finished"] * (times - 1))] * 2
            eventually(lambda rows=rows: rows == [told(job) for job in joblog.jobs])


def test_names_of_deliveries():
    """A delivery keeps its ID through its delay, even if it is moved twice, and no longer."""
    sent = dramatiq.Message("default", "work", (), {}, {"eta": 7})
    stamp(sent)
    held, once, twice = sent.copy(), sent.copy(), sent.copy()
    for moved in (once, twice):
        hold(moved)
        with moving():
            stamp(moved)
    assert len({delivery_of(m).name for m in (sent, held, once, twice)}) == 1
    stamp(once)
    assert delivery_of(once).name != delivery_of(sent).name

    redis = dramatiq.Message("default", "work", (), {}, {"redis_message_id": "a"})
    assert ("a", False) == delivery_of(redis)
    hold(redis)
    moved = redis.copy(options={"redis_message_id": "b"})
    with moving():
        stamp(moved)
    assert ("a", False) == delivery_of(moved)
    # As a dashboard puts it back, which has no log.
    assert ("c", False) == delivery_of(moved.copy(options={"redis_message_id": "c"}))
    # As any other producer may write it.
    for odd in (7, [], ["a"], [1, 2], {"a": 1}, "ab"):
        assert (None, True) == delivery_of(
            dramatiq.Message("default", "work", (), {}, {"joblog_delivery": odd})
        )


class Gate(Middleware):
    """Refuses each message once: with an error, or by requeueing a copy."""

    def __init__(self, *, puts_back) -> None:
        self.puts_back, self.seen = puts_back, set()

    def before_process_message(self, broker, message):
        if message.message_id in self.seen:
            return
        self.seen.add(message.message_id)
        if self.puts_back:
            broker.enqueue(message.copy(), delay=3_600_000)
            raise SkipMessage("closed")
        raise MiddlewareError("no permit")


class OwnRetries(Retries):
    """A retry policy of the user."""


@pytest.mark.few(8)
@only_sqlite
@pytest.mark.parametrize("retries", [Retries, OwnRetries])
@pytest.mark.parametrize("puts_back", [False, True])
@pytest.mark.parametrize("order", ["gLR", "gRL", "LgR", "RgL", "LRg", "RLg"])
def test_refused_in_any_order(joblog, make_broker, worker, eventually, order, puts_back, retries):
    """A job that a middleware refuses has the same row, in any order of the three middlewares."""
    made = {
        "g": Gate(puts_back=puts_back),
        "R": retries(min_backoff=3_600_000, max_backoff=3_600_000),
    }
    others = [made[letter] for letter in order if letter != "L"]
    broker = make_broker("stub", "first", joblog=joblog, middleware=others)
    log = broker.middleware.pop(0)
    broker.middleware.insert(order.index("L"), log)

    @dramatiq.actor
    def works():
        pass

    with worker(broker, worker_threads=1):
        sent = works.send()
        state = "delayed" if puts_back else "retrying"
        eventually(lambda: joblog.get(sent.message_id).state == state)
        broker.flush_all()

    job = joblog.get(sent.message_id)
    failures = [] if puts_back else [("retried", 1, None, "MiddlewareError")]
    assert (1, None, None) == (job.attempt, job.started_at, job.dead_reason)
    assert failures == [(f.outcome, f.attempt, f.started_at, f.error_type) for f in job.failures]
    assert job.eta > job.enqueued_at
