"""What type checkers know of the public names: checked by mypy and pyright, never run.

A line that must be refused is marked for both checkers, which report a mark that is not needed.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable
from datetime import datetime
from typing import Any

import dramatiq
from peewee import CharField, ForeignKeyField, Model, SqliteDatabase
from starlette.requests import Request
from typing_extensions import assert_type

from dramatiq_joblog import (
    Action,
    Exclusive,
    Failure,
    Job,
    JobLog,
    JobLogMiddleware,
    Line,
    Lock,
    State,
    Unique,
    Worker,
    current_job,
    require_current_job,
)
from dramatiq_joblog.recording.current import CurrentJob
from dramatiq_joblog.schema.query import JobQuery, Page
from dramatiq_joblog.web import dashboard


class User(Model):
    """A custom model."""

    name = CharField()


class ShopJob(Job):
    """A job with columns of the user."""

    shop = CharField(null=True)
    user = ForeignKeyField(User, backref="jobs", null=True)


plain = JobLog("sqlite:///jobs.db")
shop = JobLog(SqliteDatabase("jobs.db"), model=ShopJob, keep={"finished": 1, State.DEAD: None})
JobLog("sqlite:///jobs.db", keep_types={"audit": None, "mail": 7, "import": {"dead": 8}})

assert_type(plain, JobLog[Job])
assert_type(shop, JobLog[ShopJob])


def takes_any(joblog: JobLog) -> None:
    """Take a log of the plain model, which needs no parameter."""
    assert_type(joblog.get("jid"), Job)


takes_any(plain)


# What is asked


async def asks_aside() -> None:
    """Ask from a coroutine."""
    assert_type(await shop.wait_async("jid"), ShopJob)
    assert_type(await shop.get_async("jid"), ShopJob)
    assert_type(await shop.fetch(shop.jobs.dead()), list[ShopJob])
    assert_type(await shop.fetch(shop.now), datetime)
    assert_type([job async for job in shop.follow("jid")], list[ShopJob])


def asks() -> None:
    """Ask for jobs of the model that the log was made with."""
    assert_type(plain.get("jid"), Job)
    assert_type(shop.get("jid"), ShopJob)
    assert_type(shop.get("jid").shop, str | None)
    assert_type(shop.jobs, JobQuery[ShopJob])
    assert_type(shop.jobs.dead().of_type("import").for_user(7), JobQuery[ShopJob])
    assert_type(shop.jobs.active().where(ShopJob.shop == "a").limit(3), JobQuery[ShopJob])
    assert_type(shop.jobs.dead().first(), ShopJob | None)
    assert_type(shop.wait("jid", timeout=1), ShopJob)
    assert_type(shop.wait_all(["jid"]), list[ShopJob])
    assert_type(list(shop.follow("jid")), list[ShopJob])
    assert_type(shop.jobs.page(), Page[ShopJob])
    assert_type(shop.jobs.page().jobs, list[ShopJob])
    assert_type(shop.search("state:dead"), JobQuery[ShopJob])
    assert_type(shop.waiters("key"), JobQuery[ShopJob])
    assert_type(shop.waiters_by_key(["key"]), dict[str, list[ShopJob]])
    assert_type(shop.oldest(), list[ShopJob])
    assert_type([job.jid for job in shop.jobs], list[str])
    assert_type(shop.Job, type[ShopJob])
    for job in plain.jobs.started():
        assert_type(job, Job)
        assert_type(job.attempt, int)
        assert_type(job.duration, int | None)
        assert_type(job.started_at, datetime | None)
        assert_type(job.created_at, datetime)
        assert_type(job.meta, dict[str, Any] | None)
        assert_type(job.parent, Job | None)
        assert_type(job.children, JobQuery[Job])
        assert_type([failure.traceback for failure in job.failures], list[str | None])
        assert_type(next(iter(job.lines)), Line)
        assert_type(job.state == "dead", bool)
        assert_type(job.state == State.LOST, bool)


def looks() -> None:
    """Look at the other rows."""
    assert_type(next(iter(plain.locks)), Lock)
    assert_type(next(iter(plain.locks)).fence, int)
    assert_type(next(iter(plain.workers)), Worker)
    assert_type(next(iter(plain.workers)).host, str)
    assert_type(next(iter(plain.actions)), Action)
    assert_type(next(iter(plain.get("jid").failures)), Failure)


def acts() -> None:
    """Run again and cancel."""
    assert_type(plain.requeue("jid"), dramatiq.Message[Any])
    assert_type(plain.requeue_all(plain.jobs.dead()).refused, dict[str, str])
    assert_type(shop.requeue_all(shop.jobs.dead()).sent, list[dramatiq.Message[Any]])
    assert_type(shop.cancel("jid"), ShopJob)
    assert_type(shop.cancel_all(shop.jobs.lost()).cancelled, list[str])
    plain.prune({"finished": 7 * 86_400_000})
    with plain.lock("key") as lease:
        assert_type(lease.fence, int)


# Inside a job


def inside() -> None:
    """Say something about the job that runs."""
    require_current_job().meta["rows"] = 12
    assert_type(require_current_job(), CurrentJob)
    assert_type(require_current_job().fence, int | None)
    current_job().meta["rows"] = 12  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    if (job := current_job()) is not None:
        job.progress(1, 2)
    plain.jobs.in_progress().excluding(require_current_job().jid).exists()


# Words that are known


JobLogMiddleware(plain, acks="handed", start="soon")
JobLogMiddleware(shop)
Exclusive("key:{user_id}", on_conflict="wait", wait_for=1, on_timeout="retry")
Unique("key:{user_id}", until=None)
JobLog("sqlite:///jobs.db", on_outage="block")

JobLogMiddleware(plain, acks="plian")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
JobLogMiddleware(plain, start="sooner")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Exclusive("key", on_conflict="wiat")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Exclusive("key", on_timeout="die")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Unique("key", until="begun")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
JobLog("sqlite:///jobs.db", on_outage="wait")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
JobLog("sqlite:///jobs.db", keep={"finishd": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
JobLog("sqlite:///jobs.db", keep={"started": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
plain.prune({"ded": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
JobLog(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
JobLog("sqlite:///jobs.db", model=User)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
plain.get("jid").shop.upper()  # type: ignore[attr-defined]  # pyright: ignore


# The page


class Guard:
    """An object that decides."""

    async def __call__(self, request: Request) -> str:
        """Return a level."""
        return "all"


def decides(request: Request) -> tuple[str, str]:
    """Return a level, and who it is."""
    return "all", "ada"


def decides_later(request: Request) -> Awaitable[str]:
    """Return what returns a level."""
    return Guard()(request)


for authorize in (decides, decides_later):
    dashboard(plain, authorize=authorize)
dashboard(shop, authorize=Guard())
dashboard(shop, authorize=functools.partial(Guard()))
