"""However a waiting job ends, its wait ends, and is recorded with its runs."""

from __future__ import annotations

import dramatiq
import pytest
from dramatiq.middleware import MiddlewareError, SkipMessage, default_middleware

from dramatiq_joblog import Exclusive


class Gate(dramatiq.Middleware):
    """A third-party middleware that refuses everything once it is closed."""

    shut = None

    def before_process_message(self, broker, message):
        if self.shut == "skips":
            raise SkipMessage("not today")
        if self.shut == "fails":
            raise MiddlewareError("not today")
        if self.shut == "rejects":
            message.fail()
            raise SkipMessage("never")


@pytest.fixture(params=["first", "last"])
def broker(request, joblog, make_broker):
    """Return a broker with the log before, and behind, another middleware that refuses."""
    stack = [*(m() for m in default_middleware), Gate()]
    broker = make_broker("stub", request.param, joblog=joblog, middleware=stack)
    broker.fail_fast_default = False
    return broker


def work(broker, **options):
    exclusive = Exclusive("key", on_conflict="wait")
    return dramatiq.actor(lambda: None, actor_name="work", exclusive=exclusive, **options)


def check(joblog, jid, state, reason=None):
    job = joblog.get(jid)
    assert (state, reason, None) == (job.state, job.dead_reason, job.waiting_since)
    [waited] = [f for f in job.failures if f.outcome == "waited"]
    assert waited.finished_at >= waited.started_at
    assert not joblog.waiters("key").exists()


def test_by_its_age(joblog, broker, worker, eventually):
    """A waiter that exceeds its age limit is dead, and no longer waits."""
    actor = work(broker, max_age=1_000)
    with joblog.lock("key"), worker(broker):
        message = actor.send()
        eventually(joblog.jobs.waiting().exists)
        eventually(lambda: joblog.get(message.message_id).state == "dead")

    check(joblog, message.message_id, "dead", "age_limit")


@pytest.mark.parametrize(
    ("shut", "state"), [("skips", "skipped"), ("fails", "retrying"), ("rejects", "dead")]
)
def test_by_another_middleware(joblog, broker, worker, eventually, shut, state):
    """A waiter that another middleware drops, fails or rejects no longer waits."""
    actor = work(broker, min_backoff=60_000)
    gate = next(m for m in broker.middleware if isinstance(m, Gate))
    with worker(broker):
        with joblog.lock("key"):
            message = actor.send()
            eventually(joblog.jobs.waiting().exists)
            gate.shut = shut
        eventually(lambda: joblog.get(message.message_id).state == state)

    check(joblog, message.message_id, state, joblog.get(message.message_id).dead_reason)


def test_by_its_actor_being_gone(joblog, broker, worker, eventually):
    """A waiter whose actor is no longer declared is dead, and no longer waits."""
    actor = work(broker)
    with worker(broker):
        with joblog.lock("key"):
            message = actor.send()
            eventually(joblog.jobs.waiting().exists)
            del broker.actors["work"]
        eventually(lambda: joblog.get(message.message_id).state == "dead")

    check(joblog, message.message_id, "dead", "unknown_actor")
