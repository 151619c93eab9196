"""Third-party middleware and brokers work the same with a log, and rows are right."""

from __future__ import annotations

import threading
import uuid
from collections import Counter

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import Retry
from dramatiq.middleware import (
    AgeLimit,
    Middleware,
    MiddlewareError,
    Retries,
    SkipMessage,
    default_middleware,
)

from dramatiq_joblog import JobLogMiddleware

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Once(Middleware):
    """Does something to each key once."""

    def __init__(self) -> None:
        self.seen = set()

    def first(self, message):
        key = message.args[0]
        return key not in self.seen and not self.seen.add(key)


class CopiesUnderTheSameId(Once):
    """Runs each job that works once more, under its own id."""

    def after_process_message(self, broker, message, *, result=None, exception=None):
        if exception is None and self.first(message):
            broker.enqueue(message.copy())


class CopiesWithADelay(Once):
    """Runs each job that works once more, after a while."""

    def after_process_message(self, broker, message, *, result=None, exception=None):
        if exception is None and self.first(message):
            broker.enqueue(message.copy(), delay=20)


class CopiesUnderANewId(Once):
    """Runs each job that works once more, as another job."""

    def after_process_message(self, broker, message, *, result=None, exception=None):
        if exception is None and self.first(message):
            broker.enqueue(message.copy(message_id=str(uuid.uuid4())))


class SendsTwice(Once):
    """Sends each message twice."""

    def after_enqueue(self, broker, message, delay):
        if self.first(message):
            broker.enqueue(message.copy())


class Throttle(Once):
    """Requeues each job with a delay, at first."""

    def before_process_message(self, broker, message):
        if self.first(message):
            broker.enqueue(message.copy(), delay=20)
            raise SkipMessage("later")


class Refuses(Once):
    """Fails each job before its body, at first."""

    def before_process_message(self, broker, message):
        if self.first(message):
            raise MiddlewareError("not now")


class Fails(Middleware):
    """Rejects a job that has worked."""

    def after_process_message(self, broker, message, *, result=None, exception=None):
        if message.args[0] == "works":
            message.fail()


class PutsBack(Once):
    """Requeues each dead letter once."""

    def after_nack(self, broker, message):
        if self.first(message):
            broker.enqueue(message.copy(options={"retries": 0}))


class SetsOptions(Middleware):
    """Adds options to each message when it is enqueued, one of them None."""

    def before_enqueue(self, broker, message, delay):
        message.options.update(max_retries=1, job_type="late", log_lines="LOUD")


class CopiesToRetry(Retries):
    """Retries at once."""

    def after_process_message(self, broker, message, *, result=None, exception=None):
        if exception is None:
            return
        retries = message.options.get("retries", 0) + 1
        if retries > 2:
            message.fail()
        else:
            broker.enqueue(message.copy(options={"retries": retries}))


class CountsElsewhere(Retries):
    """Counts its attempts under its own name."""

    def after_process_message(self, broker, message, *, result=None, exception=None):
        if exception is None:
            return
        tries = message.options.get("tries", 0) + 1
        if tries > 2:
            message.fail()
        else:
            broker.enqueue(message.copy(options={"tries": tries}), delay=10)


class GivesUpOnKeys(Retries):
    """Retries some errors and not others."""

    def after_process_message(self, broker, message, *, result=None, exception=None):
        if isinstance(exception, KeyError):
            message.fail()
        else:
            super().after_process_message(broker, message, result=result, exception=exception)


class CopyingBroker(StubBroker):
    """Enqueues a copy of what it is given."""

    def enqueue(self, message, *, delay=None):
        return super().enqueue(message.copy(options={"trace": "t"}), delay=delay)


class NamingBroker(StubBroker):
    """Gives each message a new id."""

    def enqueue(self, message, *, delay=None):
        if "named" not in message.options:
            order = f"order:{message.message_id}"
            message = message.copy(message_id=order, options={"named": True})
        return super().enqueue(message, delay=delay)


OTHERS = [
    CopiesUnderTheSameId,
    CopiesWithADelay,
    CopiesUnderANewId,
    SendsTwice,
    Throttle,
    Refuses,
    Fails,
    PutsBack,
    SetsOptions,
    CopiesToRetry,
    CountsElsewhere,
    GivesUpOnKeys,
]


def run(other, *, joblog=None, first=False, kind=StubBroker):
    """Run the same few jobs beside another middleware; return how often each has run."""
    stack = [m() for m in default_middleware if m.__name__ != "Prometheus"]
    if issubclass(other, Retries):
        stack = [m for m in stack if not isinstance(m, Retries)]
    stack.append(other())
    if joblog is not None:
        stack.insert(0 if first else len(stack), JobLogMiddleware(joblog))
    broker = kind(middleware=stack)
    broker.emit_after("process_boot")
    runs, lock = Counter(), threading.Lock()

    @dramatiq.actor(broker=broker, max_retries=2, min_backoff=5, max_backoff=10)
    def work(key):
        with lock:
            runs[key] += 1
            number = runs[key]
        if key == "fails" or (key == "flaky" and number == 1):
            raise KeyError(key)
        if key == "asks" and number == 1:
            raise Retry(delay=5)
        if key == "skips":
            raise SkipMessage("closed account")

    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=10)
    worker.start()
    for key in ("works", "flaky", "asks", "fails", "skips"):
        work.send(key)
    work.send_with_options(args=("delayed",), delay=10)
    for _ in range(3):
        broker.join("default", fail_fast=False, timeout=20_000)
        worker.join()
    worker.stop()
    broker.close()
    return runs


def check_rows(joblog, runs):
    """No job is left open, and each run is on a row."""
    joblog.core.writer.flush()
    told = Counter()
    for job in joblog.jobs:
        kept = [f for f in job.failures if f.started_at is not None]
        own = {f.token for f in kept}
        assert job.state in {"finished", "dead", "skipped"}, (job.args, job.state)
        assert "interrupted" not in {f.outcome for f in kept}
        told[job.args[0]] += len(kept) + (job.started_at is not None and job.token not in own)
    assert {key: number for key, number in told.items() if number} == runs


@pytest.mark.few(12)
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("first", [True, False])
def test_the_same_runs_beside_other_middleware(joblog, other, first):
    """Middleware that copies, refuses, drops or retries has the same effect as without a log."""
    logged = run(other, joblog=joblog, first=first)
    assert run(other) == logged
    check_rows(joblog, logged)


@pytest.mark.parametrize("kind", [CopyingBroker, NamingBroker])
def test_the_same_runs_on_other_brokers(joblog, kind):
    """A broker that changes messages when they are enqueued runs them like without a log."""
    logged = run(Once, joblog=joblog, kind=kind)
    assert run(Once, kind=kind) == logged
    check_rows(joblog, logged)


class Odd(Middleware):
    """Defines its hook in an unusual way."""

    def before_process_message(this, broker, message):  # noqa: N805
        raise SkipMessage("holiday")


class Hooked(Middleware):
    """Inherits its hook."""

    def __init__(self) -> None:
        self.before_process_message = self.check

    def check(self, broker, message):
        raise SkipMessage("holiday")


class Called(Middleware):
    """Calls another."""

    def before_process_message(self, broker, message):
        Odd().before_process_message(broker, message)


class EmittingBroker(StubBroker):
    """Emits signals itself."""

    def emit_before(self, signal, *args, **kwargs):
        super().emit_before(signal, *args, **kwargs)


@pytest.mark.parametrize(("gate", "name"), [(Odd, "Odd"), (Hooked, "Hooked"), (Called, "Odd")])
@pytest.mark.parametrize("kind", [StubBroker, EmittingBroker])
def test_who_dropped_a_job(joblog, worker, gate, name, kind):
    """The skip reason names the middleware, however its hook and its broker are written."""
    broker = kind(middleware=[gate(), JobLogMiddleware(joblog)])
    broker.emit_after("process_boot")
    message = dramatiq.actor(print, actor_name="work", broker=broker).send("x")
    with worker(broker):
        broker.join("default", fail_fast=False, timeout=20_000)
    job = joblog.get(message.message_id)
    assert ("skipped", f"{name}: holiday", None) == (job.state, job.skip_reason, job.started_at)


class OwnLimit(AgeLimit):
    """A limit of the user."""


def test_a_subclass_of_the_age_limit(joblog, worker):
    """It counts as the age limit."""
    broker = StubBroker(middleware=[OwnLimit(max_age=1), JobLogMiddleware(joblog)])
    broker.emit_after("process_boot")
    work = dramatiq.actor(print, actor_name="work", broker=broker)
    message = work.message("x").copy(message_timestamp=1_700_000_000_000)
    broker.enqueue(message)
    with worker(broker):
        broker.join("default", fail_fast=False, timeout=20_000)
    job = joblog.get(message.message_id)
    assert ("dead", "age_limit") == (job.state, job.dead_reason)
