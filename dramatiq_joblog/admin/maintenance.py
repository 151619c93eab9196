"""Background maintenance: roll up totals, and prune old jobs.

One process at a time does this each minute, on a temporary thread with its own connection.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from dramatiq.logging import get_logger

from dramatiq_joblog.database.checkout import checked_out
from dramatiq_joblog.database.limited_log import LimitedLog
from dramatiq_joblog.database.silence import patient
from dramatiq_joblog.errors import DatabaseAwayError, JobLogError
from dramatiq_joblog.locking.turn import Turn
from dramatiq_joblog.payload.values import host_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from peewee import Database

    from dramatiq_joblog.locking.locks import Locks
    from dramatiq_joblog.statistics.rollups import Totals

    from .retention import Retention

#: Milliseconds between two checks whether a round is due.
INTERVAL = 10_000
#: Milliseconds until a turn expires unless it is renewed.
_TURN = 60_000
#: Milliseconds that a manual prune waits for another process.
_PATIENCE = 20_000
#: Milliseconds that one statement may take, on a large table and a slow disk.
_SLOW = 600_000
#: The pause after each automatic batch, as a multiple of the time that it took.
_REST = 39
#: The number of jobs deleted in an automatic batch; other writers wait meanwhile.
_BATCH = 500
#: Seconds of deleting after which the totals are updated again.
_PART = 60.0
_KEY = "chores"


class Chores:
    """The background maintenance of one log.

    Parameters:
      totals: Updates the totals.
      retention: Deletes old jobs.
      locks: The statements on keys, for the turn.
    """

    def __init__(self, totals: Totals, retention: Retention, locks: Locks) -> None:
        self.totals = totals
        self.retention = retention
        self._turns = Turn(locks, _KEY, lasts=_TURN)
        self._database: Database = locks.database
        self._limited = LimitedLog(get_logger(__name__, type(self)))
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def look(self) -> None:
        """Begin a round if one is due; called on the writer's thread, and uses its connection."""
        if self._thread is not None and self._thread.is_alive():
            return
        now = host_now()
        counted = self.totals.counted()
        if counted is not None and counted >= now - now % 60_000:
            return
        self._stopped.clear()
        self._thread = threading.Thread(
            target=self._round, name="dramatiq_joblog chores", daemon=True
        )
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Stop the current round, within *timeout* seconds."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def prune(
        self,
        retention: Retention,
        batch: int,
        progress: Callable[[Counter[str]], None] | None = None,
    ) -> Counter[str]:
        """Update the totals, delete old jobs, and return the numbers deleted.

        Raises:
          JobLogError: If another process holds the turn for too long.
        """
        deleted: Counter[str] = Counter()
        turn = self._turn(wait=_PATIENCE)
        with patient(_SLOW), checked_out(self._database), turn as renew:
            if renew is None:
                raise JobLogError("another process prunes this log now: try again later")

            def go_on() -> bool:
                if not renew():
                    raise JobLogError("another process took this one's turn to prune: try again")
                return True

            for part, _ in self._batches(retention, batch, go_on):
                deleted += part
                if progress is not None:
                    progress(deleted.copy())
                renew()
        return deleted

    def _round(self) -> None:
        """Update the totals, and delete old jobs in batches with pauses, until all is done."""
        try:
            with patient(_SLOW), checked_out(self._database), self._turn() as renew:
                if renew is None:
                    return

                def go_on() -> bool:
                    return renew() and not self._rest(0.0)

                for _, seconds in self._batches(self.retention, _BATCH, go_on):
                    if self._rest(seconds * _REST) or not renew():
                        return
        except DatabaseAwayError as e:
            # The database is unavailable or busy; the next round continues.
            text = "The job log's background tasks are postponed: %s"
            self._limited.log(logging.WARNING, "postponed", text, str(e).strip())
        except Exception:  # noqa: BLE001 - it is logged
            text = "The job log's background tasks failed."
            self._limited.log(logging.CRITICAL, "failed", text, exc_info=True)

    def _batches(
        self, retention: Retention, batch: int, go_on: Callable[[], bool]
    ) -> Iterator[tuple[Counter[str], float]]:
        """Delete old jobs; yield what each batch deleted, and the seconds that it took.

        The totals are updated first, and again each minute: a large log takes hours.

        Parameters:
          go_on: Called while the totals are updated; deleting stops if it returns False.
        """
        is_left = True
        while is_left:
            is_left = False
            now = host_now()
            if not self.totals.catch_up(now, go_on=go_on):
                return
            began = time.monotonic()
            until = began + _PART
            for deleted in retention.prune(now, batch):
                yield deleted, time.monotonic() - began
                began = time.monotonic()
                if began > until:
                    is_left = True
                    break

    def _rest(self, seconds: float) -> bool:
        """Pause; return whether this process is ending."""
        return self._stopped.wait(seconds)

    def _turn(self, wait: int = 0) -> AbstractContextManager[Callable[[], bool] | None]:
        """Acquire the turn within *wait* milliseconds; see :meth:`Turn.take`."""
        return self._turns.take(wait)
