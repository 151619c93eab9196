"""The turns of the writer's thread: each takes what was submitted, and writes it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger

from dramatiq_joblog.errors import DatabaseAwayError, JobLogError
from dramatiq_joblog.payload.secret_texts import scrub

from .events import Event
from .inbox import MAX_BATCH, STOP, Call, release
from .outage import waves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dramatiq_joblog.database.connection import Connection

    from .events import Answer, Answers
    from .inbox import Inbox, Receipt
    from .outage import Outage
    from .timetable import Timetable
    from .transitions import Transitions


class Turns:
    """What the writer's thread does, in one process.

    Not thread-safe.

    Parameters:
      inbox: What other threads submit.
      connection: The thread's connection.
      transitions: The statements of the log.
      outage: Writes batches, or keeps them.
      timetable: The chores that are done in between.
    """

    def __init__(
        self,
        inbox: Inbox,
        connection: Connection,
        transitions: Transitions,
        outage: Outage,
        timetable: Timetable,
    ) -> None:
        self._inbox = inbox
        self._connection = connection
        self._transitions = transitions
        self._outage = outage
        self._timetable = timetable
        #: The events that are about to be written, by ``id()``.
        self._at_hand: dict[int, Event] = {}
        #: The current interval of lease renewals, in milliseconds.
        self._renewed_every: int | None = None
        #: The number of events lost because a turn failed.
        self.lost = 0
        self._logger = get_logger(__name__, type(self))

    @property
    def unwritten(self) -> int:
        """The number of events that were submitted, and are not written yet."""
        return len(self._at_hand) + self._inbox.count_events()

    def take(self) -> bool:
        """Take one turn; return False after the last of the thread."""
        tickets: list[Receipt] = []
        answers: dict[int, Answer] = {}
        try:
            # While the database is unavailable, no chore is run, and the probe wakes the thread.
            due = None if self._outage.is_on else self._timetable.next_due
            self._inbox.take(due, tickets)
            self._at_hand = {id(t.event): t.event for t in tickets if isinstance(t.event, Event)}
            # Before the events, so that a process has its row before its first run.
            if not self._outage.is_on:
                self._timetable.do_due(self._connection.ask)
            if self._outage.seems_over:
                self._outage.replay(self._let_in)
            # After the events: what withdraws a start must not be written before it, and while more
            # wait than one turn takes, its start may be among them.
            late = self._inbox.take_late() if len(tickets) < MAX_BATCH else []
            for wave in waves([*self._at_hand.values(), *late]):
                answers |= _by_identity(wave, self._outage.write(wave))
                for event in wave:
                    self._at_hand.pop(id(event), None)
            for ticket in tickets:
                if isinstance(ticket.event, Call):
                    self._answer(ticket.event)
            self._plan_renewals()
        except BaseException as e:  # noqa: BLE001
            # No error may end the thread: the waiting threads would hang.
            self._fail(tickets, e)
        finally:
            release(tickets, answers)
        return STOP not in tickets

    def _plan_renewals(self) -> None:
        """Renew leases as often as the shortest one of this process requires."""
        locks = self._transitions.locks
        every = locks.leases.renewed_every
        if every != self._renewed_every:
            self._renewed_every = every
            if every is not None:
                self._timetable.at_least_every(every, locks.leases.renew)

    def _fail(self, tickets: Sequence[Receipt], error: BaseException) -> None:
        """Report to the waiting threads, and to the log, that the writer failed."""
        self._logger.critical("The job log's writer failed.", exc_info=error)
        for ticket in tickets:
            event = ticket.event
            if ticket is STOP:
                continue
            if isinstance(event, Event) and id(event) not in self._at_hand:
                continue
            if isinstance(event, Call) and event.answered:
                continue
            failed = JobLogError(f"the job log's writer failed: {scrub(str(error))}")
            failed.__cause__ = error
            ticket.fail(failed)
        self.lost += len(self._at_hand)
        self._at_hand = {}
        # If it keeps failing, let the other threads of this process run.
        time.sleep(0.01)

    def _answer(self, call: Call) -> None:
        began = time.monotonic()
        try:
            if self._outage.is_on:
                raise DatabaseAwayError("the job log's database is unavailable")  # noqa: TRY301
            call.succeed(self._connection.ask(_until(call, self._in_transaction)))
        except Exception as e:  # noqa: BLE001
            # The caller raises it.
            call.fail(e)
            self._outage.consider(e, time.monotonic() - began)

    def _in_transaction(self, function: Callable[[], Any]) -> Any:
        with self._transitions.atomic():
            return function()

    def _let_in(self) -> None:
        """Keep events submitted during a replay, so that no thread waits for the whole replay.

        Periodic chores are run: a process without heartbeats would be considered dead.  It must not
        report its end before its events are written.
        """
        tickets: list[Receipt] = []
        answers: dict[int, Answer] = {}
        try:
            self._inbox.take(0.0, tickets)
            if STOP in tickets:
                self._inbox.add(STOP)
            events = [t.event for t in tickets if isinstance(t.event, Event)]
            self._at_hand |= {id(event): event for event in events}
            if events:
                answers |= _by_identity(events, self._outage.keep(events))
            for event in events:
                del self._at_hand[id(event)]
            for ticket in tickets:
                if isinstance(ticket.event, Call):
                    ticket.event.fail(DatabaseAwayError("the database has only just come back"))
            self._timetable.do_due(self._connection.ask, periodic_only=True)
        except BaseException as e:
            self._fail(tickets, e)
            raise
        finally:
            release(tickets, answers)


def _until(call: Call, in_transaction: Callable[[Callable[[], Any]], Any]) -> Callable[[], Any]:
    """Return a function that does a call, and does not retry it after its deadline."""
    tries = 0

    def work() -> Any:
        nonlocal tries
        tries += 1
        if tries > 1 and call.until is not None and time.monotonic() > call.until:
            raise DatabaseAwayError("the database is locked")
        return in_transaction(call.function)

    return work


def _by_identity(events: Iterable[Event], answers: Answers) -> dict[int, Answer]:
    """Return the answers by ``id()`` of the event: a job may have several at once."""
    if not answers:
        return {}
    return {id(event): answers[event.jid] for event in events if event.jid in answers}
