"""Rate limits: how many runs may start within a window, and which is next."""

from __future__ import annotations

import threading

import dramatiq
import pytest

from dramatiq_joblog import ConfigurationError, Exclusive, Rate
from dramatiq_joblog.locking.needs import RATE, Need
from dramatiq_joblog.locking.rates import Rates


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    broker = make_broker("stub", "last", joblog=joblog)
    broker.fail_fast_default = False
    return broker


@pytest.fixture
def rates(joblog):
    """Return the statements on rates, and one connection for them."""
    with joblog.database.connection_context():
        yield joblog.core.locks.rates


def need(limit, per=60_000, key="key"):
    return Need(RATE, key, limit, "wait", None, "dead", per)


def pass_time(rates, milliseconds, key="key"):
    """Age all starts of a key."""
    lock = rates._lock
    of_key = lock.kind == RATE, lock.key == key
    lock.update(expires_at=lock.expires_at - milliseconds).where(*of_key).execute()


# The window


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_sliding_window(rates, limit):
    """One more run may start as soon as the start *limit* places before is *per* old."""
    for _ in range(limit):
        assert 1 == rates.take(need(limit))
        pass_time(rates, 1_000)
    assert 0 == rates.take(need(limit))
    allowance = rates.allowance(need(limit))
    assert 0 == allowance.free
    assert 60_000 - limit * 1_000 - 900 < allowance.due <= 60_000 - limit * 1_000

    pass_time(rates, allowance.due)
    assert 1 == rates.allowance(need(limit)).free
    assert 1 == rates.take(need(limit))
    # The others are not over yet.
    assert 0 == rates.take(need(limit))


def test_many_at_once(rates):
    """As many runs start at once as there is room for, and the rest later."""
    assert 3 == rates.take(need(3), 10)
    assert 0 == rates.take(need(3), 10)
    pass_time(rates, 60_000)
    assert 2 == rates.take(need(3), 2)
    assert 1 == rates.allowance(need(3)).free


def test_two_limits_on_one_key(rates):
    """All starts of a key count for each limit on it: the lower one applies to its own jobs."""
    for _ in range(3):
        assert 1 == rates.take(need(5))
    assert 0 == rates.take(need(2))
    assert 2 == rates.allowance(need(5)).free
    assert 2 == rates.take(need(5), 5)
    pass_time(rates, 60_000)
    assert 2 == rates.take(need(2), 5)


@pytest.mark.parametrize("more", [2, 3, 7])
def test_a_limit_that_was_raised(rates, more):
    """With a higher limit, more runs may start at once, and earlier starts still count."""
    assert 2 == rates.take(need(2), 9)
    pass_time(rates, 30_000)
    assert more - 2 == rates.take(need(more), 9)
    pass_time(rates, 30_000)
    assert 2 == rates.take(need(more), 9)


def test_a_longer_window(rates):
    """Unknown starts of a longer window count as within it."""
    for _ in range(4):
        assert 2 == rates.take(need(2, 1_000), 9)
        pass_time(rates, 1_000)
    # Eight have started in four seconds, and of two of them it is known when.
    assert 0 == rates.take(need(6, 60_000))
    pass_time(rates, 59_000)
    assert 1 == rates.take(need(6, 60_000))


def test_a_clock_that_goes_back(joblog, rates):
    """A start in the future counts for one window from now, and no longer."""
    assert 1 == rates.take(need(1))
    pass_time(rates, -3_600_000)
    joblog.core.locks.bound(RATE, "key")
    assert 0 < rates.allowance(need(1)).due <= 60_000
    pass_time(rates, 60_000)
    assert 1 == rates.take(need(1))


def test_what_is_not_kept(joblog, rates):
    """The starts of an unused key are deleted after a while."""
    rates.take(need(3, 1_000), 3)
    joblog.core.locks.clean()
    assert 4 == joblog.Lock.select().where(joblog.Lock.kind == RATE).count()
    pass_time(rates, 1_000)
    joblog.core.locks.clean(idle=-1)
    assert 0 == joblog.Lock.select().where(joblog.Lock.kind == RATE).count()
    assert 3 == rates.take(need(3, 1_000), 9)


# Jobs


def test_never_more_than_the_limit(joblog, broker, worker, eventually, monkeypatch):
    """By the database's clock, never more than *limit* jobs start within *per* milliseconds."""
    counted, write = {}, Rates._write

    def noted(rates, need, head, count):
        write(rates, need, head, count)
        # By their numbers: what is rolled back is counted again.
        counted.update(dict.fromkeys(range(head.last + 1 - count, head.last + 1), head.now))

    monkeypatch.setattr(Rates, "_write", noted)
    began = []

    @dramatiq.actor(exclusive=Rate("shop:{shop}", 3, per=300))
    def sync(shop, n):
        began.append(n)

    with worker(broker, worker_threads=4):
        for n in range(10):
            sync.send(1, n)
        eventually(lambda: joblog.jobs.finished().count() == 10)

    starts = [counted[number] for number in range(1, 11)]
    assert starts == sorted(starts)
    assert all(after - before >= 300 for before, after in zip(starts, starts[3:], strict=False))
    assert [*range(10)] == sorted(began)
    assert 0 == joblog.locks.count()


def test_waiting_costs_no_thread_and_no_retry(joblog, broker, worker, eventually):
    """While a rate is exhausted, a job waits without a thread, and its attempt stays the first."""
    done = []
    limited = dramatiq.actor(
        lambda: done.append("limited"), actor_name="limited", exclusive=Rate("key", 1, per=1_500)
    )
    plain = dramatiq.actor(lambda: done.append("plain"), actor_name="plain")
    with worker(broker, worker_threads=1):
        messages = [limited.send() for _ in range(2)]
        eventually(lambda: joblog.jobs.waiting().count() == 1)
        plain.send()
        eventually(lambda: "plain" in done)
        assert ["limited", "plain"] == done
        eventually(lambda: joblog.jobs.finished().count() == 3)

    jobs = [joblog.get(m.message_id) for m in messages]
    assert [1] * 2 == [job.attempt for job in jobs]
    # Which one runs first is Dramatiq's choice.
    assert [[], ["waited"]] == sorted([f.outcome for f in job.failures] for job in jobs)


@pytest.mark.parametrize(
    ("policy", "state", "reason"),
    [("skip", "skipped", None), ("fail", "dead", "conflict"), ("retry", "retrying", None)],
)
def test_other_policies(joblog, broker, worker, eventually, policy, state, reason):
    """A job that does not wait is skipped, fails or is retried, and its row has the reason."""
    work = dramatiq.actor(
        lambda: None,
        actor_name="work",
        exclusive=Rate("key", 1, per=60_000, on_conflict=policy),
        min_backoff=60_000,
    )
    with worker(broker):
        first = work.send()
        eventually(lambda: joblog.get(first.message_id).state == "finished")
        second = work.send()
        eventually(lambda: joblog.get(second.message_id).state == state)

    job = joblog.get(second.message_id)
    assert reason == job.dead_reason
    text = job.skip_reason or job.error_message
    assert "'key' is used up: 1 in 60000 ms, the next in " in text


@pytest.mark.parametrize(
    ("on_timeout", "state", "reason"), [("dead", "dead", "wait_timeout"), ("skip", "skipped", None)]
)
def test_who_waited_for_too_long(joblog, broker, worker, eventually, on_timeout, state, reason):
    """A job whose waiting time is over is dead or skipped, as for a section."""
    work = dramatiq.actor(
        lambda: None,
        actor_name="work",
        exclusive=Rate("key", 1, per=60_000, wait_for=300, on_timeout=on_timeout),
    )
    with worker(broker):
        first = work.send()
        eventually(lambda: joblog.get(first.message_id).state == "finished")
        second = work.send()
        eventually(lambda: joblog.get(second.message_id).state == state)
    assert reason == joblog.get(second.message_id).dead_reason


def test_each_run_is_a_start(joblog, broker, worker, eventually):
    """A retry counts too, and waits before new jobs."""
    order = []

    @dramatiq.actor(exclusive=Rate("key", 1, per=2_000), min_backoff=10, max_backoff=20)
    def work(name):
        order.append(name)
        if order == ["fails"]:
            raise ValueError

    with worker(broker):
        first = work.send("fails")
        eventually(lambda: joblog.get(first.message_id).attempt == 2)
        eventually(lambda: joblog.get(first.message_id).state == "waiting")
        work.send("newcomer")
        eventually(lambda: joblog.jobs.finished().count() == 2)
    assert ["fails", "fails", "newcomer"] == order


def test_together_with_a_section(joblog, broker, worker, eventually):
    """A job that finds its section held does not use up its rate."""
    inside, leave = threading.Event(), threading.Event()

    def body(name):
        if name == "stays":
            inside.set()
            leave.wait(30)

    work = dramatiq.actor(
        body,
        actor_name="work",
        exclusive=[Exclusive("section", on_conflict="skip"), Rate("rate", 2, per=60_000)],
    )
    with worker(broker):
        work.send("stays")
        assert inside.wait(10)
        skipped = [work.send("other").message_id for _ in range(3)]
        eventually(lambda: all(joblog.get(jid).state == "skipped" for jid in skipped))
        leave.set()
        eventually(lambda: joblog.locks.count() == 0)
        second = work.send("second")
        eventually(lambda: joblog.get(second.message_id).state == "finished")
        third = work.send("third")
        eventually(lambda: joblog.get(third.message_id).state == "waiting")
        # It holds nothing meanwhile.
        assert 0 == joblog.locks.count()


def test_a_cancelled_waiter(joblog, broker, worker, eventually):
    """A job that waits for a rate can be cancelled, and does not start then."""
    done = []

    # Time enough to cancel it on a busy machine.
    @dramatiq.actor(exclusive=Rate("key", 1, per=3_000))
    def work(number):
        done.append(number)

    with worker(broker):
        work.send(1)
        eventually(lambda: done == [1])
        second = work.send(2)
        eventually(lambda: joblog.get(second.message_id).state == "waiting")
        assert [second.message_id] == [job.jid for job in joblog.waiters("key")]
        joblog.cancel(second.message_id)
        work.send(3)
        eventually(lambda: done == [1, 3])
    assert "dead" == joblog.get(second.message_id).state


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"per": 0}, "per=0 must be a whole number of at least 1"),
        ({"per": 1.5}, "per=1.5 must be"),
        ({"per": 10**20}, "and at most"),
        ({"limit": 2**31}, "and at most"),
        ({"limit": -1}, "limit=-1 must be a whole number of at least 1"),
        ({"on_conflict": "drop"}, "on_conflict='drop' is not known"),
        ({"on_timeout": "drop"}, "on_timeout='drop' is not known"),
        ({"wait_for": -1}, "wait_for=-1 must be"),
        ({"key": ""}, "the key '' is not valid"),
        ({"key": None}, "the key None is not valid"),
    ],
)
def test_values_that_make_no_sense(values, text):
    """An unknown or invalid value is refused."""
    with pytest.raises(ConfigurationError) as refused:
        Rate(**{"key": "key", "limit": 1, "per": 1_000} | values)
    assert text in str(refused.value)
