"""Which worker processes live, and what became of the runs of those that do not.

A process renews its row by the database's clock, so that no host's clock matters.
"""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

from .clock import database_now
from .states import State

if TYPE_CHECKING:
    from peewee import Database

#: Milliseconds between two signs of life of a process.
DEFAULT_HEARTBEAT = 5_000
#: Milliseconds without one after which a process is taken to be gone.
DEFAULT_HEARTBEAT_TIMEOUT = 30_000
#: Milliseconds that the row of a process which is gone is kept.
KEEP_ENDED = 7 * 24 * 3600 * 1000

HOST = socket.gethostname()


class Heartbeat:
    """The sign of life of one process, and its eye on the others.

    Its methods are called on the writer's thread.

    Parameters:
      job: The bound job model.
      worker: The bound worker model.
      timeout: Milliseconds without a sign of life after which this process is taken to be gone.
    """

    def __init__(self, job: Any, worker: Any, *, timeout: int) -> None:
        self.job = job
        self.worker = worker
        self.timeout = timeout
        #: Names this process, and no other before or after it, whatever its number.
        self.process = secrets.token_hex(8)
        self.threads = 0
        self.queues: set[str] = set()
        self._database: Database = worker._meta.database

    def beat(self) -> None:
        """Renew this process's row, and mark the runs of processes that are gone as lost."""
        now = database_now(self._database)
        mine = self.worker.process == self.process
        renewed = (
            self.worker.update(heartbeat_at=now, ended_at=None, swept_at=None, threads=self.threads)
            .where(mine, self.worker.swept_at.is_null())
            .execute()
        )
        if not renewed:
            self._appear()
        self._sweep()

    def end(self) -> None:
        """Say that this process has ended its work."""
        now = database_now(self._database)
        (
            self.worker.update(heartbeat_at=now, ended_at=now)
            .where(self.worker.process == self.process)
            .execute()
        )

    def _appear(self) -> None:
        """Write this process's row, or revive it: it was taken to be gone while it was paused."""
        now = database_now(self._database)
        (
            self.worker.insert(
                process=self.process,
                host=HOST,
                pid=os.getpid(),
                boot_id=_boot_id(),
                threads=self.threads,
                queues=sorted(self.queues),
                timeout=self.timeout,
                started_at=now,
                heartbeat_at=now,
            )
            .on_conflict(
                conflict_target=[self.worker.process],
                update={"heartbeat_at": now, "ended_at": None, "swept_at": None},
            )
            .execute()
        )
        (
            self.job.update(state=State.STARTED, updated_at=now)
            .where(self.job.state == State.LOST, self.job.process == self.process)
            .execute()
        )

    def _sweep(self) -> None:
        now = database_now(self._database)
        gone = self.worker.select(self.worker.process).where(
            self.worker.swept_at.is_null(),
            self.worker.ended_at.is_null(False)
            | (self.worker.heartbeat_at + self.worker.timeout < now),
        )
        for (process,) in list(gone.tuples()):
            # As many as the process had threads: no batch is large.
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


def _boot_id() -> str | None:
    """Return what tells one boot of this host from another, where the system has such a thing."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError:
        return None
