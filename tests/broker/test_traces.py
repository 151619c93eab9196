"""Traces of OpenTelemetry and Sentry, and aborts, on the rows."""

from __future__ import annotations

import sys
import threading

import dramatiq
import pytest
from dramatiq.middleware import Retries

from dramatiq_joblog import JobLog

SCRIPT = """
import sys
import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq_joblog import JobLog, JobLogMiddleware
{setup}
joblog = JobLog(sys.argv[1])
joblog.create_tables()
broker = StubBroker()
broker.add_middleware(JobLogMiddleware(joblog))
work = dramatiq.actor(lambda: None, actor_name="work", broker=broker)
{send}
worker = dramatiq.Worker(broker, worker_timeout=50)
worker.start()
broker.join("default")
worker.stop()
assert joblog.get(message.message_id).trace_id == expected, expected
joblog.close()
print("right", expected)
"""

TELEMETRY = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
tracer = trace.get_tracer("shop")
"""

IN_A_SPAN = """
with tracer.start_as_current_span("request") as span:
    message = work.send()
    expected = format(span.get_span_context().trace_id, "032x")
    assert len(expected) == 32
"""

SENTRY = """
import sentry_sdk
options = {"transport": lambda envelope: None, "traces_sample_rate": 1.0}
sentry_sdk.init(dsn="http://key@127.0.0.1:1/1", **options)
"""

IN_A_TRANSACTION = """
with sentry_sdk.start_transaction(name="request") as transaction:
    message = work.send()
    expected = transaction.trace_id
    assert len(expected) == 32
"""

NOT_TRACED = """
message = work.send()
expected = None
"""


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("setup", "send"),
    [
        pytest.param(TELEMETRY, IN_A_SPAN, id="opentelemetry", marks=pytest.mark.full),
        pytest.param(TELEMETRY, NOT_TRACED, id="opentelemetry-outside", marks=pytest.mark.full),
        pytest.param(SENTRY, IN_A_TRANSACTION, id="sentry", marks=pytest.mark.full),
        pytest.param(
            "import sentry_sdk", NOT_TRACED, id="sentry-not-set-up", marks=pytest.mark.full
        ),
        pytest.param("", NOT_TRACED + "assert 'sentry_sdk' not in sys.modules", id="none"),
    ],
)
def test_trace_id(sqlite_url, run_python, setup, send):
    """A job has the id of the trace that it was sent in, and none without tracing."""
    code = SCRIPT.format(setup=setup, send=send)
    done = run_python("-c", code, sqlite_url)
    assert done.stdout.startswith("right"), done.stderr
    assert 0 == done.returncode


def test_tracing_that_is_not_known(joblog, make_broker, monkeypatch):
    """An incompatible tracing library does not make ``send()`` fail."""
    make_broker("stub", "last", joblog=joblog)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", threading)

    message = dramatiq.actor(lambda: None, actor_name="work").send()

    assert joblog.get(message.message_id).trace_id is None


def test_an_aborted_job(sqlite_database, make_broker, worker):
    """It is dead as aborted, and not as failed; one that had not begun is skipped."""
    abort = pytest.importorskip("dramatiq_abort")
    backends = pytest.importorskip("dramatiq_abort.backends")
    log = JobLog(sqlite_database)
    abortable = abort.Abortable(backend=backends.StubBackend())
    stack = [Retries(max_retries=0), abortable]
    broker = make_broker("stub", "last", joblog=log, middleware=stack)
    begun = threading.Event()

    @dramatiq.actor
    def work():
        begun.set()
        for _ in range(600):
            threading.Event().wait(0.05)

    running = work.send()
    waiting = work.send()
    abort.abort(waiting.message_id, middleware=abortable)
    with worker(broker, worker_threads=1):
        assert begun.wait(30)
        abort.abort(running.message_id, middleware=abortable)
        broker.join("default", fail_fast=False, timeout=60_000)

    job = log.get(running.message_id)
    assert ("dead", "aborted", "Abort") == (job.state, job.dead_reason, job.error_type)
    job = log.get(waiting.message_id)
    assert ("skipped", "Abortable") == (job.state, job.skip_reason)
    log.close()
