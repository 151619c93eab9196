"""Patched commands of a broker are still called with a log."""

from __future__ import annotations

import dramatiq
import pytest
from dramatiq import errors
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries

from dramatiq_joblog import JobLogMiddleware
from dramatiq_joblog.broker.acks import why_not

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class CountingBroker(RedisBroker):
    """A broker with its own command."""

    acknowledged = 0

    def do_ack(self, *args):
        self.acknowledged += 1
        return self.__getattr__("do_ack")(*args)


def test_a_command_of_a_subclass(joblog, make_broker, worker, redis_url):
    """Acknowledgements use the broker's own command, if it has one."""
    broker = CountingBroker(url=redis_url, namespace="counting", middleware=[Retries()])
    broker.add_middleware(JobLogMiddleware(joblog))
    assert "CountingBroker has a do_ack of its own" == why_not(broker)
    message = dramatiq.actor(print, actor_name="work", broker=broker).send()
    with worker(broker):
        broker.join("default", timeout=20_000)
    assert 1 == broker.acknowledged
    assert "finished" == joblog.get(message.message_id).state
    broker.close()


@pytest.mark.few(1)
@pytest.mark.parametrize(("command", "state"), [("do_ack", "finished"), ("do_nack", "dead")])
def test_a_command_that_is_wrapped_later(joblog, make_broker, worker, command, state):
    """A command that is patched while the worker runs is called, and retried if it fails."""
    broker = make_broker("redis", joblog=joblog)

    @dramatiq.actor(max_retries=0)
    def work(fails):
        if fails:
            raise ValueError

    # Dramatiq 1 has it by another name.
    cut_off = getattr(errors, "BrokerConnectionError", None) or errors.ConnectionError
    done = getattr(broker, command)
    asked = []

    def instrumented(*args):
        asked.append(joblog.get(message.message_id).state)
        result = done(*args)
        if len(asked) == 1:
            raise cut_off("cut off")
        return result

    with worker(broker):
        setattr(broker, command, instrumented)
        message = work.send(command == "do_nack")
        broker.join("default", timeout=20_000)
    delattr(broker, command)
    assert [state, state] == asked
