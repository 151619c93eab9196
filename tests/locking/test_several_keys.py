"""Jobs that need several keys: all or none, in one order, released together."""

from __future__ import annotations

import threading

import dramatiq
import pytest

from dramatiq_joblog import ConfigurationError, Exclusive, Rate, current_job


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    broker = make_broker("stub", "last", joblog=joblog)
    broker.fail_fast_default = False
    return broker


class Inside:
    """The holders of each key."""

    def __init__(self):
        self.lock = threading.Lock()
        self.of = {}
        self.most = {}
        self.entered, self.go = threading.Event(), threading.Event()

    def stay(self, keys, seconds=30):
        with self.lock:
            for key in keys:
                self.of[key] = self.of.get(key, 0) + 1
                self.most[key] = max(self.most.get(key, 0), self.of[key])
        self.entered.set()
        self.go.wait(seconds)
        with self.lock:
            for key in keys:
                self.of[key] -= 1


@pytest.fixture
def inside():
    """Return the record of holders; all are finally released."""
    inside = Inside()
    yield inside
    inside.go.set()


def test_all_or_none(joblog, broker, worker, eventually, inside):
    """A job that finds one of its keys held holds none of them, and names the key."""
    both = dramatiq.actor(
        lambda: None, actor_name="both", exclusive=["a", Exclusive("b", on_conflict="skip")]
    )
    with worker(broker):
        with joblog.lock("b"):
            skipped = both.send()
            eventually(lambda: joblog.get(skipped.message_id).state == "skipped")
            assert ["b"] == [lock.key for lock in joblog.locks]
        done = both.send()
        eventually(lambda: joblog.get(done.message_id).state == "finished")

    assert "section 'b' is held by" in joblog.get(skipped.message_id).skip_reason
    assert 0 == joblog.locks.count()


@pytest.mark.parametrize("outcome", ["finished", "dead", "skipped"])
def test_freed_together(joblog, broker, worker, eventually, outcome):
    """All keys are held while the body runs, each with a fence, and released at the job's end."""
    seen = []

    @dramatiq.actor(exclusive=["b", "a", Exclusive("c", limit=3)], max_retries=0)
    def work():
        seen.append((sorted(lock.key for lock in joblog.locks), current_job().fences))
        if outcome == "dead":
            raise ValueError
        if outcome == "skipped":
            raise dramatiq.middleware.SkipMessage

    with worker(broker):
        message = work.send()
        eventually(lambda: joblog.get(message.message_id).state == outcome)

    [(keys, fences)] = seen
    assert ["a", "b", "c"] == keys
    assert ["b", "a", "c"] == list(fences)
    assert 0 == joblog.locks.count()
    assert "b" == joblog.get(message.message_id).section


def test_kept_or_freed_between_runs(joblog, broker, worker, eventually):
    """Between two runs, each key is kept according to its own ``hold``."""

    @dramatiq.actor(
        exclusive=[Exclusive("kept"), Exclusive("freed", hold="run")],
        max_retries=1,
        min_backoff=1_000,
        max_backoff=1_100,
    )
    def work():
        raise ValueError

    with worker(broker):
        message = work.send()
        eventually(lambda: joblog.get(message.message_id).state == "retrying")
        assert ["kept"] == [lock.key for lock in joblog.locks]
        eventually(lambda: joblog.get(message.message_id).state == "dead")
    assert 0 == joblog.locks.count()


def test_crossed_keys(joblog, broker, worker, eventually):
    """Jobs that name the same keys in any order all run, never two with one key at once."""
    inside = Inside()

    def body(*keys):
        inside.stay(keys, 0.002)

    orders = [("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a"), ("b", "a"), ("c",)]
    actors = [
        dramatiq.actor(
            lambda n, keys=keys: body(*keys),
            actor_name="".join(keys),
            exclusive=[Exclusive(key, on_conflict="wait") for key in keys],
        )
        for keys in orders
    ]
    with worker(broker, worker_threads=8):
        for n in range(3):
            for actor in actors:
                actor.send(n)
        eventually(lambda: joblog.jobs.finished().count() == 15)

    assert {1} == set(inside.most.values())
    assert 0 == joblog.Lock.select().where(joblog.Lock.kind == "wait").count()


def test_nobody_starves(joblog, broker, worker, eventually):
    """A job that needs two keys runs, however many others need either of them."""
    stop = threading.Event()
    single = {
        key: dramatiq.actor(
            lambda n: stop.wait(0.01),
            actor_name=f"only_{key}",
            exclusive=Exclusive(key, on_conflict="wait"),
        )
        for key in "ab"
    }
    both = dramatiq.actor(
        lambda: None,
        actor_name="both",
        exclusive=[Exclusive(key, on_conflict="wait") for key in "ab"],
    )

    def feed():
        n = 0
        while not stop.is_set():
            if joblog.jobs.in_state("enqueued", "waiting", "delayed").count() < 8:
                for actor in single.values():
                    actor.send(n)
                    n += 1
            stop.wait(0.01)
        joblog.release()

    feeder = threading.Thread(target=feed)
    with worker(broker, worker_threads=4):
        feeder.start()
        eventually(lambda: joblog.jobs.waiting().count() > 2)
        message = both.send()
        eventually(lambda: joblog.get(message.message_id).state == "finished", timeout=20)
        stop.set()
        feeder.join()


def test_a_narrow_key_holds_nobody_up(joblog, broker, worker, eventually, inside):
    """Jobs that wait for their own key do not block a key that all share."""

    def body(user):
        if user == 7:
            inside.stay(["7"])

    work = dramatiq.actor(
        body,
        actor_name="work",
        exclusive=[
            Exclusive("all", limit=3, on_conflict="wait"),
            Exclusive("user:{user}", on_conflict="wait"),
        ],
    )
    with worker(broker, worker_threads=8):
        for _ in range(6):
            work.send(7)
        assert inside.entered.wait(10)
        eventually(lambda: joblog.jobs.waiting().count() == 5)
        others = [work.send(n).message_id for n in (8, 9, 8)]
        eventually(lambda: all(joblog.get(jid).state == "finished" for jid in others))
        assert {"user:7"} == {job.section for job in joblog.jobs.waiting()}
        inside.go.set()
        eventually(lambda: joblog.jobs.finished().count() == 9)
    assert {"7": 1} == inside.most


def test_two_copies_of_one_message(joblog, broker, worker, eventually, inside, caplog):
    """A second copy of a message waits for all keys of the first, and runs after it."""
    runs = []

    @dramatiq.actor(exclusive=["a", "b"])
    def work():
        runs.append(1)
        inside.stay("x")

    with worker(broker):
        message = work.message()
        broker.enqueue(message)
        assert inside.entered.wait(10)
        assert ["a", "b"] == sorted(lock.key for lock in joblog.locks)
        # A later start of the same job, as of a redelivery.
        broker.enqueue(message.copy())
        eventually(lambda: "was skipped" in caplog.text)
        assert [1] == runs
        inside.go.set()
        eventually(lambda: runs == [1, 1], timeout=20)


def test_more_keys_since(joblog, broker, worker, eventually):
    """A message sent with one key also gets the keys that the code has added since."""
    held = []
    work = dramatiq.actor(
        lambda: held.append(sorted(lock.key for lock in joblog.locks)),
        actor_name="work",
        exclusive="a",
    )
    message = work.send()
    work.options["exclusive"] = ["other", Exclusive("b"), Rate("c", 5, per=1_000)]
    with worker(broker):
        eventually(lambda: joblog.get(message.message_id).state == "finished")
    # The first keeps its key, as keys are made once.
    assert [["a", "b"]] == held


@pytest.mark.parametrize("own", [["x", "y"], [Exclusive("x"), {"key": "y", "limit": 2}]])
def test_of_the_message_alone(joblog, broker, worker, eventually, own):
    """A message may have several keys, which override its actor's."""
    held = []
    work = dramatiq.actor(
        lambda: held.append(sorted(lock.key for lock in joblog.locks)),
        actor_name="work",
        exclusive="a",
    )
    with worker(broker):
        message = work.send_with_options(exclusive=own)
        eventually(lambda: joblog.get(message.message_id).state == "finished")
        again = joblog.requeue(message.message_id)
        eventually(lambda: joblog.get(again.message_id).state == "finished")
    assert [["x", "y"]] * 2 == held


@pytest.mark.parametrize(
    ("exclusive", "text"),
    [
        (["a", "a"], "needs the key 'a' twice"),
        (["a", Rate("a", 1, per=1)], "needs the key 'a' twice"),
        (["a", 7], "exclusive=7: a key or Exclusive(...) is needed"),
        (["a", "{b}"], "'b' is not one of its parameters"),
        ([[None]], "a key or Exclusive(...) is needed"),
        ([""], "the key '' is not valid"),
    ],
)
def test_what_cannot_be(broker, exclusive, text):
    """A list with a duplicate or invalid key is refused when the actor is declared."""
    with pytest.raises(ConfigurationError) as refused:
        dramatiq.actor(lambda a: None, actor_name="work", exclusive=exclusive)
    assert text in str(refused.value)


def test_twice_by_its_arguments(joblog, broker):
    """A message whose arguments yield a duplicate key is not sent."""
    work = dramatiq.actor(lambda a, b: None, actor_name="work", exclusive=["{a}", "{b}"])
    with pytest.raises(ConfigurationError, match="needs the key '1' twice"):
        work.send(1, 1)
    work.send(1, 2)
