"""The writer's inbox: what other threads submit, and how the writer waits for it."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .events import GRANTED, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dramatiq_joblog.errors import JobLogError

    from .events import Answer, Started

#: The maximum number of events in one transaction.
MAX_BATCH = 500
#: Milliseconds that an event without a waiter may wait for others to join its batch.
RIDE = 20
#: Milliseconds after which a deferred start is written if its run has not ended.
SOON = 50


@dataclass(eq=False)
class Call:
    """A function call that a thread submits to the writer, and waits for."""

    function: Callable[[], Any]
    #: Until when a locked database is retried; monotonic seconds; None for its default.
    until: float | None = None
    result: Any = None
    error: BaseException | None = None
    #: Whether it has a result or an error.
    answered: bool = False

    def succeed(self, result: Any) -> None:
        """Set the function's result."""
        self.result, self.answered = result, True

    def fail(self, error: BaseException) -> None:
        """Set the error to raise in the calling thread."""
        self.error, self.answered = error, True


@dataclass(eq=False, slots=True)
class Receipt:
    """An item submitted to the writer, and its result."""

    event: Event | Call | None
    #: Whether a thread waits for it.
    awaited: bool = True
    #: Whether it is written with the next batch, however late that is.
    rides: bool = False
    #: Released once the item is committed, kept by the log's outage policy, or failed.
    done: threading.Lock = field(default_factory=threading.Lock)
    #: For a start, whether and how the run may begin.
    answer: Answer = GRANTED
    #: The error, if the writer itself failed.
    error: JobLogError | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait until the writer is done with it, like a lock; afterwards check :attr:`error`."""
        return self.done.acquire(blocking, timeout)

    def join(self, timeout: float) -> None:
        """Wait until the writer is done with it, and let another thread do so as well.

        Parameters:
          timeout: How long to wait at most, in seconds.
        """
        if self.done.acquire(timeout=timeout):
            self.done.release()

    @property
    def is_done(self) -> bool:
        """Whether the writer is done with it; does not block."""
        return not self.done.locked()

    def wait(self) -> Answer:
        """Wait until it is committed, or kept by the log's outage policy, and return the answer.

        Raises:
          JobLogError: If the writer failed.
        """
        self.done.acquire()
        if self.error is not None:
            raise self.error
        return self.answer

    def fail(self, error: JobLogError) -> None:
        """Set the error to raise in the waiting thread."""
        self.error = error


#: Submitted to make the thread end.
STOP = Receipt(None)


def release(receipts: Iterable[Receipt], answers: Mapping[int, Answer]) -> None:
    """Set the answers of receipts, by ``id()`` of their events, and wake the waiting threads."""
    for receipt in receipts:
        if receipt is not STOP:
            if answers:
                receipt.answer = answers.get(id(receipt.event), GRANTED)
            receipt.done.release()


class Late(Protocol):
    """Something that is written only if it is still needed when it is due."""

    #: When that is, in monotonic seconds.
    due: float

    @property
    def is_dropped(self) -> bool:
        """Whether it is no longer needed."""

    def events(self) -> list[Event]:
        """Return what is to be written."""


class LateStart:
    """A deferred start: written only if its run does not end soon.

    Parameters:
      event: The start.
      due: When it is written, in monotonic seconds.
    """

    __slots__ = ("due", "event", "is_dropped")

    def __init__(self, event: Started, due: float) -> None:
        self.event = event
        self.due = due
        self.is_dropped = False

    def drop(self) -> None:
        """Cancel writing it."""
        self.is_dropped = True

    def events(self) -> list[Event]:
        """Return the start."""
        return [self.event]


class Inbox:
    """A FIFO queue of items submitted to one thread.

    An item with a waiter wakes the thread at once; one without, only if the thread has nothing
    else to do.
    """

    def __init__(self) -> None:
        self._receipts: deque[Receipt] = deque()
        #: Released once there is something for the thread to take.
        self._bell = locked()
        #: Whether the thread sleeps, or is about to, with nothing left to write.
        self._idle = False
        #: What may have to be written later, in order of its time.
        self._late: deque[Late] = deque()
        #: Until when the thread sleeps at most, in monotonic seconds.
        self._asleep_until = math.inf
        #: Whether there is a thread that takes items.
        self._is_taken = False

    def __bool__(self) -> bool:
        """Whether there are items to take, except late starts."""
        return bool(self._receipts)

    # Called from any thread

    def add(self, receipt: Receipt) -> None:
        """Submit an item."""
        self._receipts.append(receipt)
        if receipt.awaited or (self._idle and not receipt.rides):
            self.ring()

    def add_late(self, late: Late) -> bool:
        """Submit what is due in :data:`SOON` milliseconds.

        Returns:
          Whether there is a thread that will take it.
        """
        self._late.append(late)
        if self._asleep_until > late.due:
            self.ring()
        return self._is_taken

    def ring(self) -> None:
        """Wake the thread."""
        if self._bell.locked():
            # Another thread may release it at the same time.
            with contextlib.suppress(RuntimeError):
                self._bell.release()

    def count_events(self) -> int:
        """Return the number of events that were submitted and not taken yet."""
        return sum(isinstance(receipt.event, Event) for receipt in list(self._receipts))

    # Called on the receiving thread

    def take(self, due: float | None, receipts: list[Receipt]) -> None:
        """Move all submitted items to *receipts*, once there is one to write or something is due.

        Parameters:
          due: Until when to wait for the first item, in monotonic seconds; None for no limit.
          receipts: Receives the items, even if this call fails half way.
        """
        self._is_taken = True
        # From here on, what is due later always wakes this thread.  In this order: a thread that
        # submits after the last check releases the lock.
        self._asleep_until = math.inf
        self._bell.acquire(blocking=False)
        self._idle = rung = True
        self._drain(receipts)
        while rung and not any(receipt.awaited for receipt in receipts):
            self._idle = all(receipt.rides for receipt in receipts)
            now = time.monotonic()
            until = self._next_due(due) if self._idle else now + RIDE / 1000
            self._asleep_until = until
            rung = self._bell.acquire(timeout=-1 if until == math.inf else max(0.0, until - now))
            self._asleep_until = math.inf
            self._drain(receipts)
        self._idle = False
        self._asleep_until = 0.0

    def leave(self) -> None:
        """Note that no thread takes items until the next :meth:`take`."""
        self._is_taken = False

    def take_late(self) -> list[Event]:
        """Return the events that are due, and still needed."""
        events: list[Event] = []
        now = time.monotonic()
        while self._late and (self._late[0].due <= now or self._late[0].is_dropped):
            late = self._late.popleft()
            if not late.is_dropped:
                events += late.events()
        return events

    def _next_due(self, due: float | None) -> float:
        """Return when something is due, in monotonic seconds."""
        # The thread must not wake for what is no longer needed: it would write whatever has been
        # submitted meanwhile, in a transaction of its own.
        while self._late and self._late[0].is_dropped:
            self._late.popleft()
        next_due = math.inf if due is None else due
        return min(self._late[0].due, next_due) if self._late else next_due

    def _drain(self, receipts: list[Receipt]) -> None:
        """Move all items without waiting."""
        with contextlib.suppress(IndexError):
            while len(receipts) < MAX_BATCH:
                receipts.append(self._receipts.popleft())


def locked() -> threading.Lock:
    """Return a lock that is already acquired."""
    lock = threading.Lock()
    lock.acquire()
    return lock
