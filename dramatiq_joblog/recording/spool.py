"""Events that could not be written to the database yet, in fsynced files on this host.

Each process has at most one file, locked while the process is alive.  A file that is not locked
belongs to a dead process: any other process of this host may adopt and replay it.
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
from dramatiq_joblog.payload.values import host_now

from .events import Amended, Ended, Enqueued, Started

if TYPE_CHECKING:
    from collections.abc import Container, Generator, Iterator, Sequence
    from pathlib import Path

    from .events import Event

#: The maximum number of events replayed at once.
MAX_CHUNK = 200

_SUFFIX = ".spool"


@dataclass(frozen=True)
class Waiting:
    """A file of events not yet written to the database."""

    path: Path
    #: In bytes.
    size: int
    #: Seconds since it was created.
    age: float
    #: Whether its process is alive, or another one is replaying it.
    in_use: bool


class Spool:
    """The files of one log on this host.

    Parameters:
      folder: The folder of the files; created when needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own: _File | None = None
        self._logger = get_logger(__name__, type(self))

    @property
    def waiting(self) -> bool:
        """Whether this process has events that are not replayed yet."""
        return self._own is not None

    def append(self, events: Sequence[Event]) -> None:
        """Append *events*; when this returns, they survive a crash and a power failure.

        Raises:
          OSError: If they cannot be written to disk.
        """
        if self._own is None:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._own = _File.create(self.folder)
        self._own.append(events)

    def replay(self) -> Iterator[list[Event]]:
        """Yield this process's events in chunks, oldest first; the caller must write each chunk.

        Events appended meanwhile come last.  The file is removed once all are taken.
        """
        while self._own is not None:
            chunk, end = self._own.read()
            if not chunk:
                self._own.remove()
                self._own = None
                return
            yield chunk
            # Only now, so that a caller that failed to write the chunk gets it again.
            self._own.advance(end)

    def left_behind(self) -> Generator[list[Event], None, None]:
        """Yield the events of dead processes, like :meth:`replay`."""
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            file = _File.adopt(path)
            if file is None:
                continue
            self._logger.info("Replaying the events that %s left.", path)
            with contextlib.closing(file):
                everything, _ = file.read(limit=-1)
                ended = {event.row["token"] for event in everything if _ends(event)}
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
            with contextlib.suppress(FileNotFoundError):  # replayed meanwhile
                found.append(_look_at(path))
        return sorted(found, key=lambda waiting: -waiting.age)

    def forget(self) -> None:
        """Leave the file to the parent process, after a fork."""
        if self._own is not None:
            self._own.close()
            self._own = None


#: The kinds of events, by their names in a file.
_KINDS: dict[str, type[Event]] = {kind.kind: kind for kind in (Enqueued, Started, Ended, Amended)}
#: Fields that the reader of a file sets, which are not stored in it.
_OF_READERS = ("replayed", "cut_off")


def _ends(event: Event) -> bool:
    return isinstance(event, Ended) or (isinstance(event, Amended) and event.is_withdrawal)


def _cut_off(event: Event, ended: Container[str]) -> Event:
    """Return an event of a dead process; a start without an end was cut off."""
    if isinstance(event, Started) and event.row["token"] not in ended:
        return replace(event, cut_off=True)
    return event


class _File:
    """The events of one process, as one JSON document per line."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        #: The offset before which everything is in the database.
        self._done = 0
        self._logger = get_logger(__name__, "Spool")

    @classmethod
    def create(cls, folder: Path) -> _File:
        # File names sort by time of creation, which is the order of replay.
        made = host_now()
        path = folder / f"{made:015}-{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not os.fstat(descriptor).st_nlink:
            # Another process adopted it before it was locked.
            os.close(descriptor)
            return cls.create(folder)
        _sync_folder(folder)
        return cls(path, descriptor)

    @classmethod
    def adopt(cls, path: Path) -> _File | None:
        """Return the file if its process is gone and no other has adopted it."""
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
            # Another process replayed and removed it between the two calls.
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
            # A partial line would merge with the next one.
            os.ftruncate(self._descriptor, end)
            raise

    def advance(self, end: int) -> None:
        """Record that everything before *end* is in the database."""
        self._done = end

    def read(self, limit: int = MAX_CHUNK) -> tuple[list[Event], int]:
        """Return the next events, and the offset of their end."""
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
            # Other versions may have more fields.
            known = {f.name for f in fields(kind)} - {*_OF_READERS}
            said = {name: value for name, value in values.items() if name in known}
            return kind(**said, replayed=True)
        except (AttributeError, KeyError, TypeError, ValueError):
            # The process died while it wrote the line, so the event was never acknowledged.
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
    # A custom column may hold a value without a JSON form; store its text.
    return json.dumps(kept, default=text_of).encode() + b"\n"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
