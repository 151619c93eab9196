"""A log changes no behaviour: the same programs run the same with and without it.

More programs than by default: ``HYPOTHESIS_PROFILE=many`` in the environment.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field

import brokers
import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import dq_name, xq_name
from dramatiq.errors import Retry
from dramatiq.message import Message
from dramatiq.middleware import CurrentMessage, Middleware, SkipMessage, default_middleware
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dramatiq_joblog import JobLogMiddleware
from dramatiq_joblog.states import FINAL

MANY = os.environ.get("HYPOTHESIS_PROFILE") == "many"

#: What a run may do.
ENDS = ("works", "raises", "asks_for_a_retry", "skips")
AGAIN = ("no", "at_once", "delayed", "a_copy", "on_a_thread", "after_the_body", "after_the_ack")


@dataclass(frozen=True)
class Job:
    """What a job does, by the number of its retry; later retries do the same as the last."""

    ends: tuple[str, ...]
    again: str
    #: How often it enqueues its own message again, in all.
    times: int
    max_retries: int
    #: How many other messages each run sends.
    children: int


@dataclass(frozen=True)
class Program:
    """Messages, how they are sent, and what is done with the dead ones."""

    jobs: tuple[Job, ...]
    #: alone, group or pipeline.
    form: str
    delay: int | None
    #: How often the same messages are sent.
    sends: int
    #: Whether dead letters are put back once, and whether with their retries wiped.
    put_back: str
    #: For a log on Redis: of which runs, by number, the acknowledgement is lost.
    lost: frozenset[int]


jobs = st.builds(
    Job,
    ends=st.lists(st.sampled_from(ENDS), min_size=1, max_size=3).map(tuple),
    again=st.sampled_from(AGAIN),
    times=st.integers(0, 2),
    max_retries=st.integers(0, 2),
    children=st.integers(0, 1),
)
programs = st.builds(
    Program,
    jobs=st.lists(jobs, min_size=1, max_size=3).map(tuple),
    form=st.sampled_from(["alone", "group", "pipeline"]),
    delay=st.sampled_from([None, 20]),
    sends=st.integers(1, 2),
    put_back=st.sampled_from(["no", "wiped", "as_it_is"]),
    lost=st.frozensets(st.integers(0, 8), max_size=2),
)


@dataclass
class Record:
    """What ran."""

    #: By key, the retry that each run was of, in order.
    runs: dict = field(default_factory=lambda: defaultdict(list))
    enqueued_again: dict = field(default_factory=lambda: defaultdict(int))
    jids: dict = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class AfterBody(Middleware):
    """Enqueues messages again if their program says so, after the body or the acknowledgement."""

    def __init__(self, stage) -> None:
        self.stage = stage

    def after_process_message(self, broker, message, *, result=None, exception=None):
        self.stage.again(message, "after_the_body")

    def after_ack(self, broker, message):
        if not message.queue_name.endswith(".DQ"):
            self.stage.again(message, "after_the_ack")


class LosesAcks(Middleware):
    """Makes Redis redeliver some acknowledged messages."""

    def __init__(self, program) -> None:
        # What acts on each acknowledgement acts on that of a repetition too.
        acts = any(job.again == "after_the_ack" for job in program.jobs)
        self.left = set() if acts else set(program.lost)
        self.number = -1
        self.kept = threading.local()

    def before_ack(self, broker, message):
        self.kept.data = None
        if message.queue_name.endswith(".DQ"):
            return
        self.number += 1
        if self.number in self.left:
            key = f"{broker.namespace}:{message.queue_name}.msgs"
            self.kept.data = broker.client.hget(key, message.options["redis_message_id"])

    def after_ack(self, broker, message):
        data, self.kept.data = getattr(self.kept, "data", None), None
        if data is not None:
            name = f"{broker.namespace}:{message.queue_name}"
            broker.client.hset(f"{name}.msgs", message.options["redis_message_id"], data)
            broker.client.rpush(name, message.options["redis_message_id"])


class Stage:
    """Runs one program on its own broker."""

    def __init__(self, program, url, middleware) -> None:
        self.program, self.record = program, Record()
        self.queue = f"q{uuid.uuid4().hex[:8]}"
        stack = [m() for m in default_middleware if m.__name__ != "Prometheus"]
        stack += [CurrentMessage(), AfterBody(self), *middleware]
        self.broker = brokers.connect(url, namespace=self.queue, middleware=stack)
        options = {"broker": self.broker, "queue_name": self.queue}
        self.actor = dramatiq.actor(
            self.work, actor_name="work", min_backoff=10, max_backoff=20, **options
        )
        self.child = dramatiq.actor(self.count_child, actor_name="child", **options)

    def work(self, key, *_):
        message = CurrentMessage.get_current_message()
        job, retries = self.program.jobs[key], message.options.get("retries", 0)
        with self.record.lock:
            self.record.runs[key].append(retries)
        for _ in range(job.children):
            self.child.send(key)
        for how in ("at_once", "delayed", "a_copy", "on_a_thread"):
            self.again(message, how)
        end = job.ends[min(retries, len(job.ends) - 1)]
        if end == "raises":
            raise ValueError("row 7 is broken")
        if end == "asks_for_a_retry":
            raise Retry(delay=10)
        if end == "skips":
            raise SkipMessage("closed account")

    def count_child(self, key):
        with self.record.lock:
            self.record.runs["child", key].append(0)

    def again(self, message, how):
        if message.actor_name != "work" or how != self.program.jobs[message.args[0]].again:
            return
        key = message.args[0]
        with self.record.lock:
            if self.record.enqueued_again[key] == self.program.jobs[key].times:
                return
            self.record.enqueued_again[key] += 1
        # As it came: what ``Retries`` has noted on it is of the run before.
        copy = message.copy()
        if how == "on_a_thread":
            thread = threading.Thread(target=self.broker.enqueue, args=(copy,))
            thread.start()
            thread.join()
        elif how == "at_once":
            self.broker.enqueue(Message(**message.asdict()))
        else:
            self.broker.enqueue(copy, delay=20 if how == "delayed" else None)

    def send(self):
        messages = [
            self.actor.message_with_options(args=(key,), max_retries=job.max_retries)
            for key, job in enumerate(self.program.jobs)
        ]
        self.record.jids = {message.message_id: key for key, message in enumerate(messages)}
        delay = self.program.delay
        for _ in range(self.program.sends):
            if self.program.form == "group":
                dramatiq.group(messages, broker=self.broker).run(delay=delay)
            elif self.program.form == "pipeline" and len(messages) > 1:
                dramatiq.pipeline(messages, broker=self.broker).run(delay=delay)
            else:
                for message in messages:
                    self.broker.enqueue(message, delay=delay)

    def put_back(self):
        for message in self.dead_letters():
            options = {"retries": 0} if self.program.put_back == "wiped" else {}
            self.broker.enqueue(message.copy(options=options))

    def dead_letters(self):
        name = xq_name(self.queue)
        if isinstance(self.broker, RedisBroker):
            name = f"{self.broker.namespace}:{name}"
            found = list(self.broker.client.hvals(f"{name}.msgs"))
            self.broker.client.delete(f"{name}.msgs", name)
            return [Message.decode(data) for data in found]
        letters = []
        channel = self.broker.connection.channel()
        while True:
            method, _, body = channel.basic_get(name, auto_ack=True)
            if method is None:
                channel.close()
                return letters
            letters.append(Message.decode(body))

    def settle(self, worker):
        """Wait until nothing is left to run."""
        deadline, calm = time.monotonic() + 30, 0
        while calm < 3:
            assert time.monotonic() < deadline, "it does not come to rest"
            worker.join()
            calm = calm + 1 if self.is_empty() else 0
            threading.Event().wait(0.03)

    def is_empty(self):
        if isinstance(self.broker, RedisBroker):
            return self.broker.do_qsize(self.queue) == 0
        return sum(self.broker.get_queue_message_counts(self.queue)[:2]) == 0

    def run(self):
        worker = dramatiq.Worker(self.broker, worker_threads=1, worker_timeout=20)
        worker.start()
        try:
            self.send()
            self.settle(worker)
            if self.program.put_back != "no":
                self.put_back()
                self.settle(worker)
        finally:
            worker.stop(timeout=20_000)
            self.clear()
        return self.record

    def clear(self):
        if isinstance(self.broker, RedisBroker):
            for key in self.broker.client.scan_iter(f"{self.queue}:*"):
                self.broker.client.delete(key)
        else:
            channel = self.broker.connection.channel()
            for queue in (self.queue, dq_name(self.queue), xq_name(self.queue)):
                channel.queue_delete(queue)
        with contextlib.suppress(Exception):
            brokers.disconnect(self.broker)


def ran(record):
    return {key: sorted(runs) for key, runs in record.runs.items()}


def check_rows(joblog, record):
    """Each row has the state and the attempt of its last run, and all earlier runs are recorded."""
    for jid, key in record.jids.items():
        runs = record.runs.get(key)
        if not runs:
            continue
        job = joblog.get(jid)
        kept = [f for f in job.failures if f.started_at is not None]
        assert job.state in FINAL, (key, job.state)
        assert job.attempt == runs[-1] + 1
        own = {f.token for f in kept}
        assert len(runs) == len(kept) + (job.token not in own)
        tried = sorted([f.attempt for f in kept] + [job.attempt] * (job.token not in own))
        assert sorted(retries + 1 for retries in runs) == tried
        assert "interrupted" not in {f.outcome for f in kept}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", ["redis", "rabbit"])
def test_the_same_runs(joblog, request, kind):
    """Every message runs as often, and with the same retries, as without a log, and has a row."""
    url = request.getfixturevalue(f"{kind}_url")

    @settings(
        max_examples=100 if MANY else 6,
        deadline=None,
        derandomize=not MANY,
        suppress_health_check=list(HealthCheck),
    )
    @given(program=programs)
    def same(program):
        bare = Stage(program, url, []).run()
        middleware = [JobLogMiddleware(joblog)]
        if kind == "redis":
            middleware.append(LosesAcks(program))
        logged = Stage(program, url, middleware).run()
        assert ran(bare) == ran(logged)
        if len(bare.jids) and program.sends == 1 and all(j.again == "no" for j in program.jobs):
            # One delivery at a time: then the order is the program's as well.
            assert bare.runs == logged.runs
        check_rows(joblog, logged)

    same()
