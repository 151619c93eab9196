"""Which worker processes are alive, and the runs lost with those that are not.

A process renews its row by the database's clock, so that clocks of hosts do not matter.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.payload.sanitize import clean
from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from peewee import Database

    from dramatiq_joblog.schema.tables import Tables

#: Milliseconds between two heartbeats of a process.
DEFAULT_HEARTBEAT = 5_000
#: Milliseconds without a heartbeat after which a process is considered gone.
DEFAULT_HEARTBEAT_TIMEOUT = 30_000
#: Milliseconds that the row of an ended process is kept.
KEEP_ENDED = 7 * 24 * 3600 * 1000

#: Milliseconds that a heartbeat may be ahead of the database's clock when others read it.
MAX_FUTURE = 1_000
#: Milliseconds that two clocks may differ: the time of a round trip.
MAX_SKEW = 1_000

#: Milliseconds; longer than any timeout.
_LONG = 10**12

HOST = clean(socket.gethostname(), 128)


class Heartbeat:
    """The heartbeat of one process, and its check of the others.

    Its methods are called on the writer's thread.

    Parameters:
      tables: The tables of the log.
      timeout: Milliseconds without a heartbeat after which this process is considered gone.
      ended: Called with the name of a process that is known to have ended.
      clock_went_back: Called when the database's clock was set back.
    """

    def __init__(
        self,
        tables: Tables[Any],
        *,
        timeout: int,
        ended: Callable[[str], None] | None = None,
        clock_went_back: Callable[[], None] | None = None,
    ) -> None:
        # Any: peewee's queries are untyped.
        self.job: Any = tables.job
        self.worker: Any = tables.worker
        self.timeout = timeout
        self._ended = ended
        self._clock_went_back = clock_went_back
        #: A unique name of this process; process IDs are reused.
        self.process = secrets.token_hex(8)
        #: The number of worker threads, and the queues; together, as another thread sets them.
        self._load: tuple[int, list[str]] = 0, []
        self._database: Database = tables.database
        #: When the last heartbeat was written, and since when none was missed; monotonic.
        self._last: float | None = None
        self._listening_since = float("-inf")

    def beat(self) -> None:
        """Renew this process's row, and mark the runs of processes that are gone as lost."""
        began = time.monotonic()
        now = database_now(self._database)
        mine = self.worker.process == self.process
        renewed = (
            self.worker.update(
                heartbeat_at=now,
                ended_at=None,
                swept_at=None,
                skew=host_now() - now,
                **self._columns(),
            )
            .where(mine, self.worker.swept_at.is_null())
            .execute()
        )
        if not renewed:
            self._appear()
        if self._last is not None and began - self._last > self.timeout / 2000:
            # No process could write heartbeats while the database was unavailable.
            self._listening_since = began
        self._last = began
        self._sweep(round(min((began - self._listening_since) * 1000, _LONG)))

    def describe(self, threads: int, queues: Iterable[str]) -> None:
        """Set what the next heartbeats report; any thread may call this."""
        self._load = threads, sorted(queues)

    def end(self) -> None:
        """Mark this process as ended."""
        now = database_now(self._database)
        (
            self.worker.update(heartbeat_at=now, ended_at=now, **self._columns())
            .where(self.worker.process == self.process)
            .execute()
        )

    def _columns(self) -> dict[str, Any]:
        """Return the columns that are known only after the first heartbeat."""
        threads, queues = self._load
        return {"threads": threads, "queues": queues}

    def _appear(self) -> None:
        """Write this process's row, or revive it if the process was paused and considered gone."""
        now = database_now(self._database)
        mine = self.worker.process == self.process
        if self.worker.select().where(mine).exists():
            revived = {"heartbeat_at": now, "ended_at": None, "swept_at": None}
            self.worker.update(revived).where(mine).execute()
        else:
            self.worker.insert(
                process=self.process,
                host=HOST,
                pid=os.getpid(),
                boot_id=_boot_id(),
                timeout=self.timeout,
                started_at=now,
                heartbeat_at=now,
                skew=host_now() - now,
                **self._columns(),
            ).execute()
        # Once per new process is often enough.
        (
            self.worker.delete()
            .where(self.worker.swept_at.is_null(False), self.worker.heartbeat_at < now - KEEP_ENDED)
            .execute()
        )
        (
            self.job.update(state=State.STARTED, updated_at=now)
            .where(self.job.state == State.LOST, self.job.process == self.process)
            .execute()
        )

    def _sweep(self, listening: int) -> None:
        """Mark as lost the runs of processes without a heartbeat in *listening* milliseconds."""
        now = database_now(self._database)
        worker = self.worker
        silent = (worker.heartbeat_at + worker.timeout < now) & (worker.timeout <= listening)
        future = worker.heartbeat_at > now + MAX_FUTURE
        others = list(
            worker.select(worker, silent.alias("silent"), future.alias("future")).where(
                worker.swept_at.is_null(), worker.process != self.process
            )
        )
        if any(other.future for other in others):
            self._bound()
        for other in others:
            if other.silent or is_gone(other):
                self._lose(other.process)
            if self._ended is not None and has_ended(other):
                self._ended(other.process)

    def _bound(self) -> None:
        """Set heartbeats in the future to the current time.

        The database's clock was set back.  Otherwise a process would count as alive, and all leases
        as valid, until the clock has caught up.
        """
        worker, now = self.worker, database_now(self._database)
        future = worker.heartbeat_at > now + MAX_FUTURE
        worker.update(heartbeat_at=now).where(future).execute()
        if self._clock_went_back is not None:
            self._clock_went_back()

    def _lose(self, process: str) -> None:
        now = database_now(self._database)
        # At most one run per thread of the process, so the batch is small.
        (
            self.job.update(state=State.LOST, updated_at=now)
            .where(self.job.state == State.STARTED, self.job.process == process)
            .execute()
        )
        (
            self.worker.update(swept_at=now)
            .where(self.worker.process == process, self.worker.swept_at.is_null())
            .execute()
        )


def here() -> str:
    """Return the name of this thread: ``host:pid:thread``."""
    return f"{HOST}:{os.getpid()}:{threading.get_native_id()}"


def some_thread() -> str:
    """Return the name of a thread of this process that is not known yet: ``host:pid:0``."""
    return f"{HOST}:{os.getpid()}:0"


def is_gone(worker: Any) -> bool:
    """Return whether a process is known to be gone, from its row or from this host."""
    return worker.swept_at is not None or has_ended(worker)


def has_ended(worker: Any) -> bool:
    """Return whether a process has certainly ended, and is not merely silent."""
    if worker.ended_at is not None:
        return True
    if (worker.host, worker.boot_id) != (HOST, _boot_id()) or worker.boot_id is None:
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _boot_id() -> str | None:
    """Return an ID of this boot and PID namespace; None if the system has none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"[:64]
    except OSError:
        return None
