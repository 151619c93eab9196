"""A manual lock: a key held during a block, ``with`` or ``async with``."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import secrets
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from dramatiq.logging import get_logger

from dramatiq_joblog.database.timeouts import in_event_loop
from dramatiq_joblog.errors import ConfigurationError, JobLogError, LockNotAcquired

from .holders import describe_holder
from .needs import SECTION
from .waiters import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from .holders import Usage
    from .leases import Claim, Lease
    from .locks import Locks

    T = TypeVar("T")
    H = TypeVar("H", bound="HeldByHand")


class _Block(NamedTuple):
    """A surrounding block, and what it holds."""

    #: The statements of the log with the key: the same key in another log is a different one.
    locks: Locks
    #: The key in its stored form.
    key: str
    #: The thread or task.
    where: object
    lease: Lease | None = None


#: The surrounding blocks.  Another task or thread may start with a copy of this context, but holds
#: nothing itself.
_inside: ContextVar[tuple[_Block, ...]] = ContextVar("joblog_locks", default=())

#: Seconds between two attempts: at first, and at most.
_PAUSE, _PAUSE_AT_MOST = 0.05, 0.5
#: Seconds between two updates of its row in the queue.
_UPDATE_EVERY = 1.0
#: Seconds of frequent attempts after the key changed hands.
_MOVING = 1.0


class Asked(Protocol):
    """Calls functions that use the database, one after the other."""

    def call(self, function: Callable[[], Any], until: float | None = None) -> Any:
        """Call *function*, and return its result once committed.

        A locked database is retried until *until*, in monotonic seconds.
        """

    def post(self, function: Callable[[], Any]) -> None:
        """Call *function* after all earlier calls, without waiting."""


@dataclass
class Wish:
    """The attempts to acquire a key, until a deadline."""

    locks: Locks
    claim: Claim
    #: The key as it was given, for the error's text.
    key: str
    #: When to give up, in monotonic seconds.
    deadline: float
    #: Whether the caller waits for the key.
    waits: bool = False
    #: The number of the key's slots already held by the same thread, task or job.
    held: int = 0
    #: The queue position: those that have waited longer come first.
    place: Place = field(default_factory=Place)
    pause: float = _PAUSE
    #: The limit of the key at the last attempt.
    limit: int = 1
    #: When its row in the queue was last updated, in monotonic seconds; None without a row.
    queued_at: float | None = None
    #: The use of the key at the last attempt; a different one means that the key changed hands.
    usage: Usage | None = None
    moving_until: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed, or waiting would be a self-deadlock."""
        return self._time_left <= 0 or self._is_in_vain

    @property
    def _time_left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def is_refused(self) -> bool:
        """Whether to give up.

        A lock that is still in the queue, and so kept others out, makes one more attempt.
        """
        return self.is_over and self.queued_at is None

    @property
    def _is_in_vain(self) -> bool:
        return 0 < self.limit <= self.held

    @property
    def until(self) -> float | None:
        """The deadline for a locked database; None for the database's own timeout."""
        return self.deadline if self.waits else None

    def next_pause(self) -> float:
        """Return the seconds until the next attempt."""
        pause = min(self.pause, max(0.0, self._time_left))
        self.pause = min(self.pause * 1.5, _PAUSE_AT_MOST)
        return pause

    def _queue_up(self, claim: Claim) -> None:
        """Enter the queue of the key, or stay in it, and plan the next attempt."""
        now, is_first = time.monotonic(), self.queued_at is None
        if self.place.since is None:
            self.place = Place(since=self.locks.now(), by_hand=True)
        if self.queued_at is None or now > self.queued_at + _UPDATE_EVERY:
            self.locks.hands.enter(claim, self.place.since or 0)
            self.queued_at = now
        usage = self.locks.holders.usage([claim.key]).get(claim.key)
        if usage != self.usage and not is_first:
            self.moving_until = now + _MOVING
        self.usage = usage
        if now < self.moving_until:
            # However many locks wait, one of them makes an attempt that often.
            self.pause = min(_PAUSE * self.locks.waiters.by_hand(claim.key), _PAUSE_AT_MOST)

    def _leave_queue(self) -> None:
        if self.queued_at is not None:
            self.locks.hands.leave(self.claim)
            self.queued_at = None

    def attempt(self) -> Lease | None:
        """Acquire the key if it is free and no one has waited longer for it."""
        claim = self.locks.limited(self.claim)
        self.limit = claim.limit
        lease = self.locks.take_in_turn(claim, self.place)
        if lease is not None and lease.lost:
            self.release()
            return None
        # Only a lock that makes another attempt, and waits for a while, may keep others out.
        if lease is not None or self._is_in_vain or self._time_left < _PAUSE:
            self._leave_queue()
        else:
            self._queue_up(claim)
        return lease

    def release(self) -> None:
        """Release the key, and leave its queue."""
        claim = self.claim
        self._leave_queue()
        self.locks.release(SECTION, claim.key, claim.owner, claim.token)

    def refusal(self) -> LockNotAcquired:
        """Leave the queue, and return the error that names the holder of the key."""
        self._leave_queue()
        limit = self.locks.limits.get(self.claim.key)
        if limit is not None and limit.limit < 1:
            return LockNotAcquired(self.key, f"is paused: {limit}")
        holder = self.locks.blocker(self.locks.limited(self.claim), self.place)
        text = describe_holder(holder)
        if self._is_in_vain:
            text += (
                "; that is this very job, or a block around this one, which would wait for "
                "itself: take the key once, or with a higher limit"
            )
        if holder is None:
            return LockNotAcquired(self.key, text)
        return LockNotAcquired(
            self.key, text, owner=holder.owner, since=holder.since, until=holder.until
        )


class HeldByHand(contextlib.ContextDecorator):
    """Holds a key until the end of a block; see :meth:`JobLog.lock`.

    Parameters:
      locks: The statements on keys.
      asked: Executes them.
      key: The key, as it was given.
      claim: Makes the claim when a block is entered.
      wait: Milliseconds to wait for it.
    """

    def __init__(
        self, locks: Locks, asked: Asked, key: str, claim: Callable[[str], Claim], wait: int
    ) -> None:
        self._locks = locks
        self._asked = asked
        self._key = key
        self._claim = claim
        self._wait = wait
        self._wish: Wish | None = None

    def _recreate_cm(self) -> Self:
        """Return a new lock for each call of a decorated function."""
        fresh = copy.copy(self)
        fresh._wish = None
        return fresh

    def __enter__(self) -> Lease:
        if self._wait and in_event_loop():
            raise ConfigurationError(
                f"lock {self._key!r} would wait for {self._wait} ms inside a running event loop, "
                "which it would block: use 'async with joblog.lock(...)'"
            )
        wish = self._begin()
        lease: Lease | None
        with self._abandoned_on_error(wish):
            while (lease := self._ask(wish.attempt, wish.until)) is None:
                if wish.is_refused:
                    raise self._ask(wish.refusal, wish.until)
                time.sleep(wish.next_pause())
        _enter(_Block(self._locks, wish.claim.key, _here(), lease))
        return lease

    def __exit__(self, *exc_info: object) -> None:
        wish = self._end()
        with self._abandoned_on_error(wish), self._logged_if_it_stays(wish):
            self._ask(wish.release)
        self._locks.freed.note({wish.claim.key})

    async def __aenter__(self) -> Lease:
        wish = self._begin()
        lease: Lease | None
        with self._abandoned_on_error(wish):
            while (lease := await self._ask_aside(wish.attempt, wish.until)) is None:
                if wish.is_refused:
                    raise await self._ask_aside(wish.refusal, wish.until)
                await asyncio.sleep(wish.next_pause())
        _enter(_Block(self._locks, wish.claim.key, _here(), lease))
        return lease

    async def __aexit__(self, *exc_info: object) -> None:
        wish = self._end()
        with self._abandoned_on_error(wish), self._logged_if_it_stays(wish):
            await self._ask_aside(wish.release)
        self._locks.freed.note({wish.claim.key})

    def _begin(self) -> Wish:
        if self._wish is not None:
            raise ConfigurationError(
                f"lock {self._key!r} is entered a second time; call joblog.lock() for each block"
            )
        deadline = time.monotonic() + self._wait / 1000
        claim = self._claim(secrets.token_hex(14))
        held = claim.of_job + _held_around(_Block(self._locks, claim.key, _here()))
        waits = self._wait > 0
        self._wish = Wish(self._locks, claim, self._key, deadline, waits=waits, held=held)
        return self._wish

    def _end(self) -> Wish:
        wish, self._wish = self._wish, None
        if wish is None:
            raise ConfigurationError(f"lock {self._key!r} is exited, but was not entered")
        _leave(_Block(self._locks, wish.claim.key, _here()))
        # Even if the release fails, the lease then expires.
        self._locks.leases.forget(wish.claim.token)
        return wish

    @contextlib.contextmanager
    def _abandoned_on_error(self, wish: Wish) -> Any:
        """Release a key after an error: it may have been acquired, with the reply lost."""
        try:
            yield
        except BaseException as e:
            self._wish = None
            wish.claim.give_up()
            self._locks.leases.forget(wish.claim.token)
            if not isinstance(e, LockNotAcquired):
                # It runs after an attempt that is still in progress.
                self._asked.post(wish.release)
            raise

    @contextlib.contextmanager
    def _logged_if_it_stays(self, wish: Wish) -> Any:
        """Log, instead of raising, that a key could not be released: its block has succeeded."""
        try:
            yield
        except JobLogError as e:
            get_logger(__name__, type(self)).warning(
                "Lock %r stays held until its lease expires, in %d ms: %s",
                self._key,
                wish.claim.ttl,
                e,
            )

    def _ask(self, function: Callable[[], T], until: float | None = None) -> T:
        answer: T = self._asked.call(function, until)
        return answer

    async def _ask_aside(self, function: Callable[[], T], until: float | None = None) -> T:
        """Call on another thread, so that the event loop is not blocked."""
        loop = asyncio.get_running_loop()
        answer: T = await loop.run_in_executor(None, self._asked.call, function, until)
        return answer


def _here() -> object:
    """Return an object that identifies the thread, or the asyncio task in it."""
    task = None
    if in_event_loop():
        task = id(asyncio.current_task())
    return threading.get_ident(), task


def _enter(block: _Block) -> None:
    _inside.set((*_inside.get(), block))


def _held_around(block: _Block) -> int:
    """Return how many surrounding blocks already hold what *block* requests."""
    return sum(
        each[:3] == block[:3] and each.lease is not None and not each.lease.lost
        for each in _inside.get()
    )


def _leave(block: _Block) -> None:
    held = _inside.get()
    # A block may be left by a different thread than the one that entered it.
    at = next((n for n in range(len(held) - 1, -1, -1) if held[n][:3] == block[:3]), None)
    if at is not None:
        _inside.set((*held[:at], *held[at + 1 :]))
