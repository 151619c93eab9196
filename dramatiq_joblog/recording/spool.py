"""What the log's database could not take yet: events in files of this host, fsynced.

Each process has at most one file, locked while the process lives.  A file that is not locked
was left by one that died: any other process of this host may take it over and replay it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger

from dramatiq_joblog.payload.sanitize import text_of

from .events import Ended, Enqueued, Started

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from pathlib import Path

    from .events import Event

#: As many events are replayed at once at most.
MAX_CHUNK = 200

_SUFFIX = ".spool"


@dataclass(frozen=True)
class Waiting:
    """A file of events that the database could not take yet."""

    path: Path
    #: Bytes.
    size: int
    #: Seconds since it was made.
    age: float
    #: Whether its process lives, or another is replaying it.
    in_use: bool


class Spool:
    """The files of one log on this host.

    Parameters:
      folder: Where they lie; it is made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own: _File | None = None
        self._logger = get_logger(__name__, type(self))

    @property
    def waiting(self) -> bool:
        """Whether this process has events that were not replayed."""
        return self._own is not None

    def append(self, events: Sequence[Event]) -> None:
        """Keep *events*; when this returns they outlive the process, and a power cut.

        Raises:
          OSError: If the disk does not take them.
        """
        if self._own is None:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._own = _File.create(self.folder)
        self._own.append(events)

    def replay(self) -> Iterator[list[Event]]:
        """Yield what this process kept, oldest first, in parts; what is yielded must be written.

        Events that are appended meanwhile come last.  The file goes when all was taken.
        """
        while self._own is not None:
            chunk, end = self._own.read()
            if not chunk:
                self._own.remove()
                self._own = None
                return
            yield chunk
            # Only now: a process that could not write it begins with it again.
            self._own.advance(end)

    def left_behind(self) -> Iterator[list[Event]]:
        """Yield what processes that died kept, as :meth:`replay` does."""
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            file = _File.adopt(path)
            if file is None:
                continue
            self._logger.info("Replaying the events that %s left.", path)
            with contextlib.closing(file):
                everything, _ = file.read(limit=-1)
                ended = {event.row["token"] for event in everything if isinstance(event, Ended)}
                chunk, end = file.read()
                while chunk:
                    yield [_cut_off(event, ended) for event in chunk]
                    file.advance(end)
                    chunk, end = file.read()
                file.remove()

    def files(self) -> list[Waiting]:
        """Return the files of this log on this host, oldest first."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # it was replayed meanwhile
                found.append(_look_at(path))
        return sorted(found, key=lambda waiting: -waiting.age)

    def forget(self) -> None:
        """Leave the file to the process that this one was forked from."""
        if self._own is not None:
            self._own.close()
            self._own = None


#: The kinds of events, by what they are called in a file.
_KINDS: dict[str, type[Event]] = {kind.kind: kind for kind in (Enqueued, Started, Ended)}
#: What is said by who reads an event: it was kept, and its run may have been cut off.
_OF_READERS = ("replayed", "cut_off")


def _cut_off(event: Event, ended: Container[str]) -> Event:
    """Return an event of a process that died: a start whose run did not end was cut off."""
    if isinstance(event, Started) and event.row["token"] not in ended:
        return replace(event, cut_off=True)
    return event


class _File:
    """One process's events, a JSON document a line."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        #: What stands before this was written to the database.
        self._done = 0
        self._logger = get_logger(__name__, "Spool")

    @classmethod
    def create(cls, folder: Path) -> _File:
        # By name in the order in which they were made: so they are replayed.
        made = time.time_ns() // 1_000_000
        path = folder / f"{made:015}-{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not os.fstat(descriptor).st_nlink:
            # Another took it for left behind, before it was locked.
            os.close(descriptor)
            return cls.create(folder)
        _sync_folder(folder)
        return cls(path, descriptor)

    @classmethod
    def adopt(cls, path: Path) -> _File | None:
        """Return the file if its process is gone, and nobody else has it."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if not os.fstat(descriptor).st_nlink:
            # Another replayed and removed it between our two calls.
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def append(self, events: Sequence[Event]) -> None:
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        data = b"".join(_dump(event) for event in events)
        try:
            with open(self._descriptor, "ab", closefd=False) as file:
                file.write(data)
            os.fsync(self._descriptor)
        except OSError:
            # Half a line would make one of it and the next.
            os.ftruncate(self._descriptor, end)
            raise

    def advance(self, end: int) -> None:
        """Note that what stands before *end* was written."""
        self._done = end

    def read(self, limit: int = MAX_CHUNK) -> tuple[list[Event], int]:
        """Return the next events, and where they end."""
        events: list[Event] = []
        end = self._done
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(end)
            for line in file:
                end += len(line)
                event = self._load(line)
                if event is not None:
                    events.append(event)
                if len(events) == limit:
                    break
        return events, end

    def _load(self, line: bytes) -> Event | None:
        try:
            values = json.loads(line)
            kind = _KINDS[values["kind"]]
            # Other versions say more.
            known = {f.name for f in fields(kind)} - {*_OF_READERS}
            said = {name: value for name, value in values.items() if name in known}
            return kind(**said, replayed=True)
        except (AttributeError, KeyError, TypeError, ValueError):
            # The end of a process in the middle of a line: nobody relies on it.
            self._logger.warning("%s has a line that is not an event: %.80r", self.path, line)
            return None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _look_at(path: Path) -> Waiting:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            in_use = False
        except BlockingIOError:
            in_use = True
        facts = os.fstat(file.fileno())
    made = path.name.split("-")[0]
    since = int(made) / 1000 if made.isdigit() else facts.st_mtime
    return Waiting(path, facts.st_size, max(0.0, time.time() - since), in_use)


def _dump(event: Event) -> bytes:
    kept: dict[str, Any] = {"kind": event.kind} | asdict(event)
    for name in _OF_READERS:
        kept.pop(name, None)
    # A column of the user's own may hold what JSON has no word for; its text does as well.
    return json.dumps(kept, default=text_of).encode() + b"\n"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
