"""Refuses messages that a test would really send, or whose jobs would go to another database."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import pytest
from dramatiq import Broker
from dramatiq.brokers.stub import StubBroker

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.middleware import JobLogMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dramatiq_joblog.joblog import JobLog

    from .broker import JobLogBroker


@contextlib.contextmanager
def refusing(why_not: Callable[[Broker], str | None]) -> Iterator[None]:
    """Call *why_not* before any broker enqueues a message; a text that it returns is the refusal.

    Every broker emits this signal before it sends; nothing else is common to all brokers.
    """
    emit = Broker.emit_before

    @functools.wraps(emit)
    def emit_before(self: Broker, signal: str, *args: Any, **kwargs: Any) -> None:
        reason = why_not(self) if signal == "enqueue" else None
        if reason is not None:
            raise ConfigurationError(reason)
        emit(self, signal, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Broker, "emit_before", emit_before)
        yield


def why_not_here(here: JobLogBroker, joblog: JobLog[Any], broker: Broker) -> str | None:
    """Return why *broker* must not send a message in a test whose broker is *here*.

    A stub broker that the test made itself may send, if it writes to no other log.
    """
    if broker is here:
        return None
    if isinstance(broker, StubBroker) and all(log is joblog for log in logs_of(broker)):
        return None
    return (
        f"this message would be sent by a {type(broker).__name__} and not by the broker of this "
        "test, which would not see it: import the application before the fixtures are made, such "
        "as at the top of the test module or of conftest.py; or override the fixture "
        "joblog_app_broker, if its actors are declared on another broker than Dramatiq's global one"
    )


def logs_of(broker: Broker) -> list[JobLog[Any]]:
    """Return the logs that a broker's middleware writes to."""
    return [m.joblog for m in broker.middleware if isinstance(m, JobLogMiddleware)]
