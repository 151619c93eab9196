"""Periodic work of the writer's thread."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger

from dramatiq_joblog.errors import DatabaseAwayError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dramatiq_joblog.database.limited_log import LimitedLog

_logger = get_logger(__name__)


@dataclass
class _Chore:
    """A periodic or one-time function; one that returns True is called again at the next turn."""

    #: The interval in seconds; None to run once.
    interval: float | None
    function: Callable[[], Any]
    #: When it is due, in monotonic seconds.
    due: float = 0.0
    #: Whether it must end within the time that one question to the database may take.
    bounded: bool = True


class Timetable:
    """Chores with their due times; any thread may add one, a single thread runs them.

    Parameters:
      limited: The rate-limited logger for chores that fail.
    """

    def __init__(self, limited: LimitedLog) -> None:
        self._limited = limited
        self._chores: list[_Chore] = []

    def __contains__(self, chore: Callable[[], Any]) -> bool:
        return any(known.function == chore for known in self._chores)

    def every(self, interval: int, chore: Callable[[], Any], *, at_once: bool = True) -> None:
        """Call *chore* every *interval* milliseconds, beginning now if *at_once*."""
        due = 0.0 if at_once else time.monotonic() + interval / 1000
        self._chores.append(_Chore(interval / 1000, chore, due))

    def every_unbounded(self, interval: int, chore: Callable[[], Any]) -> None:
        """Call *chore* every *interval* milliseconds, beginning now, however long it takes.

        It is not called through ``ask``: it must call that itself, for each of its parts.
        """
        self._chores.append(_Chore(interval / 1000, chore, bounded=False))

    def at_least_every(self, interval: int, chore: Callable[[], Any]) -> None:
        """Call *chore* every *interval* milliseconds, or more often if it already is."""
        due = time.monotonic() + interval / 1000
        for known in self._chores:
            if known.function == chore:
                known.interval = min(known.interval or interval / 1000, interval / 1000)
                known.due = min(known.due, due)
                return
        self.every(interval, chore, at_once=False)

    def end(self, chore: Callable[[], Any], last: Callable[[], None]) -> None:
        """Stop calling *chore*, and call *last* once."""
        self._chores[:] = [c for c in self._chores if c.function != chore]
        self._chores.append(_Chore(None, last))

    def clear(self) -> None:
        """Remove all chores."""
        self._chores.clear()

    @property
    def next_due(self) -> float | None:
        """When the next chore is due, in monotonic seconds; None if there is none."""
        return min((chore.due for chore in self._chores), default=None)

    def do_due(
        self, ask: Callable[[Callable[[], Any]], Any], *, periodic_only: bool = False
    ) -> None:
        """Run due chores through *ask*, which may raise that the database is unavailable.

        Parameters:
          ask: Calls a function that uses the database.
          periodic_only: Whether to leave chores that run once, such as the last heartbeat.
        """
        for chore in list(self._chores):
            if chore.due > time.monotonic() or (periodic_only and chore.interval is None):
                continue
            if chore.interval is None:
                self._chores.remove(chore)
            else:
                chore.due = time.monotonic() + chore.interval
            try:
                more = ask(chore.function) if chore.bounded else chore.function()
                if more is True:
                    chore.due = time.monotonic()
            except DatabaseAwayError as e:
                _logger.debug("A background task of the job log is skipped: %s", e)
            except BaseException:  # noqa: BLE001 - it is logged
                self._limited.log(
                    logging.CRITICAL,
                    f"chore {chore.function!r}",
                    "A background task of the job log failed.",
                    exc_info=True,
                )
