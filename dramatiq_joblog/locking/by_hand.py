"""A key that is held by hand, for the time of a block: ``with`` or ``async with``."""

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

from .locks import describe_holder
from .needs import SECTION
from .waiters import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from .leases import Claim, Lease
    from .locks import Locks

    T = TypeVar("T")
    H = TypeVar("H", bound="HeldByHand")


class _Block(NamedTuple):
    """A block around this code, and what it holds."""

    #: Of the log that has the key: another log's of the same name is another.
    locks: Locks
    #: As it is stored.
    key: str
    #: The thread and the task.
    where: object
    lease: Lease | None = None


#: The blocks around this code.  Another task or thread may begin with a copy of it, and holds
#: nothing itself.
_inside: ContextVar[tuple[_Block, ...]] = ContextVar("joblog_locks", default=())

#: Seconds between two tries; at first, and at most.
_PAUSE, _PAUSE_AT_MOST = 0.05, 0.5


class Asked(Protocol):
    """What asks the database, one question after the other."""

    def call(self, function: Callable[[], Any], until: float | None = None) -> Any:
        """Return what *function* returns, once that is committed.

        A database that is locked is not waited for after *until*, monotonic, in seconds.
        """

    def post(self, function: Callable[[], Any]) -> None:
        """Call *function* after all that was asked before, and do not wait for it."""


@dataclass
class Wish:
    """The tries to take a key, within some time."""

    locks: Locks
    claim: Claim
    #: The key as it was given, for the error's text.
    key: str
    #: When to give up; monotonic, in seconds.
    deadline: float
    #: Whether it is waited for.
    waits: bool = False
    #: As many slots of the key are held already by who wants one more.
    held: int = 0
    #: Those that wait longer come first.
    place: Place = field(default_factory=Place)
    pause: float = _PAUSE
    #: How many may hold the key, as it was at the last try.
    limit: int = 1

    @property
    def is_over(self) -> bool:
        """Whether it was tried for long enough, or would wait for itself."""
        return time.monotonic() >= self.deadline or self._is_in_vain

    @property
    def _is_in_vain(self) -> bool:
        return 0 < self.limit <= self.held

    @property
    def until(self) -> float | None:
        """How long the database may be locked, as *deadline*; None for its own time."""
        return self.deadline if self.waits else None

    def next_pause(self) -> float:
        """Return the seconds until the next try."""
        pause = min(self.pause, max(0.0, self.deadline - time.monotonic()))
        self.pause = min(self.pause * 1.5, _PAUSE_AT_MOST)
        return pause

    def attempt(self) -> Lease | None:
        """Take the key if it is free, and nobody who waits longer wants it."""
        if self.place.since is None:
            self.place = Place(since=self.locks.now())
        claim = self.locks.limited(self.claim)
        self.limit = claim.limit
        lease = self.locks.take_in_turn(claim, self.place)
        if lease is not None and lease.lost:
            self.release()
            return None
        return lease

    def release(self) -> None:
        """Free the key."""
        claim = self.claim
        self.locks.release(SECTION, claim.key, claim.owner, claim.token)

    def refusal(self) -> LockNotAcquired:
        """Return the error that says who keeps the key."""
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
      asked: Where they are asked.
      key: The key, as it was given.
      claim: Makes what is claimed, by who enters the block.
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
        """Return one for each call of a function that this decorates."""
        fresh = copy.copy(self)
        fresh._wish = None
        return fresh

    def __enter__(self) -> Lease:
        if self._wait and in_event_loop():
            raise ConfigurationError(
                f"lock {self._key!r} would wait for {self._wait} ms inside a running event loop, "
                "which would stand still: use 'async with joblog.lock(...)'"
            )
        wish = self._begin()
        lease: Lease | None
        with self._abandoned_on_error(wish):
            while (lease := self._ask(wish.attempt, wish.until)) is None:
                if wish.is_over:
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
                if wish.is_over:
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
            raise ConfigurationError(f"lock {self._key!r} is left, and was not entered")
        _leave(_Block(self._locks, wish.claim.key, _here()))
        # Whatever becomes of the release, the lease then runs out.
        self._locks.forget(wish.claim.token)
        return wish

    @contextlib.contextmanager
    def _abandoned_on_error(self, wish: Wish) -> Any:
        """Let go of a key that may have been taken: the answer of its commit can be lost."""
        try:
            yield
        except BaseException as e:
            self._wish = None
            wish.claim.given_up = True
            self._locks.forget(wish.claim.token)
            if not isinstance(e, LockNotAcquired):
                # After a try that is still going on.
                self._asked.post(wish.release)
            raise

    @contextlib.contextmanager
    def _logged_if_it_stays(self, wish: Wish) -> Any:
        """Log that a key could not be freed: its block has ended well all the same."""
        try:
            yield
        except JobLogError as e:
            get_logger(__name__, type(self)).warning(
                "Lock %r stays held until its lease runs out, in %d ms: %s",
                self._key,
                wish.claim.ttl,
                e,
            )

    def _ask(self, function: Callable[[], T], until: float | None = None) -> T:
        answer: T = self._asked.call(function, until)
        return answer

    async def _ask_aside(self, function: Callable[[], T], until: float | None = None) -> T:
        """Ask on another thread, so that the event loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        answer: T = await loop.run_in_executor(None, self._asked.call, function, until)
        return answer


def _here() -> object:
    """Return what names the thread, and the task in it if it is one of asyncio."""
    task = None
    if in_event_loop():
        task = id(asyncio.current_task())
    return threading.get_ident(), task


def _enter(block: _Block) -> None:
    _inside.set((*_inside.get(), block))


def _held_around(block: _Block) -> int:
    """Return how many blocks around this code hold what *block* wants."""
    return sum(
        each[:3] == block[:3] and each.lease is not None and not each.lease.lost
        for each in _inside.get()
    )


def _leave(block: _Block) -> None:
    held = _inside.get()
    # A block may be left by another thread than entered it.
    at = next((n for n in range(len(held) - 1, -1, -1) if held[n][:3] == block[:3]), None)
    if at is not None:
        _inside.set((*held[:at], *held[at + 1 :]))
