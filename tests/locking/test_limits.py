"""Limits of sections when the code changes."""

from __future__ import annotations

import threading
from dataclasses import asdict

import dramatiq
import pytest

from dramatiq_joblog import ConfigurationError, Exclusive, LockNotAcquired, Rate
from dramatiq_joblog.broker.options import SECTION


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    return make_broker("stub", "last", joblog=joblog)


def test_a_limit_that_was_raised(joblog, broker, worker, eventually):
    """Waiting jobs use the limit of the running code, not that of the sender."""
    inside, go = [], threading.Event()

    def stay(n):
        inside.append(n)
        go.wait(30)

    work = dramatiq.actor(stay, exclusive=Exclusive("key", limit=1, on_conflict="wait"))
    with worker(broker, worker_threads=8):
        for n in range(5):
            work.send(n)
        eventually(lambda: len(inside) == 1 and joblog.jobs.waiting().count() == 4)
        # As a deploy does.
        work.options["exclusive"] = Exclusive("key", limit=4, on_conflict="wait")
        eventually(lambda: len(inside) == 4)
        assert 1 == joblog.jobs.waiting().count()
        go.set()
        eventually(lambda: joblog.jobs.finished().count() == 5)


@pytest.mark.parametrize("lower", [1, 2])
def test_a_limit_that_was_lowered(joblog, lower):
    """A lower limit applies to jobs that have it, even if jobs with a higher one are inside."""
    blocks = [joblog.lock("key", limit=4) for _ in range(3)]
    for block in blocks:
        block.__enter__()
    # The first slots are free, and others are held.
    free = lower
    for block in blocks[:free]:
        block.__exit__(None, None, None)
    held = 3 - free
    claimed = []
    for n in range(lower):
        try:
            block = joblog.lock("key", limit=lower)
            block.__enter__()
        except LockNotAcquired:
            continue
        claimed.append(n)
        blocks.append(block)
    assert max(0, lower - held) == len(claimed)
    for block in blocks[free:]:
        block.__exit__(None, None, None)
    with joblog.lock("key", limit=lower):
        pass


@pytest.mark.parametrize(
    "malformed", [None, 7, "key", [], {}, {"key": 7}, {"key": "key", "limit": "many"}]
)
def test_a_section_that_nobody_understands(joblog, broker, worker, malformed, eventually):
    """A message in the delay queue with a malformed section keeps no waiter from its section."""
    work = dramatiq.actor(
        lambda: None, actor_name="work", exclusive=Exclusive("key", on_conflict="wait")
    )
    odd = work.message().copy(queue_name="default.DQ", options={"joblog_waits": True})
    odd.options.update({SECTION: malformed, "eta": 4 * 10**12})
    with worker(broker):
        broker.queues["default.DQ"].put(odd.encode())
        with joblog.lock("key"):
            message = work.send()
            eventually(joblog.jobs.waiting().exists)
        eventually(lambda: joblog.get(message.message_id).state == "finished")


def test_what_is_frozen_is_the_key(joblog, broker):
    """Everything of a section except its key follows the code that handles the message next."""
    key = iter("ab")
    work = dramatiq.actor(
        lambda: None, actor_name="work", exclusive=Exclusive(lambda: next(key), ttl=5_000)
    )
    message = work.send()
    work.options["exclusive"] = Exclusive("other", limit=3, on_conflict="wait", ttl=7_000)
    broker.enqueue(message)

    expected = asdict(Exclusive("a", limit=3, on_conflict="wait", ttl=7_000))
    assert expected.items() <= message.options[SECTION].items()


# A callable


def test_asked_at_each_try(joblog, broker, worker, eventually):
    """A callable limit is called at each attempt, with the arguments that it names."""
    asked, inside, go = [], [], threading.Event()
    limits = {7: 1, 8: 2}

    def limit(shop, plan="free"):
        asked.append((shop, plan))
        return limits[shop]

    def stay(n, *, shop, plan="basic"):
        inside.append(shop)
        go.wait(30)

    work = dramatiq.actor(
        stay, actor_name="work", exclusive=Exclusive("{shop}", limit=limit, on_conflict="wait")
    )
    with worker(broker, worker_threads=8):
        for n in range(3):
            work.send(n, shop=7)
            work.send_with_options(args=(n,), kwargs={"shop": 8, "plan": "big"})
        eventually(lambda: len(inside) == 3 and joblog.jobs.waiting().count() == 3)
        assert [7, 8, 8] == sorted(inside)
        assert {(7, "basic"), (8, "big")} == set(asked)
        # Those that wait come to know of it.
        limits[7] = 3
        eventually(lambda: inside.count(7) == 3)
        go.set()
        eventually(lambda: joblog.jobs.finished().count() == 6)


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (lambda: 1 / 0, "its limit could not be determined: ZeroDivisionError: division by zero"),
        (lambda: "2", "its limit is '2', and must be a whole number of at least 0"),
        (lambda: None, "its limit is None, and must be"),
        (lambda: True, "its limit is True, and must be"),
        (lambda: -1, "its limit is -1, and must be"),
        (lambda: 1.0, "its limit is 1.0, and must be"),
        (lambda: 2**31, "its limit is 2147483648, and must be"),
    ],
)
@pytest.mark.parametrize("kind", ["section", "rate"])
def test_a_limit_that_is_none(joblog, broker, worker, eventually, limit, text, kind):
    """A callable that raises, or returns an invalid limit, fails the job, as its row says."""
    ran = []
    need = Exclusive("key", limit) if kind == "section" else Rate("key", limit, per=1_000)
    broker.fail_fast_default = False

    @dramatiq.actor(exclusive=need, max_retries=1, min_backoff=10, max_backoff=20)
    def work(number):
        ran.append(number)

    with worker(broker):
        message = work.send(1)
        eventually(lambda: joblog.get(message.message_id).state == "dead")
    job = joblog.get(message.message_id)
    assert text in job.error_message
    assert ("ConfigurationError", 2) == (job.error_type, job.attempt)
    assert [] == ran


class Number:
    """An integer of another library, like numpy's."""

    def __index__(self):
        return 2


def test_a_limit_of_another_librarys_numbers(joblog, broker, worker, eventually):
    """A callable may return an integer of any type."""
    actor = dramatiq.actor(lambda: None, actor_name="work", exclusive=Exclusive("key", Number))
    with worker(broker):
        message = actor.send()
        eventually(lambda: joblog.get(message.message_id).state == "finished")


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (
            lambda user: 1,
            "has a limit that needs 'user', which is not one of its parameters (shop)",
        ),
        (lambda shop, /: 1, "has a limit that needs 'shop'"),
        (-1, "limit=-1 must be a whole number of at least 1"),
        ("2", "limit='2' must be"),
    ],
)
def test_a_limit_that_cannot_be_asked(broker, limit, text):
    """A limit with an unknown parameter is refused when the actor is declared."""
    with pytest.raises(ConfigurationError) as refused:
        dramatiq.actor(lambda shop: None, actor_name="work", exclusive=Exclusive("key", limit))
    assert text in str(refused.value)


def test_two_callables_for_one_key(joblog, broker, worker, eventually):
    """Each of two actors with one key waits by what its own callable returned."""
    wide, narrow = (
        dramatiq.actor(
            lambda: None,
            actor_name=name,
            exclusive=Exclusive("key", lambda limit=limit: limit, on_conflict="wait"),
        )
        for name, limit in (("wide", 4), ("narrow", 1))
    )
    with worker(broker):
        with joblog.lock("key", limit=4), joblog.lock("key", limit=4):
            first = narrow.send()
            eventually(lambda: joblog.get(first.message_id).state == "waiting")
            with joblog.lock("key", limit=4):
                second = wide.send()
                eventually(lambda: joblog.get(second.message_id).state == "waiting")
                # The narrow one is tried again meanwhile.
                before = joblog.get(first.message_id).updated_at
                eventually(lambda: joblog.get(first.message_id).updated_at > before)
            eventually(lambda: joblog.get(second.message_id).state == "finished")
            assert "waiting" == joblog.get(first.message_id).state
        eventually(lambda: joblog.get(first.message_id).state == "finished")


class _AsyncObject:
    async def __call__(self):
        return 1


async def _asks():
    return 1


@pytest.mark.parametrize("function", [_asks, _AsyncObject()])
@pytest.mark.parametrize("option", ["limit", "exclusive", "unique"])
def test_async_callables_are_refused(broker, function, option):
    """What returns a coroutine is refused as a limit and as a key."""
    options = {option: Exclusive("key", function) if option == "limit" else function}
    options["exclusive"] = options.pop("limit", options.get("exclusive"))
    with pytest.raises(ConfigurationError, match="must not be async"):
        dramatiq.actor(lambda: None, actor_name="work", **options)


def test_a_callable_does_not_travel(broker):
    """A message's own limit must be a number."""
    work = dramatiq.actor(lambda: None, actor_name="work")
    with pytest.raises(ConfigurationError, match="cannot travel with it"):
        work.send_with_options(exclusive=Exclusive("key", lambda: 1))


def test_a_limit_of_a_class(joblog, broker, worker, eventually):
    """For a class-based actor, the names of ``perform``'s parameters are used."""
    asked = []

    class Work(dramatiq.GenericActor):
        class Meta:
            exclusive = Exclusive("{shop}", lambda shop: asked.append(shop) or 1)

        def perform(self, shop):
            pass

    with worker(broker):
        message = Work.send(3)
        eventually(lambda: joblog.get(message.message_id).state == "finished")
    assert [3] == asked


def test_two_limits_on_one_key(joblog, broker, worker, eventually):
    """Of two actors with one key, each uses its own limit: the lower one applies to its jobs."""
    go, inside = threading.Event(), []

    def stay(name):
        inside.append(name)
        go.wait(30)

    wide, narrow = (
        dramatiq.actor(
            stay, actor_name=name, exclusive=Exclusive("key", limit=limit, on_conflict="skip")
        )
        for name, limit in (("wide", 3), ("narrow", 1))
    )
    with worker(broker, worker_threads=8):
        wide.send("wide")
        eventually(lambda: inside == ["wide"])
        refused = narrow.send("narrow")
        eventually(lambda: joblog.get(refused.message_id).state == "skipped")
        wide.send("wide")
        eventually(lambda: inside == ["wide", "wide"])
        go.set()
        eventually(lambda: joblog.locks.count() == 0)
        message = narrow.send("narrow")
        eventually(lambda: joblog.get(message.message_id).state == "finished")


def test_the_smaller_limit_waits_in_peace(joblog, make_broker, worker, eventually, monkeypatch):
    """A job that waits by the lower limit is not tried while only the higher one has room."""
    broker = make_broker("stub", "last", joblog=joblog)
    wide, narrow = (
        dramatiq.actor(
            lambda: None,
            actor_name=name,
            exclusive=Exclusive("key", limit=limit, on_conflict="wait"),
        )
        for name, limit in (("wide", 4), ("narrow", 1))
    )
    locks, writer, looks, starts = joblog.core.locks, joblog.core.writer, [], []
    usage, submit = locks.holders.usage, writer._submit

    def looking(keys):
        looks.append(keys)
        return usage(keys)

    def submitting(event, **how):
        starts.extend([event.row["actor"]] if getattr(event, "kind", None) == "start" else [])
        return submit(event, **how)

    with worker(broker):
        with joblog.lock("key", limit=4), joblog.lock("key", limit=4):
            first = narrow.send()
            eventually(lambda: joblog.get(first.message_id).state == "waiting")
            with joblog.lock("key", limit=4):
                second = wide.send()
                eventually(lambda: joblog.get(second.message_id).state == "waiting")
                monkeypatch.setattr(locks.holders, "usage", looking)
                monkeypatch.setattr(writer, "_submit", submitting)
                eventually(lambda: len(looks) > 20)
                assert [] == starts
            eventually(lambda: joblog.get(second.message_id).state == "finished")
        eventually(lambda: joblog.get(first.message_id).state == "finished")


def test_a_limit_of_nothing(joblog, broker, worker, eventually):
    """A callable that returns 0 blocks the key, until it returns more."""
    limit = [0]
    work = dramatiq.actor(
        lambda: None,
        actor_name="work",
        exclusive=Exclusive("key", lambda: limit[0], on_conflict="wait"),
    )
    with worker(broker):
        message = work.send()
        eventually(lambda: joblog.get(message.message_id).state == "waiting")
        limit[0] = 1
        eventually(lambda: joblog.get(message.message_id).state == "finished")
