"""A worker process's duties for a log: heartbeat and background tasks.

A process may have several workers, of one or more brokers; the log considers it alive from the boot
of the first to the shutdown of the last.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dramatiq_joblog.recording.heartbeat import Heartbeat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog.locking.locks import Locks
    from dramatiq_joblog.recording.writer import Writer
    from dramatiq_joblog.schema.tables import Tables

#: Milliseconds between two cleanups of keys not held for a long time.
_CLEANING = 3_600_000


class Upkeep(Protocol):
    """A background task of the log, run one round at a time."""

    def look(self) -> None:
        """Begin a round if one is due."""

    def stop(self) -> None:
        """Stop the current round."""


class Workers:
    """The workers of this process, without those of the process it was forked from."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._known: dict[Any, Place] = {}

    def add(self, worker: Any, place: Place) -> bool:
        """Add a booting worker; return whether it is the first."""
        if self._pid != os.getpid():
            self._pid, self._known = os.getpid(), {}
        first = not self._known
        self._known[worker] = place
        return first

    def are_only(self, worker: Any) -> bool:
        """Return whether this is the only worker left."""
        return set(self.here) == {worker}

    def remove(self, worker: Any) -> bool:
        """Remove a worker that has shut down; return whether this was the last one."""
        known = self.here.pop(worker, None) is not None
        return known and not self.here

    @property
    def here(self) -> dict[Any, Place]:
        """The workers, with the place of each."""
        return self._known if self._pid == os.getpid() else {}


@dataclass(frozen=True)
class Place:
    """The threads and queues of one worker."""

    threads: int
    queues: frozenset[str]


class WorkerProcess:
    """The process's presence in the log while it has workers.

    Parameters:
      tables: The log's tables.
      writer: Writes the heartbeat.
      locks: The keys that this process holds.
      upkeep: The background tasks, each with its interval in milliseconds.
    """

    def __init__(
        self,
        tables: Tables[Any],
        *,
        writer: Writer,
        locks: Locks,
        upkeep: Sequence[tuple[Upkeep, int]],
    ) -> None:
        self._tables = tables
        self._writer = writer
        self._locks = locks
        self._upkeep = tuple(upkeep)
        self._workers = Workers()
        self._heartbeat: Heartbeat | None = None

    @property
    def name(self) -> str | None:
        """The name of this process in rows; None while it has no worker."""
        heartbeat = self._heartbeat
        return heartbeat.process if heartbeat is not None and self._workers.here else None

    def enter(self, worker: Any, place: Place, *, interval: int, timeout: int) -> None:
        """Start the heartbeat with the first worker, whose *interval* and *timeout* apply.

        Parameters:
          worker: The worker that boots.
          place: Its threads, and the queues that it consumes.
          interval: Milliseconds between two heartbeats.
          timeout: Milliseconds without a heartbeat after which the process is considered gone.
        """
        first = self._workers.add(worker, place)
        if first or self._heartbeat is None:
            self._heartbeat = Heartbeat(
                self._tables,
                timeout=timeout,
                ended=self._locks.end_of,
                clock_went_back=self._locks.bound,
            )
        self._describe(self._heartbeat)
        if first:
            self._locks.leases.attach(self._heartbeat.process, timeout)
            self._writer.every(interval, self._heartbeat.beat)
            self._writer.at_least_every(_CLEANING, self._locks.clean)
            for upkeep, every in self._upkeep:
                self._writer.every(every, upkeep.look)

    def leave(self, worker: Any) -> None:
        """Stop the heartbeat with the last worker."""
        last, heartbeat = self._workers.remove(worker), self._heartbeat
        if heartbeat is None:
            return
        if not last:
            self._describe(heartbeat)
            return

        def end() -> None:
            self._locks.leases.detach(heartbeat.process)
            heartbeat.end()

        self._writer.end_chore(heartbeat.beat, end)
        for upkeep, _ in self._upkeep:
            self._writer.end_chore(upkeep.look, upkeep.stop)
        self._heartbeat = None

    def _describe(self, heartbeat: Heartbeat) -> None:
        places = self._workers.here.values()
        heartbeat.describe(
            sum(place.threads for place in places), set().union(*(p.queues for p in places))
        )
