"""What a worker process does for a log: its heartbeat and background tasks.

A process may have several workers, of one broker or of several; the log takes it to be at work
from the first that boots to the last that has shut down.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dramatiq_joblog.recording.heartbeat import Heartbeat

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dramatiq_joblog.locking.locks import Locks
    from dramatiq_joblog.recording.writer import Writer
    from dramatiq_joblog.schema.tables import Tables

#: Milliseconds between two looks for keys that nobody has held for long.
_CLEANING = 3_600_000


class Upkeep(Protocol):
    """Something that the log does for itself, one round at a time."""

    def look(self) -> None:
        """Begin a round if one is due."""

    def stop(self) -> None:
        """End the round that is under way."""


class Workers:
    """The workers at work in this process; those of the process it was forked from do not count."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._known: dict[Any, Place] = {}

    def add(self, worker: Any, place: Place) -> bool:
        """Note a worker that boots; return whether it is the first."""
        if self._pid != os.getpid():
            self._pid, self._known = os.getpid(), {}
        first = not self._known
        self._known[worker] = place
        return first

    def are_only(self, worker: Any) -> bool:
        """Return whether this one is the last that is left."""
        return set(self.here) == {worker}

    def remove(self, worker: Any) -> bool:
        """Note a worker that has shut down; return whether none is left, for the first time."""
        known = self.here.pop(worker, None) is not None
        return known and not self.here

    @property
    def here(self) -> dict[Any, Place]:
        """The workers, with what each does."""
        return self._known if self._pid == os.getpid() else {}


@dataclass(frozen=True)
class Place:
    """What one worker does."""

    threads: int
    queues: frozenset[str]


class WorkerProcess:
    """The process, as the log knows it while it has workers.

    Parameters:
      tables: The log's tables.
      writer: Where the heartbeat is written.
      locks: The keys that this process holds.
      upkeep: What the log does for itself, each with the milliseconds between two looks for it.
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
        """Names this process in rows; None while it has no worker."""
        heartbeat = self._heartbeat
        return heartbeat.process if heartbeat is not None and self._workers.here else None

    def enter(
        self, worker: Any, threads: int, queues: Iterable[str], *, interval: int, timeout: int
    ) -> None:
        """Begin the heartbeat with the first worker, whose *interval* and *timeout* stay.

        Parameters:
          worker: The worker that boots.
          threads: How many jobs it runs at once.
          queues: The queues that it consumes.
          interval: Milliseconds between two heartbeats.
          timeout: Milliseconds without one after which the process is considered gone.
        """
        first = self._workers.add(worker, Place(threads, frozenset(queues)))
        if first or self._heartbeat is None:
            job, row = self._tables.job, self._tables.worker
            self._heartbeat = Heartbeat(
                job,
                row,
                timeout=timeout,
                ended=self._locks.end_of,
                clock_went_back=self._locks.bound,
            )
        self._describe(self._heartbeat)
        if first:
            self._locks.attach(self._heartbeat.process, timeout)
            self._writer.every(interval, self._heartbeat.beat)
            self._writer.at_least_every(_CLEANING, self._locks.clean)
            for upkeep, every in self._upkeep:
                self._writer.every(every, upkeep.look)

    def leave(self, worker: Any) -> None:
        """End the heartbeat with the last worker."""
        last, heartbeat = self._workers.remove(worker), self._heartbeat
        if heartbeat is None:
            return
        if not last:
            self._describe(heartbeat)
            return

        def end() -> None:
            self._locks.detach(heartbeat.process)
            heartbeat.end()

        self._writer.end_chore(heartbeat.beat, end)
        for upkeep, _ in self._upkeep:
            self._writer.end_chore(upkeep.look, upkeep.stop)
        self._heartbeat = None

    def _describe(self, heartbeat: Heartbeat) -> None:
        places = self._workers.here.values()
        heartbeat.threads = sum(place.threads for place in places)
        # A new set: the writer's thread may be reading the old one.
        heartbeat.queues = set().union(*(place.queues for place in places))
