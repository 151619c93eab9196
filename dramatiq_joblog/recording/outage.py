"""What happens to events while the database is unavailable."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import random
import time
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from dramatiq.logging import get_logger

from dramatiq_joblog.database.connection import PROBE_AFTER, PROBE_AT_MOST, Probe
from dramatiq_joblog.errors import DatabaseAwayError

from .events import UNANSWERED, Answer, Ended, Started

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from dramatiq_joblog.database.limited_log import LimitedLog

    from .batches import Batches
    from .events import Answers, Event
    from .spool import Spool
    from .transitions import Transitions

#: What happens to events while the database is unavailable.
OnOutage: TypeAlias = Literal["spool", "block", "drop"]
POLICIES: tuple[str, ...] = get_args(OnOutage)

#: Milliseconds, about, for which a job with a section is put back during an outage.
AWAY_DELAY = 3_000

_logger = get_logger(__name__)


class Outage:
    """Writes batches; while the database is unavailable, keeps them by the log's policy.

    Not thread-safe.

    Parameters:
      transitions: The statements of the log.
      batches: Writes them.
      spool: Keeps events meanwhile.
      policy: One of :data:`POLICIES`.
      retry_for: Milliseconds to try a batch before the database is considered unavailable.
      limited: The rate-limited logger for outages.
      wake: Called once the database seems to be available again.
    """

    def __init__(
        self,
        transitions: Transitions,
        batches: Batches,
        spool: Spool,
        *,
        policy: str,
        retry_for: int,
        limited: LimitedLog,
        wake: Callable[[], None],
    ) -> None:
        self.policy = policy
        self._transitions = transitions
        self._batches = batches
        self._spool = spool
        self._retry_for = retry_for
        self._limited = limited
        self._wake = wake
        self._probe: Probe | None = None
        #: The events of dead processes, and those of them that are not written yet.
        self._left: Generator[list[Event], None, None] | None = None
        self._chunk: list[Event] | None = None
        #: When unwritten events are dropped, because the process ends; monotonic.
        self._ends_by = math.inf
        #: The number of events dropped then.
        self._dropped = 0
        #: The number of events that the policy dropped, and that no log line has reported yet.
        self._left_out = 0
        #: The number of events that could neither be written nor kept.
        self.lost = 0

    @property
    def is_on(self) -> bool:
        """Whether the database is considered unavailable."""
        return self._probe is not None

    @property
    def seems_over(self) -> bool:
        """Whether the database has answered again."""
        return self._probe is not None and self._probe.back.is_set()

    def end_by(self, when: float) -> None:
        """Drop unwritten events at *when* (monotonic), because the process ends."""
        self._ends_by = when

    def write(self, events: Sequence[Event]) -> Answers:
        """Write a batch of events of different jobs, or keep it."""
        if self._probe is not None:
            return self.keep(events)
        if self._dropped:
            return self._drop(events)
        deadline = time.monotonic() + self._retry_for / 1000
        pause = 0.01
        while True:
            try:
                return self._batches.write(events)
            except DatabaseAwayError as e:
                # A deadlock, a locked file or a restart is soon over.
                if self.policy != "block" and time.monotonic() > deadline:
                    self._begin(e)
                    return self.keep(events)
                if time.monotonic() > self._ends_by:
                    return self._drop(events)
                time.sleep(pause)
                pause = min(pause * 2, 0.5)

    def consider(self, error: Exception, seconds: float) -> None:
        """Consider the database unavailable if a query took as long as a batch may take.

        Otherwise each thread that waits behind it would wait as long in turn.
        """
        if not isinstance(error, DatabaseAwayError) or self.policy == "block":
            return
        if self._probe is None and seconds > self._retry_for / 1000:
            self._begin(error)

    def keep(self, events: Sequence[Event]) -> Answers:
        """Keep events by the log's policy; runs that need keys are put back."""
        # It is unknown whether their keys are free.
        away = {event.jid: _come_back() for event in _begins(events)}
        parts = [part for event in events if event.jid not in away for part in _parts(event)]
        if not parts:
            return away
        if self.policy == "drop":
            self.lost += len(parts)
            self._left_out += len(parts)
            return away
        pause = 0.1
        while True:
            try:
                self._spool.append(parts)
            except OSError as e:
                # Neither the database nor the disk works: to lose nothing, wait.
                _logger.error("The job log's events cannot be kept either: %s", e)  # noqa: TRY400
                if time.monotonic() > self._ends_by:
                    self._drop(parts)
                    return away
                time.sleep(pause)
                pause = min(pause * 2, 5.0)
                with contextlib.suppress(DatabaseAwayError):
                    return {**away, **self._batches.write(parts)}
            else:
                return away

    def replay(self, between: Callable[[], None]) -> None:
        """Write the kept events, oldest first, and resume normal work on success.

        Parameters:
          between: Called after each chunk, so that no one waits for the whole replay.
        """
        try:
            for chunk in self._spool.replay():
                for wave in waves(chunk):
                    self._batches.write(wave)
                between()
        except DatabaseAwayError as e:
            self._say_still(e)
            # It answers, but refuses the events: retry slowly.
            self._look_for_database(PROBE_AT_MOST)
        else:
            self._say_back()
            self._probe = None

    def replay_left_behind(self) -> bool:
        """Write some events that dead processes left on this host; return whether there are more.

        Raises:
          DatabaseAwayError: If they cannot be written now: the next call begins with them.
        """
        if self._left is None:
            self._left = self._spool.left_behind()
            self._chunk = next(self._left, None)
        if self._chunk is not None:
            for wave in waves(self._chunk):
                self._batches.write(wave)
            # Taking the next chunk marks this one as written.
            self._chunk = next(self._left, None)
        if self._chunk is None:
            self._left = None
        return self._left is not None

    def _leave(self) -> None:
        """Leave the rest of what dead processes left to others."""
        if self._left is not None:
            # After a fork, the parent's thread may be in the middle of it.
            with contextlib.suppress(ValueError):
                self._left.close()
        self._left = self._chunk = None

    def stop(self) -> None:
        """Stop probing the database, and log what was dropped; the thread ends."""
        if self._probe is not None:
            self._probe.stop()
            self._probe = None
            self._dropped += self._left_out
        self._spool.forget()
        self._leave()
        if self._dropped:
            _logger.error(
                "%d event(s) of the job log were not written and are lost: its database was "
                "unavailable until the end.",
                self._dropped,
            )
        self._ends_by, self._dropped, self._left_out = math.inf, 0, 0

    def forget(self) -> None:
        """Reset the state, in a process that was just forked."""
        self._spool.forget()
        self._leave()
        self._probe = None
        self._ends_by, self._dropped, self._left_out = math.inf, 0, 0

    def _begin(self, error: DatabaseAwayError) -> None:
        self._limited.log(
            logging.ERROR,
            "unavailable",
            "The job log's database is unavailable: %s. Until it is back, events are %s. %s",
            error,
            f"kept in {self._spool.folder}" if self.policy == "spool" else "dropped",
            error.cure,
        )
        self._look_for_database(PROBE_AFTER)

    def _look_for_database(self, pause: int) -> None:
        self._probe = Probe(
            self._transitions.database,
            self._wake,
            rehearse=self._transitions.rehearse,
            still=self._say_still,
            pause=pause,
        )

    def _say_back(self) -> None:
        if not self._left_out:
            self._limited.log(
                logging.INFO,
                "back",
                "The job log's database is back, and all events that were kept are written.",
            )
        elif self._limited.log(
            logging.WARNING,
            "dropped",
            "The job log's database is back; %d event(s) were dropped meanwhile.",
            self._left_out,
        ):
            self._left_out = 0

    def _say_still(self, error: Exception) -> None:
        cure = error.cure if isinstance(error, DatabaseAwayError) else ""
        self._limited.log(
            logging.ERROR,
            "unavailable",
            "The job log's database is still unavailable: %s. %s",
            str(error).strip(),
            cure,
        )

    def _drop(self, events: Sequence[Event]) -> Answers:
        """Drop events that the database does not take, as the process ends."""
        self._dropped += len(events)
        self.lost += len(events)
        return {event.jid: UNANSWERED for event in _begins(events)}


def waves(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Split *events* so that no part has a job twice, keeping each job's order."""
    if len({event.jid for event in events}) == len(events):
        # The common case.
        if events:
            yield list(events)
        return
    wave: dict[str, Event] = {}
    for event in events:
        if event.jid in wave:
            yield list(wave.values())
            wave = {}
        wave[event.jid] = event
    if wave:
        yield list(wave.values())


def _parts(event: Event) -> list[Event]:
    """Return an end and its unwritten start as two events."""
    if not isinstance(event, Ended) or event.start is None:
        return [event]
    return [event.start, dataclasses.replace(event, start=None)]


def _begins(events: Iterable[Event]) -> list[Started]:
    """Return the starts of runs that need keys."""
    return [event for event in events if isinstance(event, Started) and event.is_begin]


def _come_back() -> Answer:
    """Return the answer to a run whose keys cannot be checked."""
    return Answer(granted=False, delay=round(AWAY_DELAY * random.uniform(0.5, 1.5)))  # noqa: S311
