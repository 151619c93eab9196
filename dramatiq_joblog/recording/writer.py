"""The group-commit writer: one thread and one connection per process.

Worker threads hand it events and wait for the commit; it takes all that is waiting,
writes it as one transaction and wakes the waiters.  One thread that waits costs one commit,
and eight that wait still cost one.  What nobody waits for rides along with what comes next.

While the database is unavailable, events go where the log's policy says, and nobody waits for it.
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
from dramatiq_joblog.errors import DatabaseAwayError, JobLogError
from dramatiq_joblog.payload.secret_texts import scrub

from .batches import Batches
from .events import GRANTED, Event
from .inbox import Call, Inbox, Receipt
from .outage import Outage, waves
from .timetable import Timetable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from peewee import Database

    from .events import Answer, Answers, Started
    from .exclusive import Sections
    from .inbox import LateStart
    from .spool import Spool

T = TypeVar("T")

#: Milliseconds that a batch is tried for before the database is considered unavailable.
DEFAULT_RETRY_FOR = 2_000

#: Seconds that the writer goes on at most when its process ends, and those of a last try.
END_WITHIN, _LAST_TRY = 30.0, 10.0

#: Seconds that the database may take for an answer once it is no longer waited for.
ANSWERS_WITHIN = 2.0

#: Milliseconds between two looks for what processes that died kept on this host.
ADOPT_EVERY = 10_000

_STOP = Receipt(None)


class Writer:
    """Writes events in the order they come, in batches.

    Nothing starts before the first event.  A process that was forked from one with a
    writer gets a thread and a connection of its own.

    Parameters:
      sections: The statements of the log.
      spool: Where events go while the database is unavailable.
      on_outage: One of :data:`POLICIES`.
      retry_for: Milliseconds to try a batch before the database is considered unavailable.
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
        self._lost = 0
        writers.add(self)

    def _forget(self) -> None:
        """Begin as in a new process."""
        self._connection = Connection(self._database)
        self._start_lock = threading.Lock()
        self._close_lock = threading.Lock()
        self._inbox = Inbox()
        #: Events that the thread is about to write, by their identity.
        self._at_hand: dict[int, Event] = {}
        self._ends_with_process = False
        self._thread: threading.Thread | None = None
        self._timetable.clear()
        #: Milliseconds between two renewals that were planned last.
        self._renewed_every: int | None = None

    # From any thread

    @property
    def policy(self) -> str:
        """What becomes of events while the database is unavailable."""
        return self._outage.policy

    def on_written(self, listener: Callable[[Sequence[Event], Answers], None]) -> None:
        """Call *listener* with what was committed, and with what the starts were answered.

        It is called on the writer's thread, and must not wait.
        """
        self._batches.on_written(listener)

    @property
    def lost(self) -> int:
        """Events that could not be written or kept, since this process began."""
        return self._lost + self._batches.lost + self._outage.lost

    @property
    def away(self) -> bool:
        """Whether the database is considered unavailable."""
        return self._outage.is_on

    def put(self, event: Event, *, awaited: bool = False) -> Receipt:
        """Hand over *event* and go on; *awaited* if someone is going to wait for it.

        Returns:
          What can be acquired once the event is committed, or kept by the log's policy.
        """
        return self._submit(event, awaited=awaited)

    def ride(self, event: Event) -> Receipt:
        """Hand over *event*, to be written with what comes next, or at the next :meth:`wake`.

        The caller must ensure that one of them follows; this call does not wake the thread.

        Returns:
          A receipt as :meth:`put` does.
        """
        return self._submit(event, awaited=False, rides=True)

    def write(self, event: Event) -> Answer:
        """Hand over *event* and wait until it is committed, or kept by the log's policy.

        Returns:
          For a start, whether and how the run may go on.

        Raises:
          JobLogError: If the writer failed.
        """
        return self._submit(event).wait()

    def put_soon(self, start: Started) -> LateStart:
        """Write a start within :data:`~.inbox.SOON`, unless it is dropped until then."""
        late = self._inbox.add_late(start)
        if self._inbox.oversleeps(late):
            self.wake()
        return late

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until all that was handed over before is committed, or kept.

        Returns:
          False if that took longer than *timeout*, in seconds, or the writer failed.
        """
        if self._thread is None:
            return True
        receipt = self._submit(None)
        return receipt.acquire(timeout=timeout) and receipt.error is None

    def close(self, timeout: float = END_WITHIN) -> None:
        """Write what was handed over, then end the thread and its connection.

        What is handed over meanwhile is written by the next thread.  What the database does not
        take within *timeout* seconds is dropped, and how much that is is logged.
        """
        with self._close_lock:
            with self._start_lock:
                # One that another thread starts just now can be joined only once it has begun.
                thread = self._thread
            if thread is None:
                return
            self._outage.end_by(time.monotonic() + timeout)
            self._inbox.add(_STOP)
            if thread is threading.current_thread():
                return
            thread.join(timeout + _LAST_TRY)
            if thread.is_alive():
                self._logger.error(
                    "The job log's writer does not end: %d event(s) are not written, and lost if "
                    "the process ends now.",
                    self._unwritten(),
                )

    def _unwritten(self) -> int:
        return len(self._at_hand) + self._inbox.count_events()

    def every(self, interval: int, chore: Callable[[], None]) -> None:
        """Call *chore* on the writer's thread, now and every *interval* milliseconds.

        It may use the database, and is left out while that is unavailable.
        """
        self._timetable.every(interval, chore)
        self.wake()

    def at_least_every(self, interval: int, chore: Callable[[], None]) -> None:
        """Call *chore* every *interval* milliseconds, or as often as was asked for before."""
        self._timetable.at_least_every(interval, chore)

    def end_chore(self, chore: Callable[[], None], last: Callable[[], None]) -> None:
        """Call *chore* no more, and *last* once."""
        self._timetable.end(chore, last)
        self.wake()

    def call(self, function: Callable[[], Any], until: float | None = None) -> Any:
        """Return what *function* returns on the writer's thread, where it may use the database.

        Parameters:
          function: It may be called after all, if the database answers too late.
          until: How long the database may be locked, monotonic, in seconds; it is given a little
            more time to answer.  None for its own time.

        Raises:
          DatabaseAwayError: If the database is unavailable, or does not answer in time.
          JobLogError: If the writer failed.
        """
        call = Call(function, until)
        receipt = self._submit(call)
        within = -1 if until is None else max(0.0, until - time.monotonic()) + ANSWERS_WITHIN
        if not receipt.acquire(timeout=within):
            raise DatabaseAwayError(f"the database did not answer within {within:.1f} s")
        if receipt.error is not None:
            raise receipt.error
        if call.error is not None:
            raise call.error
        return call.result

    def post(self, function: Callable[[], Any]) -> None:
        """Call *function* on the writer's thread, after all that was handed over before.

        Nobody waits for it, and while the database is unavailable it is left out.
        """
        self._submit(Call(function))

    def wake(self) -> None:
        """Make the thread write what there is, and look at its chores and for the database."""
        self._submit(None)

    def reset(self) -> None:
        """Forget the thread, the queue and the connections of the process that was forked."""
        inherited.append((self._connection.leave_to_parent(), leave_connections(self._database)))
        self._outage.forget()
        self._transitions.locks.forget_all()
        self._forget()

    def _submit(
        self, event: Event | Call | None, *, awaited: bool = True, rides: bool = False
    ) -> Receipt:
        ticket = Receipt(event, awaited, rides)
        ticket.done.acquire()
        # In this order: a thread that ends looks once more for what was added.
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
                # Known once it runs: a thread that closes the log meanwhile could not wait for it.
                thread.start()
                self._thread = thread
                if not self._ends_with_process:
                    self._ends_with_process = True
                    # Runs before daemon threads are stopped, in multiprocessing's children too.
                    multiprocessing.util.Finalize(
                        self, _close_at_exit, (weakref.ref(self),), exitpriority=100
                    )

    # On the writer's thread

    def _run(self) -> None:
        adopt = self._outage.replay_left_behind
        if adopt not in self._timetable:
            self._timetable.every(ADOPT_EVERY, adopt)
        try:
            while self._turn():
                pass
        finally:
            self._end()

    def _turn(self) -> bool:
        """Do what there is to do; return False at the end of the thread."""
        tickets: list[Receipt] = []
        answers: dict[int, Answer] = {}
        try:
            # While the database is unavailable, chores are left out, and the probe wakes us.
            due = None if self._outage.is_on else self._timetable.next_due
            self._inbox.take(due, tickets)
            self._at_hand = {id(t.event): t.event for t in tickets if isinstance(t.event, Event)}
            # Before the events: a process is known before it is seen to run anything.
            if not self._outage.is_on:
                self._timetable.do_due(self._ask)
            if self._outage.seems_over:
                self._outage.replay(self._let_in)
            for wave in waves([*self._inbox.take_late(), *self._at_hand.values()]):
                answers |= _by_identity(wave, self._outage.write(wave))
                for event in wave:
                    self._at_hand.pop(id(event), None)
            for ticket in tickets:
                if isinstance(ticket.event, Call):
                    self._answer(ticket.event)
            self._plan_renewals()
        except BaseException as e:  # noqa: BLE001
            # Whatever it is: a thread that ended of it would leave all who wait.
            self._fail(tickets, e)
        finally:
            _release(tickets, answers)
        return _STOP not in tickets

    def _plan_renewals(self) -> None:
        """Renew what was taken, as often as the shortest lease of this process wants it."""
        locks = self._transitions.locks
        every = locks.leases.renewed_every
        if every != self._renewed_every:
            self._renewed_every = every
            if every is not None:
                self._timetable.at_least_every(every, locks.renew)

    def _fail(self, tickets: Sequence[Receipt], error: BaseException) -> None:
        """Say to all who wait, and to the log, that the writer failed."""
        self._logger.critical("The job log's writer failed.", exc_info=error)
        for ticket in tickets:
            event = ticket.event
            if ticket is _STOP:
                continue
            if isinstance(event, Event) and id(event) not in self._at_hand:
                continue
            if isinstance(event, Call) and event.answered:
                continue
            ticket.error = JobLogError(f"the job log's writer failed: {scrub(str(error))}")
            ticket.error.__cause__ = error
        self._lost += len(self._at_hand)
        self._at_hand = {}
        # Should it go on so, others in this process are to have a turn.
        time.sleep(0.01)

    def _end(self) -> None:
        """Leave everything to the next thread, and begin it if something was handed over."""
        self._inbox.wake_for_all()
        self._outage.stop()
        self._connection.close()
        with self._start_lock:
            self._thread = None
        if self._inbox:
            self._start()

    def _answer(self, call: Call) -> None:
        began = time.monotonic()
        try:
            if self._outage.is_on:
                raise DatabaseAwayError("the job log's database is unavailable")  # noqa: TRY301
            call.result = self._ask(_until(call, self._in_transaction))
        except Exception as e:  # noqa: BLE001
            # It is the caller's.
            call.error = e
            self._outage.consider(e, time.monotonic() - began)
        call.answered = True

    def _ask(self, function: Callable[[], T]) -> T:
        """Call what uses the database on the connection that the thread has now."""
        return self._connection.ask(function)

    def _in_transaction(self, function: Callable[[], Any]) -> Any:
        with self._transitions.atomic():
            return function()

    def _let_in(self) -> None:
        """Keep what has come during a replay, so that nobody waits for the whole of it."""
        tickets: list[Receipt] = []
        answers: dict[int, Answer] = {}
        try:
            self._inbox.take(0.0, tickets)
            if _STOP in tickets:
                self._inbox.add(_STOP)
            events = [t.event for t in tickets if isinstance(t.event, Event)]
            self._at_hand |= {id(event): event for event in events}
            if events:
                answers |= _by_identity(events, self._outage.keep(events))
            for event in events:
                del self._at_hand[id(event)]
            for ticket in tickets:
                if isinstance(ticket.event, Call):
                    ticket.event.error = DatabaseAwayError("the database is only just back")
                    ticket.event.answered = True
        except BaseException as e:
            self._fail(tickets, e)
            raise
        finally:
            _release(tickets, answers)


def _until(call: Call, in_transaction: Callable[[Callable[[], Any]], Any]) -> Callable[[], Any]:
    """Return what does a call, and does not try it again once its time is over."""
    tries = 0

    def work() -> Any:
        nonlocal tries
        tries += 1
        if tries > 1 and call.until is not None and time.monotonic() > call.until:
            raise DatabaseAwayError("the database is locked")
        return in_transaction(call.function)

    return work


def _by_identity(events: Iterable[Event], answers: Answers) -> dict[int, Answer]:
    """Return the answers to *events* by those themselves: a job may have several at once."""
    if not answers:
        return {}
    return {id(event): answers[event.jid] for event in events if event.jid in answers}


def _release(tickets: Iterable[Receipt], answers: Mapping[int, Answer]) -> None:
    for ticket in tickets:
        if ticket is not _STOP:
            if answers:
                ticket.answer = answers.get(id(ticket.event), GRANTED)
            ticket.done.release()


def _close_at_exit(reference: weakref.ref[Writer]) -> None:
    writer = reference()
    if writer is not None:
        writer.close()


# For the child of a fork only: threads and connections belong to the process that made them.
writers: weakref.WeakSet[Writer] = weakref.WeakSet()
#: Connections of the parent.  They are kept, as even closing one here would harm it there.
inherited: list[Any] = []


def _after_fork() -> None:
    for writer in list(writers):
        writer.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
