"""What the writer's thread does now and then, beside writing."""

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
    """Something to do now and then."""

    #: Seconds; None to do it once.
    interval: float | None
    function: Callable[[], None]
    #: Monotonic, in seconds.
    due: float = 0.0


class Timetable:
    """Chores by when they are due; any thread may add some, and one does them.

    Parameters:
      limited: Where a chore that fails is logged.
    """

    def __init__(self, limited: LimitedLog) -> None:
        self._limited = limited
        self._chores: list[_Chore] = []

    def __contains__(self, chore: Callable[[], None]) -> bool:
        return any(known.function == chore for known in self._chores)

    def every(self, interval: int, chore: Callable[[], None], *, at_once: bool = True) -> None:
        """Call *chore* every *interval* milliseconds, and now if it is to be *at_once*."""
        due = 0.0 if at_once else time.monotonic() + interval / 1000
        self._chores.append(_Chore(interval / 1000, chore, due))

    def at_least_every(self, interval: int, chore: Callable[[], None]) -> None:
        """Call *chore* every *interval* milliseconds, or as often as was asked for before."""
        due = time.monotonic() + interval / 1000
        for known in self._chores:
            if known.function == chore:
                known.interval = min(known.interval or interval / 1000, interval / 1000)
                known.due = min(known.due, due)
                return
        self.every(interval, chore, at_once=False)

    def end(self, chore: Callable[[], None], last: Callable[[], None]) -> None:
        """Call *chore* no more, and *last* once."""
        self._chores[:] = [c for c in self._chores if c.function != chore]
        self._chores.append(_Chore(None, last))

    def clear(self) -> None:
        """Forget all chores."""
        self._chores.clear()

    @property
    def next_due(self) -> float | None:
        """When something is due next, monotonic, in seconds; None if nothing is."""
        return min((chore.due for chore in self._chores), default=None)

    def do_due(self, ask: Callable[[Callable[[], None]], Any]) -> None:
        """Have *ask* call what is due; it may raise that the database is unavailable."""
        for chore in list(self._chores):
            if chore.due > time.monotonic():
                continue
            if chore.interval is None:
                self._chores.remove(chore)
            else:
                chore.due = time.monotonic() + chore.interval
            try:
                ask(chore.function)
            except DatabaseAwayError as e:
                _logger.debug("A background task of the job log is left out: %s", e)
            except BaseException:  # noqa: BLE001 - it is logged
                self._limited.log(
                    logging.CRITICAL,
                    f"chore {chore.function!r}",
                    "A background task of the job log failed.",
                    exc_info=True,
                )
