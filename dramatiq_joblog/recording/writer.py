"""The group-commit writer: one thread and one connection a process.

Worker threads hand it events and wait for the commit; it takes all that is waiting,
writes it as one transaction and wakes the waiters.  One thread that waits costs one commit,
and eight that wait still cost one.  What nobody waits for rides along with what comes next.

While the database is unavailable, events go where the log's policy says, and nobody waits for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import multiprocessing.util
import os
import random
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

from dramatiq.logging import get_logger

from dramatiq_joblog.database.connection import (
    PROBE_AFTER,
    PROBE_AT_MOST,
    Connection,
    Probe,
    leave_connections,
)
from dramatiq_joblog.database.limited_log import LimitedLog
from dramatiq_joblog.errors import DatabaseAwayError, JobLogError
from dramatiq_joblog.payload.secret_texts import scrub

from .batches import Batches
from .events import GRANTED, UNANSWERED, Answer, Ended, Event, Started
from .timetable import Timetable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from peewee import Database

    from .events import Answers
    from .exclusive import Sections
    from .spool import Spool

T = TypeVar("T")

#: Milliseconds that a batch is tried for before the database is considered unavailable.
DEFAULT_RETRY_FOR = 2_000
#: As many events are written in one transaction at most.
MAX_BATCH = 500

#: Milliseconds until a job with a section comes back while the database is unavailable; about.
AWAY_DELAY = 3_000

#: Seconds that the writer goes on at most when its process ends, and those of a last try.
END_WITHIN, _LAST_TRY = 30.0, 10.0

#: Milliseconds that an event which nobody waits for may wait for others, at most.
RIDE = 20
#: Milliseconds that a run lasts at least whose start is written by itself, if it is written soon.
SOON = 50

#: Milliseconds between two looks for what processes that died kept on this host.
ADOPT_EVERY = 10_000
#: What becomes of events while the database is unavailable.
OnOutage: TypeAlias = Literal["spool", "block", "drop"]
POLICIES: tuple[str, ...] = get_args(OnOutage)


@dataclass(eq=False)
class Receipt:
    """What was handed over to the writer, and what became of it."""

    event: Event | _Call | None
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

    def wait(self) -> Answer:
        """Wait until it is committed, or kept by the log's policy, and return the answer.

        Raises:
          JobLogError: If the writer failed.
        """
        self.done.acquire()
        if self.error is not None:
            raise self.error
        return self.answer


_STOP = Receipt(None)


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
        self._sections = sections
        self._transitions = sections.transitions
        self._database: Database = sections.transitions.database
        self._spool = spool
        self._policy = on_outage
        self._retry_for = retry_for
        self._logger = get_logger(__name__, type(self))
        self._limited = LimitedLog(self._logger)
        self._timetable = Timetable(self._limited)
        self._batches = Batches(sections, self._ask)
        self._forget()
        self._lost = 0
        writers.add(self)

    def _forget(self) -> None:
        """Begin as in a new process."""
        self._connection = Connection(self._database)
        self._start_lock = threading.Lock()
        self._close_lock = threading.Lock()
        self._tickets: deque[Receipt] = deque()
        #: Events that the thread is about to write, by their identity.
        self._at_hand: dict[int, Event] = {}
        #: When the thread gives up what the database does not take, as its process ends; monotonic.
        self._ends_by = math.inf
        #: Events that it gave up then.
        self._dropped = 0
        self._ends_with_process = False
        #: Free once there is something for the thread to look at.
        self._bell = locked()
        #: Whether the thread sleeps, or is about to, and knows of nothing that must be written.
        self._idle = False
        #: Starts that are written only if their runs last, and when that is; monotonic.
        self._soon: deque[LateStart] = deque()
        self._asleep_until = math.inf
        self._thread: threading.Thread | None = None
        self._probe: Probe | None = None
        self._timetable.clear()
        #: Milliseconds between two renewals that were planned last.
        self._renewed_every: int | None = None

    # From any thread

    @property
    def policy(self) -> str:
        """What becomes of events while the database is unavailable: one of :data:`POLICIES`."""
        return self._policy

    def on_written(self, listener: Callable[[Sequence[Event], Answers], None]) -> None:
        """Call *listener* with what was committed, and with what the starts were answered.

        It is called on the writer's thread, and must not wait.
        """
        self._batches.on_written(listener)

    @property
    def lost(self) -> int:
        """Events that could not be written or kept, since this process began."""
        return self._lost + self._batches.lost

    @property
    def away(self) -> bool:
        """Whether the database is considered unavailable."""
        return self._probe is not None

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
        """Write a start within :data:`SOON`, unless it is dropped until then."""
        late = LateStart(start, time.monotonic() + SOON / 1000)
        self._soon.append(late)
        if self._asleep_until > late.due:
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
            self._ends_by = time.monotonic() + timeout
            self._tickets.append(_STOP)
            self._ring()
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
        waiting = [ticket.event for ticket in list(self._tickets)]
        return len(self._at_hand) + sum(isinstance(event, Event) for event in waiting)

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

    def call(self, function: Callable[[], Any]) -> Any:
        """Return what *function* returns on the writer's thread, where it may use the database.

        Raises:
          DatabaseAwayError: If the database is unavailable.
          JobLogError: If the writer failed.
        """
        call = _Call(function)
        self._submit(call).wait()
        if call.error is not None:
            raise call.error
        return call.result

    def post(self, function: Callable[[], Any]) -> None:
        """Call *function* on the writer's thread, after all that was handed over before.

        Nobody waits for it, and while the database is unavailable it is left out.
        """
        self._submit(_Call(function))

    def wake(self) -> None:
        """Make the thread write what there is, and look at its chores and for the database."""
        self._submit(None)

    def reset(self) -> None:
        """Forget the thread, the queue and the connections of the process that was forked."""
        inherited.append((self._connection.leave_to_parent(), leave_connections(self._database)))
        self._spool.forget()
        self._transitions.locks.forget_all()
        self._forget()

    def _submit(
        self, event: Event | _Call | None, *, awaited: bool = True, rides: bool = False
    ) -> Receipt:
        ticket = Receipt(event, awaited, rides)
        ticket.done.acquire()
        # In this order: a thread that ends looks once more for what was added.
        self._tickets.append(ticket)
        if self._thread is None:
            self._start()
        if awaited or (self._idle and not rides):
            self._ring()
        return ticket

    def _ring(self) -> None:
        if self._bell.locked():
            # Another may ring at the same time.
            with contextlib.suppress(RuntimeError):
                self._bell.release()

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
        if self._replay_left_behind not in self._timetable:
            self._timetable.every(ADOPT_EVERY, self._replay_left_behind)
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
            # A thread that hands over a start meanwhile wakes us in any case.
            self._asleep_until = math.inf
            pause = self._pause()
            self._asleep_until = math.inf if pause is None else time.monotonic() + pause
            self._take(pause, tickets)
            self._asleep_until = 0.0
            self._at_hand = {id(t.event): t.event for t in tickets if isinstance(t.event, Event)}
            # Before the events: a process is known before it is seen to run anything.
            if self._probe is None:
                self._timetable.do_due(self._ask)
            if self._probe is not None and self._probe.back.is_set():
                self._return()
            for wave in _waves([*self._take_starts(), *self._at_hand.values()]):
                answers |= _by_identity(wave, self._write(wave))
                for event in wave:
                    self._at_hand.pop(id(event), None)
            for ticket in tickets:
                if isinstance(ticket.event, _Call):
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
            if isinstance(event, _Call) and event.answered:
                continue
            ticket.error = JobLogError(f"the job log's writer failed: {scrub(str(error))}")
            ticket.error.__cause__ = error
        self._lost += len(self._at_hand)
        self._at_hand = {}
        # Should it go on so, others in this process are to have a turn.
        time.sleep(0.01)

    def _end(self) -> None:
        """Leave everything to the next thread, and begin it if something was handed over."""
        self._asleep_until = math.inf
        if self._probe is not None:
            self._probe.stop()
            self._probe = None
        self._connection.close()
        self._spool.forget()
        if self._dropped:
            self._logger.error(
                "%d event(s) of the job log were not written and are lost: its database was "
                "unavailable until the end.",
                self._dropped,
            )
        self._ends_by, self._dropped = math.inf, 0
        with self._start_lock:
            self._thread = None
        if self._tickets:
            self._start()

    def _take(self, pause: float | None, tickets: list[Receipt]) -> None:
        """Add all that waits to *tickets*; wait for the first of it, *pause* seconds at most."""
        # In this order: a thread that comes too late for the last look rings.
        self._bell.acquire(blocking=False)
        self._idle = rung = True
        self._drain(tickets)
        while rung and not any(ticket.awaited for ticket in tickets):
            self._idle = all(ticket.rides for ticket in tickets)
            longest = pause if self._idle else RIDE / 1000
            rung = self._bell.acquire(timeout=-1 if longest is None else longest)
            self._drain(tickets)
        self._idle = False

    def _drain(self, tickets: list[Receipt]) -> None:
        """Add all that is there now."""
        with contextlib.suppress(IndexError):
            while len(tickets) < MAX_BATCH:
                tickets.append(self._tickets.popleft())

    def _pause(self) -> float | None:
        """Return the seconds until there is something to do without being asked."""
        # While the database is unavailable, chores are left out, and the probe wakes us.
        due = self._timetable.next_due if self._probe is None else None
        if self._soon:
            due = min(self._soon[0].due, math.inf if due is None else due)
        return None if due is None else max(0.0, due - time.monotonic())

    def _take_starts(self) -> list[Event]:
        """Return the starts of runs that have lasted."""
        starts: list[Event] = []
        now = time.monotonic()
        while self._soon and (self._soon[0].due <= now or self._soon[0].is_dropped):
            late = self._soon.popleft()
            if not late.is_dropped:
                starts.append(late.event)
        return starts

    def _write(self, events: Sequence[Event]) -> Answers:
        """Write a batch; while the database is unavailable, keep it by the log's policy."""
        if self._probe is not None:
            return self._keep(events)
        if self._dropped:
            return self._drop(events)
        deadline = time.monotonic() + self._retry_for / 1000
        pause = 0.01
        while True:
            try:
                return self._batches.write(events)
            except DatabaseAwayError as e:
                # A deadlock, a busy file or a restart is over soon.
                if self._policy != "block" and time.monotonic() > deadline:
                    self._leave(e)
                    return self._keep(events)
                if time.monotonic() > self._ends_by:
                    return self._drop(events)
                time.sleep(pause)
                pause = min(pause * 2, 0.5)

    def _drop(self, events: Sequence[Event]) -> Answers:
        """Give up what the database does not take, as the process ends."""
        self._dropped += len(events)
        self._lost += len(events)
        return {event.jid: UNANSWERED for event in _begins(events)}

    # While the database is unavailable

    def _leave(self, error: DatabaseAwayError) -> None:
        self._limited.log(
            logging.ERROR,
            "unavailable",
            "The job log's database is unavailable: %s. Until it is back, events are %s. %s",
            error,
            f"kept in {self._spool.folder}" if self._policy == "spool" else "dropped",
            error.cure,
        )
        self._look_for_database(PROBE_AFTER)

    def _look_for_database(self, pause: int) -> None:
        self._probe = Probe(
            self._database,
            self.wake,
            rehearse=self._transitions.rehearse,
            still=self._say_still,
            pause=pause,
        )

    def _say_still(self, error: Exception) -> None:
        cure = error.cure if isinstance(error, DatabaseAwayError) else ""
        self._limited.log(
            logging.ERROR,
            "unavailable",
            "The job log's database is still unavailable: %s. %s",
            str(error).strip(),
            cure,
        )

    def _answer(self, call: _Call) -> None:
        began = time.monotonic()
        try:
            if self._probe is not None:
                raise DatabaseAwayError("the job log's database is unavailable")  # noqa: TRY301
            call.result = self._ask(lambda: self._in_transaction(call.function))
        except Exception as e:  # noqa: BLE001
            # It is the caller's.
            call.error = e
            self._leave_if_silent(e, time.monotonic() - began)
        call.answered = True

    def _leave_if_silent(self, error: Exception, seconds: float) -> None:
        """Consider the database unavailable if a question took for as long as a batch may.

        Others wait behind it, each of whom would wait for as long in turn.
        """
        if not isinstance(error, DatabaseAwayError) or self._policy == "block":
            return
        if self._probe is None and seconds > self._retry_for / 1000:
            self._leave(error)

    def _ask(self, function: Callable[[], T]) -> T:
        """Call what uses the database on the connection that the thread has now."""
        return self._connection.ask(function)

    def _in_transaction(self, function: Callable[[], Any]) -> Any:
        with self._transitions.atomic():
            return function()

    def _keep(self, events: Sequence[Event]) -> Answers:
        """Keep events by the log's policy; runs that need keys come back later."""
        # Nobody knows whether their keys are free.
        away = {event.jid: _come_back() for event in _begins(events)}
        parts = [part for event in events if event.jid not in away for part in _parts(event)]
        if not parts:
            return away
        if self._policy == "drop":
            self._lost += len(parts)
            return away
        pause = 0.1
        while True:
            try:
                self._spool.append(parts)
            except OSError as e:
                # Neither the database nor the disk: losing nothing means waiting.
                self._logger.error("The job log's events cannot be kept either: %s", e)  # noqa: TRY400
                if time.monotonic() > self._ends_by:
                    self._drop(parts)
                    return away
                time.sleep(pause)
                pause = min(pause * 2, 5.0)
                with contextlib.suppress(DatabaseAwayError):
                    return {**away, **self._batches.write(parts)}
            else:
                return away

    def _return(self) -> None:
        """Replay what was kept, oldest first, and take up normal work."""
        try:
            for chunk in self._spool.replay():
                for wave in _waves(chunk):
                    self._batches.write(wave)
                self._let_in()
        except DatabaseAwayError as e:
            self._say_still(e)
            # It answers, and refuses what is written: there is no haste.
            self._look_for_database(PROBE_AT_MOST)
        else:
            self._limited.log(
                logging.INFO,
                "back",
                "The job log's database is back, and all that was kept is in it.",
            )
            self._probe = None

    def _let_in(self) -> None:
        """Keep what has come during a replay, so that nobody waits for the whole of it."""
        tickets: list[Receipt] = []
        answers: dict[int, Answer] = {}
        try:
            self._take(0.0, tickets)
            if _STOP in tickets:
                self._tickets.append(_STOP)
                self._ring()
            events = [t.event for t in tickets if isinstance(t.event, Event)]
            self._at_hand |= {id(event): event for event in events}
            if events:
                answers |= _by_identity(events, self._keep(events))
            for event in events:
                del self._at_hand[id(event)]
            for ticket in tickets:
                if isinstance(ticket.event, _Call):
                    ticket.event.error = DatabaseAwayError("the database is only just back")
                    ticket.event.answered = True
        except BaseException as e:
            self._fail(tickets, e)
            raise
        finally:
            _release(tickets, answers)

    def _replay_left_behind(self) -> None:
        for chunk in self._spool.left_behind():
            for wave in _waves(chunk):
                self._batches.write(wave)


@dataclass(eq=False)
class _Call:
    """Something that a thread wants to be done, and waits for."""

    function: Callable[[], Any]
    result: Any = None
    error: BaseException | None = None
    answered: bool = False


def _waves(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Split *events* so that no part has one job twice, keeping each job's order."""
    wave: dict[str, Event] = {}
    for event in events:
        if event.jid in wave:
            yield list(wave.values())
            wave = {}
        wave[event.jid] = event
    if wave:
        yield list(wave.values())


def _parts(event: Event) -> list[Event]:
    """Return an end and the start before it that was not written, as events of their own."""
    if not isinstance(event, Ended) or event.start is None:
        return [event]
    return [event.start, dataclasses.replace(event, start=None)]


def _begins(events: Iterable[Event]) -> list[Started]:
    """Return the starts of runs that need keys."""
    return [event for event in events if isinstance(event, Started) and event.is_begin]


def _come_back() -> Answer:
    """Return the answer to a run for whose keys the database is unavailable."""
    return Answer(granted=False, delay=round(AWAY_DELAY * random.uniform(0.5, 1.5)))  # noqa: S311


def _by_identity(events: Iterable[Event], answers: Answers) -> dict[int, Answer]:
    """Return the answers to *events* by those themselves: a job may have several at once."""
    if not answers:
        return {}
    return {id(event): answers[event.jid] for event in events if event.jid in answers}


def locked() -> threading.Lock:
    """Return a lock that is taken already."""
    lock = threading.Lock()
    lock.acquire()
    return lock


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
