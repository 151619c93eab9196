"""An application's log and broker, moved to a place that belongs to the test."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
from typing import TYPE_CHECKING, Any

import dramatiq
import dramatiq.broker
from dramatiq.middleware import default_middleware
from dramatiq.results import Results

from dramatiq_joblog.joblog import JobLog, moved
from dramatiq_joblog.middleware import JobLogMiddleware
from dramatiq_joblog.schema.models import Job

from .broker import JobLogBroker, is_left
from .django import has_test_databases, moved_to_test_database
from .guard import refusing, why_not_here

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pytest
    from dramatiq import Broker
    from dramatiq.middleware import Middleware


@contextlib.contextmanager
def log_of_test(
    request: pytest.FixtureRequest, app_broker: Broker | None, folder: Path
) -> Iterator[JobLog[Any]]:
    """Move the log of *app_broker*, or make one, with its files in *folder*."""
    stack = _middleware_of(app_broker)
    app_log = next((m.joblog for m in stack if isinstance(m, JobLogMiddleware)), None)
    spool = folder / "spool"
    if app_log is None or not (_has_own_model(app_log) or _is_of_django(app_log, request)):
        url = f"sqlite:///{folder / 'joblog.db'}"
        with (
            contextlib.nullcontext(JobLog(url, spool=spool))
            if app_log is None
            else moved(app_log, url, spool=spool)
        ) as log:
            log.create_tables()
            try:
                yield log
            finally:
                log.close()
        return
    # Spooled events on this host belong to the application's own database.
    app_log.close()
    with (
        moved_to_test_database(request, app_log.database) as is_of_tests,
        _bound_again(app_log.Job),
        moved(app_log, app_log.database, model=app_log.Job, spool=spool),
    ):
        app_log.create_tables()
        if is_of_tests:
            _empty(app_log)
        try:
            yield app_log
        finally:
            app_log.close()


@contextlib.contextmanager
def broker_of_test(joblog: JobLog[Any], app_broker: Broker | None) -> Iterator[JobLogBroker]:
    """Put a broker in memory in the place of *app_broker*, and refuse messages to any other."""
    broker = JobLogBroker(_moved(_middleware_of(app_broker), joblog))
    before = dramatiq.broker.global_broker
    home = app_broker
    homes = {} if home is None else dict.fromkeys(home.actors.values(), home)
    dramatiq.set_broker(broker)
    try:
        for actor in homes:
            actor.broker = broker
            broker.declare_actor(actor)
        with refusing(functools.partial(why_not_here, broker, joblog)):
            yield broker
    finally:
        for actor, its_own in homes.items():
            actor.broker = its_own
        broker.close()
        dramatiq.broker.global_broker = before


def _is_of_django(log: JobLog[Any], request: pytest.FixtureRequest) -> bool:
    return log.django_alias is not None and has_test_databases(request)


def _has_own_model(log: JobLog[Any]) -> bool:
    return bool(log.Job.__module__ != Job.__module__)


@contextlib.contextmanager
def _bound_again(model: Any) -> Iterator[None]:
    """Bind a model to its previous log again."""
    before = model.bond()
    try:
        yield
    finally:
        model.join(before)


def _empty(log: JobLog[Any]) -> None:
    """Delete the rows that an earlier test left in the log's tables."""
    for model in log.models:
        model.delete().execute()


def _middleware_of(broker: Broker | None) -> Sequence[Middleware]:
    return [make() for make in default_middleware] if broker is None else broker.middleware


def _moved(stack: Sequence[Middleware], joblog: JobLog[Any]) -> list[Middleware]:
    """Return a copy of the middleware *stack* that writes to the log of the test."""
    moved: list[Middleware] = []
    for middleware in stack:
        if isinstance(middleware, JobLogMiddleware):
            settings = dict(middleware.settings)
            if settings["acks"] == "handed":
                # Only possible with Redis; refused on a broker in memory.
                settings["acks"] = "auto"
            moved.append(JobLogMiddleware(joblog, **settings))
        elif isinstance(middleware, Results):
            # Results are kept in memory, without a server.
            results = copy.copy(middleware)
            # In older versions of Dramatiq, this import warns about missing backends.
            backends = importlib.import_module("dramatiq.results.backends")
            results.backend = backends.StubBackend()
            moved.append(results)
        elif not is_left(middleware) and type(middleware).__name__ != "Prometheus":
            # Prometheus counts in files, which a worker process makes when it boots.
            moved.append(middleware)
    if not any(isinstance(middleware, JobLogMiddleware) for middleware in moved):
        moved.append(JobLogMiddleware(joblog))
    return moved
