"""Starts committed ahead: together, for messages that threads are about to take.

A thread that commits the start of its own job sleeps until that is done, and being woken costs more
than a short job does.  The consumer's thread therefore submits the starts of the messages that it
has fetched before it hands them over: their threads find them committed, or about to be.

Only runs that begin within moments are started ahead: those of actors whose runs are short, on
threads that are not busy with longer ones, so that the log does not call a job running that waits.
If no thread takes a message in time after all, its start is withdrawn, and written again later.

A start in a section is only committed ahead if that is free.  Otherwise its own thread asks, at the
time at which the policy for a conflict is to be applied.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.recording.events import Started, amended, withdrawn
from dramatiq_joblog.recording.inbox import SOON

from .options import SECTION, bare
from .run_times import WITHIN, RunTimes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

    from dramatiq_joblog.recording.events import Answer, Event
    from dramatiq_joblog.recording.inbox import Receipt
    from dramatiq_joblog.recording.log import Log, Writing

    from .messages import Messages
    from .plan import Plan
    from .run import Run
    from .runs import Runs

#: With fewer, each thread might as well commit its own.
AT_LEAST = 2
#: Seconds to wait at most until starts are withdrawn.
WITHDRAWN_WITHIN = 10.0
#: Seconds without, after starts had to be withdrawn or sections were not free.
PAUSE = 1.0
#: The types of values that cannot change.
_CONSTANTS = frozenset({bool, float, int, str, type(None)})


@dataclass(eq=False)
class StartAhead:
    """A start that was committed before a thread took its message."""

    run: Run
    plan: Plan
    receipt: Receipt
    #: Seconds that a run of its actor is expected to take.
    pace: float
    #: The message's values at that time.
    values: tuple[Any, ...]
    #: The key that its run needs, as stored in its message.
    section: dict[str, Any] | None = None
    #: Whether the check of runs that have begun has looked at it.
    is_checked: bool = False

    @property
    def fits(self) -> bool:
        """Whether no other middleware has changed the message since."""
        return self.values == _values_of(bare(self.run.given))

    def wait(self) -> Answer:
        """Return the answer to the start.

        Raises:
          JobLogError: If the writer failed.
        """
        return self.receipt.wait()


class Ahead:
    """Commits starts ahead, and withdraws those of runs that do not begin.

    Parameters:
      joblog: The log.
      messages: What is known of messages.
      runs: The runs of this process.
    """

    def __init__(self, joblog: Log[Writing], messages: Messages, runs: Runs) -> None:
        self._joblog = joblog
        self._messages = messages
        self._runs = runs
        self._threads = 0
        #: The starts that no thread has taken yet, by ``id()`` of their messages.
        self._pending: dict[int, StartAhead] = {}
        self._times = RunTimes()
        #: Until when none is started ahead, in monotonic seconds.
        self._not_before = 0.0
        #: Whether none is started ahead again.
        self._is_stopped = False
        #: The actors whose runs are never started ahead.
        self._never: set[str] = set()
        #: Until when no run of an actor is, whose sections were not free, in monotonic seconds.
        self._contended: dict[str, float] = {}

    def serve(self, threads: int) -> None:
        """Start runs ahead for so many worker threads; 0 for no more."""
        self._threads = threads

    # Called on consumer threads

    def start(self, broker: Broker, messages: Sequence[MessageProxy]) -> bool:
        """Commit the starts of those of *messages* that threads will take within moments.

        Returns:
          Whether they were all committed, and their runs end before more could be fetched.
        """
        if len(messages) < AT_LEAST or not self._threads or self._joblog.core.writer.away:
            return False
        if self._is_stopped or time.monotonic() < self._not_before:
            return False
        left = (self._threads - self.count_longer()) * WITHIN
        pending = list(self._pending.values())
        left -= sum(start.pace for start in pending)
        keys = {start.section["key"] for start in pending if start.section is not None}
        chosen: list[tuple[Run, Plan, float]] = []
        for message in messages:
            inner = bare(message)
            pace = self._times.expected(inner.actor_name)
            if pace is None or pace > left or inner.actor_name in self._never:
                continue
            plan = self._messages.plan(broker, inner)
            if not (plan.may_start_ahead and _is_constant(inner)):
                continue
            if plan.is_bound and not self._may_enter(inner, plan, keys):
                continue
            run = self._runs.make(broker, message, plan)
            left -= pace
            chosen.append((run, plan, pace))
        if len(chosen) < AT_LEAST:
            return False
        self._commit(chosen)
        if len(chosen) < len(messages):
            return False
        return self._times.are_brief({run.given.actor_name for run, *_ in chosen})

    def count_longer(self) -> int:
        """Return how many runs have lasted too long for one of a message started ahead."""
        return self._runs.count_longer(WITHIN)

    def _may_enter(self, message: Any, plan: Plan, keys: set[str]) -> bool:
        """Return whether a message's section may be free, and add its key to *keys*.

        The keys that are there already belong to runs that have not begun.
        """
        if time.monotonic() < self._contended.get(message.actor_name, 0):
            return False
        if message.options.get("retries"):
            # It may have its section already, and is let in before others.
            return False
        if not plan.bind(message):
            return False
        key = message.options[SECTION]["key"]
        if key in keys:
            return False
        keys.add(key)
        return True

    def _commit(self, chosen: Sequence[tuple[Run, Plan, float]]) -> None:
        writer, instant = self._joblog.core.writer, host_now()
        is_idle = not self._pending
        starts: list[StartAhead] = []
        for run, plan, pace in chosen:
            run.start_at(instant)
            values = *_, options = _values_of(bare(run.given))
            # Another middleware may change the message's own.
            section = options.get(SECTION)
            event = Started(
                run.row.copy(), rerun=plan.rerun, section=section, if_free=section is not None
            )
            # The last wakes the writer, and is waited for: they are committed in order.
            receipt = writer.put(event, awaited=len(starts) == len(chosen) - 1)
            start = StartAhead(run, plan, receipt, pace, values, section)
            self._pending[id(run.given)] = start
            starts.append(start)
        taken = _Taken(self, starts)
        # While the writer is awake: it would wake again to plan this.
        writer.put_later(taken)
        if is_idle:
            # The threads would all wait for it; so only one does.
            starts[-1].receipt.join(SOON / 1000)
            taken.plan()

    # Called on worker threads

    def take(self, message: MessageProxy) -> StartAhead | None:
        """Return the start of a message, if it was committed ahead and is still valid."""
        start = self._pending.pop(id(message), None)
        if start is None or start.fits:
            return start
        # For this actor's messages, what the log reads before is not what runs.
        self._never.add(message.actor_name)
        self._withdraw([start])
        return None

    def begun(self, start: StartAhead) -> None:
        """Note that the run of a start has begun."""
        if start.is_checked:
            # The check came before, so it is repeated.
            self._joblog.core.writer.put_later(_Taken(self, [start]))

    def note_run(self, actor: str, seconds: float) -> None:
        """Note how long a run of an actor took."""
        self._times.note(actor, seconds)

    def note_conflict(self, actor: str) -> None:
        """Note that a section was not free: for a while, its actor's runs are not started ahead."""
        self._contended[actor] = time.monotonic() + PAUSE

    def note_question(self, actor: str) -> None:
        """Note that a job queries the log: it must not find runs in progress that have not begun.

        Those of its own actor are therefore never started ahead again.
        """
        if actor in self._never:
            return
        self._never.add(actor)
        mine = [s for s in list(self._pending.values()) if s.run.given.actor_name == actor]
        self.withdraw([start.run.given for start in mine])

    def stop(self) -> None:
        """Start nothing ahead again in this process, and withdraw what no thread has taken.

        So other code that queries the log on a worker thread finds only runs that have begun.
        """
        if not self._is_stopped:
            self._is_stopped = True
            self.withdraw([start.run.given for start in list(self._pending.values())])

    def drop(self, message: Any) -> None:
        """Withdraw the start of a message, if any, that another middleware dropped or failed."""
        start = self._pending.pop(id(message), None)
        if start is not None:
            self._withdraw([start])

    # Called on any thread

    def withdraw(self, messages: Iterable[Any]) -> None:
        """Withdraw the starts of messages that no thread has taken, and wait until that is done."""
        starts = [start for m in messages if (start := self._pending.pop(id(m), None)) is not None]
        receipt = self._withdraw(starts)
        if receipt is not None and self._joblog.core.may_wait():
            receipt.acquire(timeout=WITHDRAWN_WITHIN)

    def _withdraw(self, starts: Sequence[StartAhead]) -> Receipt | None:
        receipt = None
        for start in starts:
            event = withdrawn(start.run.row, host_now(), section=start.section)
            receipt = self._joblog.core.writer.put(event, awaited=start is starts[-1])
        return receipt

    # Called on the writer's thread

    def amend(self, starts: Sequence[StartAhead]) -> list[Event]:
        """Return what the log must say differently of starts committed a while ago."""
        events: list[Event] = []
        for start in starts:
            # Before the run is looked at: its thread begins it, and then looks at this.
            start.is_checked = True
            run = start.run
            if self._pending.pop(id(run.given), None) is not None:
                events.append(withdrawn(run.row, host_now(), section=start.section))
                # Commits are slow, or runs longer than usual: in vain for now.
                self._not_before = time.monotonic() + PAUSE
            elif not run.ended and run.began is not None:
                events.append(amended(run.row, run.as_begun()))
        return events


class _Taken:
    """Checks, a while after some starts were committed ahead, whether their runs have begun."""

    def __init__(self, ahead: Ahead, starts: Sequence[StartAhead]) -> None:
        self._ahead = ahead
        self._starts = starts
        self.plan()

    def plan(self) -> None:
        """Plan the check for a while from now: threads can take the messages from now on."""
        self.due = time.monotonic() + SOON / 1000

    @property
    def is_dropped(self) -> bool:
        """Whether all of them have ended."""
        return all(start.run.ended for start in self._starts)

    def events(self) -> list[Event]:
        """Return what is to be written."""
        return self._ahead.amend(self._starts)


def _is_constant(message: Any) -> bool:
    """Return whether all arguments of a message are immutable values."""
    return all(type(v) in _CONSTANTS for v in (*message.args, *message.kwargs.values()))


def _values_of(message: Any) -> tuple[Any, ...]:
    """Return what the log has read of a plain message, whose values are all immutable."""
    options = dict(message.options)
    if SECTION in options:
        options[SECTION] = dict(options[SECTION])
    return message.actor_name, tuple(message.args), dict(message.kwargs), options
