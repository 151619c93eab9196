"""The group-commit writer: one thread and one connection per process.

Worker threads submit events and wait for the commit.  The writer takes all submitted events,
writes them in one transaction and wakes the threads: eight waiting threads cost one commit, as one
does.  An event without a waiter is written with the next batch.

While the database is unavailable, events are kept by the log's outage policy, and no thread waits
for the database.
"""

from __future__ import annotations

import multiprocessing.util
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from dramatiq.logging import get_logger

from dramatiq_joblog.database.connection import Connection, leave_connections
from dramatiq_joblog.database.limited_log import LimitedLog
from dramatiq_joblog.errors import DatabaseAwayError

from .batches import Batches
from .inbox import SOON, STOP, Call, Inbox, LateStart, Receipt
from .outage import Outage
from .timetable import Timetable
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peewee import Database

    from .events import Answer, Answers, Event, Started
    from .exclusive import Sections
    from .inbox import Late
    from .spool import Spool

T = TypeVar("T")

#: Milliseconds that a batch is retried before the database is considered unavailable.
DEFAULT_RETRY_FOR = 2_000

#: Seconds that the writer may take when its process ends, and those of its last attempt.
END_WITHIN, _LAST_TRY = 30.0, 10.0

#: Seconds that the database may still take to answer after a call's deadline.
ANSWERS_WITHIN = 2.0

#: Milliseconds between two checks for spool files of dead processes.
ADOPT_EVERY = 10_000


class Writer:
    """Writes events in batches, in the order of submission.

    The thread starts with the first event.  A forked process gets its own thread and connection.

    Parameters:
      sections: The statements of the log.
      spool: Keeps events while the database is unavailable.
      on_outage: One of :data:`POLICIES`.
      retry_for: Milliseconds to retry a batch before the database is considered unavailable.
    """

    def __init__(
        self,
        sections: Sections,
        spool: Spool,
        *,
        on_outage: str = "spool",
        retry_for: int = DEFAULT_RETRY_FOR,
    ) -> None:
        self._transitions = sections.transitions
        self._database: Database = sections.transitions.database
        self._logger = get_logger(__name__, type(self))
        self._limited = LimitedLog(self._logger)
        self._timetable = Timetable(self._limited)
        self._batches = Batches(sections, self._ask)
        self._outage = Outage(
            sections.transitions,
            self._batches,
            spool,
            policy=on_outage,
            retry_for=retry_for,
            limited=self._limited,
            wake=self.wake,
        )
        self._forget()
        writers.add(self)

    def _forget(self) -> None:
        """Reset the state, as in a new process."""
        self._connection = Connection(self._database)
        self._start_lock = threading.Lock()
        self._close_lock = threading.Lock()
        self._inbox = Inbox()
        self._turns = Turns(
            self._inbox, self._connection, self._transitions, self._outage, self._timetable
        )
        self._ends_with_process = False
        self._thread: threading.Thread | None = None
        self._timetable.clear()

    # Called from any thread

    @property
    def policy(self) -> str:
        """The outage policy: what happens to events while the database is unavailable."""
        return self._outage.policy

    def on_written(self, listener: Callable[[Sequence[Event], Answers], None]) -> None:
        """Call *listener* with committed events, and with the answers to starts.

        It is called on the writer's thread, and must not block.
        """
        self._batches.on_written(listener)

    @property
    def lost(self) -> int:
        """The number of events lost (neither written nor kept) since this process began."""
        return self._turns.lost + self._batches.lost + self._outage.lost

    @property
    def away(self) -> bool:
        """Whether the database is considered unavailable."""
        return self._outage.is_on

    def put(self, event: Event, *, awaited: bool = False) -> Receipt:
        """Submit *event* without waiting; *awaited* if a thread is going to wait for it.

        Returns:
          A receipt, which can be acquired once the event is committed or kept by the outage policy.
        """
        return self._submit(event, awaited=awaited)

    def ride(self, event: Event) -> Receipt:
        """Submit *event*, to be written with the next batch, or at the next :meth:`wake`.

        The caller must ensure that one of them follows; this call does not wake the thread.

        Returns:
          A receipt, like :meth:`put`.
        """
        return self._submit(event, awaited=False, rides=True)

    def write(self, event: Event) -> Answer:
        """Submit *event* and wait until it is committed, or kept by the outage policy.

        Returns:
          For a start, whether and how the run may begin.

        Raises:
          JobLogError: If the writer failed.
        """
        return self._submit(event).wait()

    def put_soon(self, start: Started) -> LateStart:
        """Write a start within :data:`~.inbox.SOON` milliseconds, unless it is dropped before."""
        late = LateStart(start, time.monotonic() + SOON / 1000)
        self.put_later(late)
        return late

    def put_later(self, late: Late) -> None:
        """Write something when it is due, unless it is dropped before.

        It must be due in :data:`~.inbox.SOON` milliseconds, as everything else is.
        """
        if not self._inbox.add_late(late):
            self.wake()

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until all events submitted before are committed, or kept.

        Returns:
          False if that took longer than *timeout*, in seconds, or the writer failed.
        """
        if self._thread is None:
            return True
        receipt = self._submit(None)
        return receipt.acquire(timeout=timeout) and receipt.error is None

    def close(self, timeout: float = END_WITHIN) -> None:
        """Write the submitted events, then end the thread and close its connection.

        Events submitted meanwhile are written by the next thread.  Events that cannot be written
        within *timeout* seconds are dropped, and their number is logged.
        """
        with self._close_lock:
            with self._start_lock:
                # A thread that is just being started can be joined only once it has begun.
                thread = self._thread
            if thread is None:
                return
            self._outage.end_by(time.monotonic() + timeout)
            self._inbox.add(STOP)
            if thread is threading.current_thread():
                return
            thread.join(timeout + _LAST_TRY)
            if thread.is_alive():
                self._logger.error(
                    "The job log's writer has not ended: %d event(s) are not written yet, and "
                    "are lost if the process ends now.",
                    self._turns.unwritten,
                )

    def every(self, interval: int, chore: Callable[[], None]) -> None:
        """Call *chore* on the writer's thread, now and every *interval* milliseconds.

        It may use the database, and is not called while that is unavailable.
        """
        self._timetable.every(interval, chore)
        self.wake()

    def at_least_every(self, interval: int, chore: Callable[[], Any]) -> None:
        """Call *chore* every *interval* milliseconds, or more often if it already is.

        One that returns True has more to do, and is called again before events are waited for.
        """
        self._timetable.at_least_every(interval, chore)

    def end_chore(self, chore: Callable[[], None], last: Callable[[], None]) -> None:
        """Stop calling *chore*, and call *last* once."""
        self._timetable.end(chore, last)
        self.wake()

    def call(self, function: Callable[[], Any], until: float | None = None) -> Any:
        """Call *function* on the writer's thread, where it may use the database; return its result.

        Parameters:
          function: May still be called after this raises, if the database answers too late.
          until: The deadline for a locked database, in monotonic seconds; the answer may take a
          little longer.  None for the database's own timeout.

        Raises:
          DatabaseAwayError: If the database is unavailable, or does not answer in time.
          JobLogError: If the writer failed.
        """
        call = Call(function, until)
        receipt = self._submit(call)
        within = -1 if until is None else max(0.0, until - time.monotonic()) + ANSWERS_WITHIN
        if not receipt.acquire(timeout=within):
            raise DatabaseAwayError(f"the database did not respond within {within:.1f} s")
        if receipt.error is not None:
            raise receipt.error
        if call.error is not None:
            raise call.error
        return call.result

    def post(self, function: Callable[[], Any]) -> None:
        """Call *function* on the writer's thread, after all events submitted before.

        Does not wait.  While the database is unavailable, it is not called.
        """
        self._submit(Call(function))

    def wake(self) -> None:
        """Make the thread write submitted events, run due chores and check for the database."""
        self._submit(None)

    def reset(self) -> None:
        """Drop the parent's thread, queue and connections, after a fork."""
        inherited.append((self._connection.leave_to_parent(), leave_connections(self._database)))
        self._outage.forget()
        self._transitions.locks.forget_all()
        self._forget()

    def _submit(
        self, event: Event | Call | None, *, awaited: bool = True, rides: bool = False
    ) -> Receipt:
        ticket = Receipt(event, awaited, rides)
        ticket.done.acquire()
        # In this order: an ending thread checks once more for new items.
        self._inbox.add(ticket)
        if self._thread is None:
            self._start()
        return ticket

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None:
                thread = threading.Thread(
                    target=self._run, name="dramatiq_joblog writer", daemon=True
                )
                # Set only once it runs: close() cannot join a thread that has not started.
                thread.start()
                self._thread = thread
                if not self._ends_with_process:
                    self._ends_with_process = True
                    # Runs before daemon threads are stopped, also in multiprocessing's children.
                    multiprocessing.util.Finalize(
                        self, _close_at_exit, (weakref.ref(self),), exitpriority=100
                    )

    # Called on the writer's thread

    def _run(self) -> None:
        adopt = self._outage.replay_left_behind
        if adopt not in self._timetable:
            self._timetable.every_unbounded(ADOPT_EVERY, adopt)
        try:
            while self._turns.take():
                pass
        finally:
            self._end()

    def _end(self) -> None:
        """Leave everything to the next thread, and start it if there are new items."""
        self._inbox.leave()
        self._outage.stop()
        self._connection.close()
        with self._start_lock:
            self._thread = None
        if self._inbox:
            self._start()

    def _ask(self, function: Callable[[], T]) -> T:
        """Call a function that uses the database, on the thread's current connection."""
        return self._connection.ask(function)


def _close_at_exit(reference: weakref.ref[Writer]) -> None:
    writer = reference()
    if writer is not None:
        writer.close()


# Only for forked children: threads and connections belong to the process that created them.
writers: weakref.WeakSet[Writer] = weakref.WeakSet()
#: The parent's connections.  They are kept open: closing one here would harm the parent's.
inherited: list[Any] = []


def _after_fork() -> None:
    for writer in list(writers):
        writer.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
