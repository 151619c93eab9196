"""Background maintenance: roll up totals, and prune old jobs.

One process at a time does it, on a thread and a connection of its own that exist only
meanwhile; the first to come after a minute is over.
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

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from peewee import Database

    from dramatiq_joblog.locking.locks import Locks
    from dramatiq_joblog.statistics.rollups import Totals

    from .retention import Retention

#: Milliseconds between two looks whether there is something to do.
INTERVAL = 10_000
#: Milliseconds that a turn lasts unless it is renewed.
_TURN = 60_000
#: Milliseconds that one who prunes by hand waits for another.
_PATIENCE = 20_000
#: Milliseconds that one of its statements may take, on a large table and a slow disk.
_SLOW = 600_000
#: Of the time that a process prunes by itself, the database rests so many parts to one.
_REST = 24
#: Jobs that it deletes at once then: others wait for so long.
_BATCH = 500
_KEY = "chores"


class Chores:
    """The chores of one log.

    Parameters:
      totals: What counts.
      retention: What deletes.
      locks: Where the turn is taken.
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
        """Begin a round if one is due; on the writer's thread, whose connection it asks."""
        if self._thread is not None and self._thread.is_alive():
            return
        now = _now()
        counted = self.totals.counted()
        if counted is not None and counted >= now - now % 60_000:
            return
        self._stopped.clear()
        self._thread = threading.Thread(
            target=self._round, name="dramatiq_joblog chores", daemon=True
        )
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End the round that is under way, in *timeout* seconds at most."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def prune(
        self,
        retention: Retention,
        batch: int,
        progress: Callable[[Counter[str]], None] | None = None,
    ) -> Counter[str]:
        """Count what was not counted, delete what goes, and return how much that was.

        Raises:
          JobLogError: If another process does so for longer than a turn.
        """
        deleted: Counter[str] = Counter()
        turn = self._turn(wait=_PATIENCE)
        with patient(_SLOW), checked_out(self._database), turn as renew:
            if renew is None:
                raise JobLogError("another process prunes this log now: try again later")
            now = _now()
            if not self.totals.catch_up(now, go_on=renew):
                raise JobLogError("another process took this one's turn to prune: try again")
            for part in retention.prune(now, batch):
                deleted += part
                if progress is not None:
                    progress(deleted.copy())
                renew()
        return deleted

    def _round(self) -> None:
        """Count, and delete with rests, until all is done."""
        try:
            with patient(_SLOW), checked_out(self._database), self._turn() as renew:
                if renew is None:
                    return
                now = _now()
                if not self.totals.catch_up(now, go_on=lambda: renew() and not self._rest(0.0)):
                    return
                began = time.monotonic()
                for _ in self.retention.prune(now, _BATCH):
                    if self._rest((time.monotonic() - began) * _REST) or not renew():
                        return
                    began = time.monotonic()
        except DatabaseAwayError as e:
            # The database is unavailable, or busy: the next round will do it.
            text = "The job log's background tasks are put off: %s"
            self._limited.log(logging.WARNING, "put off", text, str(e).strip())
        except Exception:  # noqa: BLE001 - it is logged
            text = "The job log's background tasks failed."
            self._limited.log(logging.CRITICAL, "failed", text, exc_info=True)

    def _rest(self, seconds: float) -> bool:
        """Wait; return whether this process ends."""
        return self._stopped.wait(seconds)

    def _turn(self, wait: int = 0) -> AbstractContextManager[Callable[[], bool] | None]:
        """Take the turn within *wait* milliseconds; see :meth:`Turn.take`."""
        return self._turns.take(wait)


def _now() -> int:
    """Return this host's time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
