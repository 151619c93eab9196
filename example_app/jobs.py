"""The jobs, and how the log is set up for them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import random
import zlib
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, CurrentMessage, SkipMessage
from stdnum import iban

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware, current_job

from .data import FOLDER, Feed, Position, Price, Trade, User, begin_run, database, end_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class JobType(str, Enum):
    """What kinds of work there are."""

    FINANCIAL_DATA_IMPORT = "financial_data_import"
    RECONCILIATION = "reconciliation"
    USER_VERIFICATION = "user_verification"
    SUPPORT = "support"


#: Of these, one at a time for each user.
FINANCIAL = (JobType.FINANCIAL_DATA_IMPORT, JobType.RECONCILIATION)

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
DATABASE_URL = os.environ.get("JOBLOG_DATABASE", f"sqlite:///{FOLDER / 'jobs.db'}")

joblog = JobLog(DATABASE_URL, job_types=JobType)

#: Demos in other folders may share the Redis.
NAMESPACE = f"joblog-example-{zlib.crc32(str(FOLDER.absolute()).encode()):08x}"
broker = RedisBroker(url=REDIS_URL, namespace=NAMESPACE)
broker.add_middleware(AsyncIO())
broker.add_middleware(CurrentMessage())
broker.add_middleware(JobLogMiddleware(joblog))  # before the actors
dramatiq.set_broker(broker)


class BrokenRowError(Exception):
    """Raised when a feed has a row without a price."""


class MissingSeriesError(Exception):
    """Raised when there is no feed of a stock."""


class WrongSumError(Exception):
    """Raised when a position and the ledger differ."""


class WaitedTooLongError(Exception):
    """Raised when a user's other finance jobs left no room for too long."""


# What the jobs say of themselves, for the check at the end


@contextlib.contextmanager
def on_record(user_id: int | None, *, finance: bool) -> Iterator[None]:
    """Note a run and its outcome in the application's own table, with no help of the log."""
    message = CurrentMessage.get_current_message()
    attempt = message.options.get("retries", 0) + 1  # type: ignore[union-attr]
    run = begin_run(message.message_id, attempt, user_id, finance=finance)  # type: ignore[union-attr]
    try:
        yield
    except SkipMessage as e:
        end_run(run, "stepped aside" if isinstance(e, SteppedAside) else "skipped")
        raise
    except BaseException as e:
        end_run(run, type(e).__name__)
        raise
    else:
        end_run(run, "finished")


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Put each run of a job of a user on record."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def asynchronous(user_id: int, *args: Any) -> None:
            with on_record(user_id, finance=False):
                await function(user_id, *args)

        return asynchronous

    @functools.wraps(function)
    def synchronous(user_id: int, *args: Any) -> None:
        with on_record(user_id, finance=False):
            function(user_id, *args)

    return synchronous


# One finance job of a user at a time, in two ways

#: ``exclusive``: the log lets no second one in.  ``query``: each job asks, and steps aside.
RULE = os.environ.get("EXAMPLE_RULE", "exclusive")
if RULE not in ("exclusive", "query"):
    raise SystemExit(f"EXAMPLE_RULE={RULE!r} is not known: use exclusive or query")

#: The first way, as an option of the actors: a unique index decides, before the body runs.
#: Who comes second waits without a thread or a retry, and the one that waits longest is next.
EXCLUSIVE = (
    Exclusive("finance:{user_id}", on_conflict="wait", wait_for=45_000)
    if RULE == "exclusive"
    else None
)


class SteppedAside(SkipMessage):
    """Raised when a job was put back, as another one of its user is in progress."""


def alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """Put a finance job on record; in the second way, run it only while no other one is.

    The second way is the plain query.  The log commits the start of a job before this asks, so
    of two that start together at least one sees the other.  Often both do, and both step aside
    for a random while: nobody is next by right, and a job that is always late gives up.  Nor
    does it see what has begun and does not ask; and a worker that was paused between its
    question and its work continues, although its answer is old.
    """

    @functools.wraps(function)
    def wrapper(user_id: int, *args: Any) -> None:
        if RULE == "query":
            others = joblog.jobs.in_progress().of_type(*FINANCIAL).for_user(user_id)
            if others.excluding(current_job().jid).exists():  # type: ignore[union-attr]
                with on_record(user_id, finance=False):
                    step_aside()
        with on_record(user_id, finance=True):
            function(user_id, *args)

    return wrapper


def step_aside(most: int = 60) -> None:
    """Put the message back with a delay: this blocks no thread and spends no retry."""
    message: Any = CurrentMessage.get_current_message()
    times = message.options.get("stepped_aside", 0) + 1
    if times > most:
        raise WaitedTooLongError(f"stepped aside {most} times")
    delay = random.randint(100, 400)  # noqa: S311
    broker.enqueue(message.copy(options={"stepped_aside": times}), delay=delay)
    raise SteppedAside("another finance job of this user is in progress")


# The jobs


@dramatiq.actor(
    job_type=JobType.FINANCIAL_DATA_IMPORT,
    job_user="user_id",
    exclusive=EXCLUSIVE,
    max_retries=3,
    min_backoff=100,
    max_backoff=400,
    throws=MissingSeriesError,
)
@alone
def import_prices(user_id: int, symbol: str) -> None:
    """Import a stock's prices from the feed that was delivered."""
    with database.connection_context():
        feed = Feed.get_or_none(Feed.user == user_id, Feed.symbol == symbol)
        if feed is None:
            raise MissingSeriesError(f"no feed of {symbol} was delivered")
        rows = []
        for number, line in enumerate(feed.text.splitlines(), start=1):
            date, price = line.split(",")
            try:
                rows.append({"date": date, "price": str(Decimal(price))})
            except InvalidOperation:
                complain.send(feed.id, None)
                raise BrokenRowError(f"{symbol}, row {number}: no price: {line!r}") from None
        with database.atomic():
            Price.delete().where(Price.user == user_id, Price.symbol == symbol).execute()
            Price.insert_many(
                [{**row, "user": user_id, "symbol": symbol} for row in rows]
            ).execute()
    current_job().meta["rows"] = len(rows)  # type: ignore[union-attr]


@dramatiq.actor(
    job_type=JobType.RECONCILIATION,
    job_user="user_id",
    exclusive=EXCLUSIVE,
    max_retries=2,
    min_backoff=100,
    max_backoff=400,
)
@alone
def reconcile(user_id: int) -> None:
    """Hold each position of a user against the ledger, to the cent."""
    with database.connection_context():
        for position in Position.select().where(Position.user == user_id):
            trades = Trade.select().where(
                Trade.user == user_id, Trade.symbol == position.symbol, Trade.booked
            )
            quantity = sum(trade.quantity for trade in trades)
            cost = sum((trade.quantity * Decimal(trade.price) for trade in trades), Decimal(0))
            if (quantity, cost) != (position.quantity, Decimal(position.cost)):
                complain.send(None, user_id)
                raise WrongSumError(
                    f"{position.symbol}: {position.quantity} for {position.cost} held, "
                    f"{quantity} for {cost} in the ledger"
                )


@dramatiq.actor(
    job_type=JobType.RECONCILIATION,
    job_user="user_id",
    exclusive=EXCLUSIVE,
    max_retries=0,
    time_limit=500,
)
@alone
def find_unmatched(user_id: int, total: str) -> None:
    """Find the trades that add up to a payment, by trying all combinations: it takes years."""
    with database.connection_context():
        costs = [t.quantity * Decimal(t.price) for t in Trade.select().where(Trade.user == user_id)]
    for size in range(1, len(costs) * 10):
        for some in itertools.combinations(costs * 10, size):
            if sum(some) == Decimal(total):
                return


@dramatiq.actor(job_type=JobType.USER_VERIFICATION, job_user="user_id", max_retries=0)
@recorded
async def verify(user_id: int) -> None:
    """Check a user's bank account; there is no second try."""
    with database.connection_context():
        user = User.get_by_id(user_id)
    if user.closed:
        raise SkipMessage(f"{user.name} has closed the account")
    iban.validate(user.iban)


@dramatiq.actor(job_type=JobType.SUPPORT, max_retries=0)
def complain(feed_id: int | None, user_id: int | None) -> None:
    """Notify the supplier of a broken row, or the clerk of a wrong sum; some react."""
    with on_record(None, finance=False), database.connection_context():
        if feed_id is not None:
            feed = Feed.get_by_id(feed_id)
            if feed.corrected is not None:
                Feed.update(text=feed.corrected).where(Feed.id == feed_id).execute()
        else:
            Trade.update(booked=True).where(Trade.user == user_id, Trade.forgotten).execute()
