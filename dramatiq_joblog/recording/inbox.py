"""What threads hand over to the writer, and how it waits for that."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .events import GRANTED, Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from dramatiq_joblog.errors import JobLogError

    from .events import Answer, Started

#: As many events are written in one transaction at most.
MAX_BATCH = 500
#: Milliseconds that an event which nobody waits for may wait for others, at most.
RIDE = 20
#: Milliseconds that a run lasts at least whose start is written by itself, if it is written soon.
SOON = 50


@dataclass(eq=False)
class Call:
    """Something that a thread wants to be done, and waits for."""

    function: Callable[[], Any]
    #: Until when a locked database is tried again; monotonic, in seconds; None for its own time.
    until: float | None = None
    result: Any = None
    error: BaseException | None = None
    answered: bool = False


@dataclass(eq=False)
class Receipt:
    """What was handed over to the writer, and what became of it."""

    event: Event | Call | None
    #: Whether someone waits for it.
    awaited: bool = True
    #: Whether it is written with what comes next, however late that is.
    rides: bool = False
    #: Free once it is committed, or kept by the log's policy, or has failed.
    done: threading.Lock = field(default_factory=threading.Lock)
    #: For a start, whether and how the run may go on.
    answer: Answer = GRANTED
    #: Why it is neither: the writer itself failed.
    error: JobLogError | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait until the writer is done with it, as for a lock; :attr:`error` says how it went."""
        return self.done.acquire(blocking, timeout)

    @property
    def is_done(self) -> bool:
        """Whether the writer is done with it, for a receipt that nobody waits for."""
        return not self.done.locked()

    def wait(self) -> Answer:
        """Wait until it is committed, or kept by the log's policy, and return the answer.

        Raises:
          JobLogError: If the writer failed.
        """
        self.done.acquire()
        if self.error is not None:
            raise self.error
        return self.answer


class LateStart:
    """A start that is written only if its run lasts.

    Parameters:
      event: The start.
      due: When it is written, monotonic, in seconds.
    """

    __slots__ = ("due", "event", "is_dropped")

    def __init__(self, event: Started, due: float) -> None:
        self.event = event
        self.due = due
        self.is_dropped = False

    def drop(self) -> None:
        """Say that it need not be written any more."""
        self.is_dropped = True


class Inbox:
    """What was handed over to one thread, in the order it came.

    What somebody waits for wakes the thread at once; what nobody waits for, only if the thread
    knows of nothing that must be done.
    """

    def __init__(self) -> None:
        self._receipts: deque[Receipt] = deque()
        #: Free once there is something for the thread to look at.
        self._bell = locked()
        #: Whether the thread sleeps, or is about to, and knows of nothing that must be written.
        self._idle = False
        #: Starts that are written only if their runs last.
        self._late: deque[LateStart] = deque()
        self._asleep_until = math.inf

    def __bool__(self) -> bool:
        """Whether anything was handed over and not taken yet, late starts left out."""
        return bool(self._receipts)

    # From any thread

    def add(self, receipt: Receipt) -> None:
        """Hand over."""
        self._receipts.append(receipt)
        if receipt.awaited or (self._idle and not receipt.rides):
            self.ring()

    def add_late(self, start: Started) -> LateStart:
        """Hand over a start that is due in :data:`SOON` milliseconds."""
        late = LateStart(start, time.monotonic() + SOON / 1000)
        self._late.append(late)
        return late

    def oversleeps(self, late: LateStart) -> bool:
        """Return whether the thread must be woken for *late* to be written in time."""
        return self._asleep_until > late.due

    def ring(self) -> None:
        """Make the thread look at what there is."""
        if self._bell.locked():
            # Another may ring at the same time.
            with contextlib.suppress(RuntimeError):
                self._bell.release()

    def count_events(self) -> int:
        """Return how many events were handed over and not taken yet."""
        return sum(isinstance(receipt.event, Event) for receipt in list(self._receipts))

    # On the thread that they are for

    def take(self, due: float | None, receipts: list[Receipt]) -> None:
        """Add all that waits to *receipts*.

        Parameters:
          due: Until when to wait for the first of it, monotonic, in seconds; None for any time.
          receipts: Where they are added, also should this fail half way.
        """
        # A thread that hands over a late start meanwhile wakes us in any case.
        self._asleep_until = math.inf
        if self._late:
            due = min(self._late[0].due, math.inf if due is None else due)
        self._asleep_until = math.inf if due is None else due
        self._wait(None if due is None else max(0.0, due - time.monotonic()), receipts)
        self._asleep_until = 0.0

    def wake_for_all(self) -> None:
        """Have every late start wake the thread from here on: nobody looks when they are due."""
        self._asleep_until = math.inf

    def take_late(self) -> list[Event]:
        """Return the starts of runs that have lasted."""
        starts: list[Event] = []
        now = time.monotonic()
        while self._late and (self._late[0].due <= now or self._late[0].is_dropped):
            late = self._late.popleft()
            if not late.is_dropped:
                starts.append(late.event)
        return starts

    def _wait(self, pause: float | None, receipts: list[Receipt]) -> None:
        """Add all that waits; wait for the first of it, *pause* seconds at most."""
        # In this order: a thread that comes too late for the last look rings.
        self._bell.acquire(blocking=False)
        self._idle = rung = True
        self._drain(receipts)
        while rung and not any(receipt.awaited for receipt in receipts):
            self._idle = all(receipt.rides for receipt in receipts)
            longest = pause if self._idle else RIDE / 1000
            rung = self._bell.acquire(timeout=-1 if longest is None else longest)
            self._drain(receipts)
        self._idle = False

    def _drain(self, receipts: list[Receipt]) -> None:
        """Add all that is there now."""
        with contextlib.suppress(IndexError):
            while len(receipts) < MAX_BATCH:
                receipts.append(self._receipts.popleft())


def locked() -> threading.Lock:
    """Return a lock that is taken already."""
    lock = threading.Lock()
    lock.acquire()
    return lock
