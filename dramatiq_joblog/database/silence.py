"""Databases of the log's own, whose server cannot keep a thread by being silent.

A server's own timeouts do not help when it is frozen, or when the network is gone: drivers then
wait forever.  Worse, peewee opens connections one at a time, so that a thread that waits while
it opens one keeps all others of the process from opening and from closing theirs.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
import weakref
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peewee import Database, OperationalError

from dramatiq_joblog.errors import DatabaseAwayError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Milliseconds that a server may take for a statement, unless :func:`patient` says otherwise.
SILENT = 60_000
#: Milliseconds that it may take to greet a new connection, or to say that an idle one is good.
GREETED_WITHIN = 5_000
#: Seconds between two looks, and how many find nothing before the thread ends.
_PAUSE, _LOOKS = 1.0, 10

_patience: ContextVar[int | None] = ContextVar("joblog_patience", default=SILENT)


@contextlib.contextmanager
def patient(milliseconds: int | None = None) -> Iterator[None]:
    """Let a server take so long for each statement of the block; None for as long as it takes."""
    token = _patience.set(milliseconds)
    try:
        yield
    finally:
        _patience.reset(token)


def cut(raw: Any) -> None:
    """Cut a connection: its driver sees an end, and raises in the thread that waits for it.

    Any: a connection of psycopg, psycopg2 or pymysql.
    """
    with contextlib.suppress(Exception):
        # It may be closed by now.
        number = raw._sock.fileno() if hasattr(raw, "_sock") else raw.fileno()
        with socket.socket(fileno=os.dup(number)) as end:
            end.shutdown(socket.SHUT_RDWR)


@dataclass(eq=False)
class Question:
    """What a server is asked now."""

    #: The driver's connection.
    raw: Any
    #: When it has been silent for too long; monotonic, in seconds.
    deadline: float
    is_cut: bool = False


class Watch:
    """Cuts the connections of a database whose server is silent for too long."""

    def __init__(self) -> None:
        self._asked: dict[int, Question] = {}
        #: There is none while nothing is asked.  No lock guards it: a fork could leave that taken.
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, raw: Any, within: int | None) -> Iterator[Question]:
        """Cut a connection if the block, in which its server is asked, takes so long.

        Parameters:
          raw: The driver's connection.
          within: Milliseconds; None for any time.

        Raises:
          DatabaseAwayError: If the block failed because it was cut.
        """
        question = Question(raw, math.inf if within is None else time.monotonic() + within / 1000)
        if within is None:
            yield question
            return
        self._asked[id(question)] = question
        if self._thread is None or not self._thread.is_alive():
            self._begin()
        try:
            yield question
        except Exception as e:
            if question.is_cut:
                text = (
                    f"the database did not respond within {within / 1000:g} s: its connection was "
                    "closed"
                )
                raise DatabaseAwayError(text) from e
            raise
        finally:
            del self._asked[id(question)]

    def _begin(self) -> None:
        thread = threading.Thread(
            target=_look_after, args=(weakref.ref(self),), name="dramatiq_joblog watch", daemon=True
        )
        self._thread = thread
        thread.start()

    def look(self) -> bool:
        """Cut what is silent for too long; return whether anything was asked."""
        asked, now = list(self._asked.values()), time.monotonic()
        for question in asked:
            if question.deadline < now:
                # Again at each look: one that is being opened may have no socket yet.
                question.is_cut = True
                cut(question.raw)
        return bool(asked)

    def end(self) -> None:
        """Have no thread any more, unless something is asked just now."""
        self._thread = None
        if self._asked:
            self._begin()


def _look_after(reference: weakref.ref[Watch]) -> None:
    """Look after the connections of a database until nothing is asked any more."""
    quiet = 0
    while quiet < _LOOKS:
        time.sleep(_PAUSE)
        watch = reference()
        if watch is None:
            return
        quiet = 0 if watch.look() else quiet + 1
        if quiet == _LOOKS:
            watch.end()
        del watch


class _Wanted(threading.local):
    """Since when a thread wants a connection; monotonic, in seconds."""

    since = 0.0


if TYPE_CHECKING:
    # Any: what peewee's own methods take and return, and what its stubs leave out.
    _Database: Any = object
else:
    _Database = Database


class Watched(_Database):  # type: ignore[misc]
    """A database whose connections are watched."""

    def __init__(self, *args: Any, **options: Any) -> None:
        #: Of its connections.
        self.watch = Watch()
        self._wanted = _Wanted()
        #: When the last try to open a connection failed, monotonic, in seconds, and why.
        self._failed_at, self._failure = 0.0, ""
        super().__init__(*args, **options)

    def leave_watch_to_parent(self) -> None:
        """Watch only new connections, after a fork: to cut the others would cut the parent's."""
        self.watch = Watch()

    def connect(self, reuse_if_open: bool = False) -> Any:
        """Open this thread's connection; see peewee."""
        self._wanted.since = time.monotonic()
        return super().connect(reuse_if_open)

    def _connect(self) -> Any:
        if self._failed_at > self._wanted.since:
            # Another thread's try failed while this one waited for its turn: with a try of its
            # own each would wait as long as all before it together.
            raise OperationalError(self._failure)
        try:
            return self._open()
        except Exception as e:
            self._failed_at, self._failure = time.monotonic(), str(e)
            raise

    def _open(self) -> Any:
        """Return a new connection of the driver's."""
        return super()._connect()

    def execute_sql(self, *args: Any, **options: Any) -> Any:
        """Execute a statement; see peewee."""
        with self._watched():
            return super().execute_sql(*args, **options)

    def begin(self, *args: Any, **options: Any) -> Any:
        """Begin a transaction; see peewee."""
        with self._watched():
            return super().begin(*args, **options)

    def commit(self) -> Any:
        """Commit a transaction; see peewee."""
        with self._watched():
            return super().commit()

    def rollback(self) -> Any:
        """Undo a transaction; see peewee."""
        with self._watched():
            return super().rollback()

    def _watched(self) -> Any:
        if self.is_closed() and self.autoconnect:
            self.connect()
        # What is asked without a connection fails of itself.
        return self.watch.over(self._state.conn, _patience.get())


class WatchedPool:
    """A pool that asks the server whether a connection that idled is still good."""

    watch: Watch
    close_idle: Any

    def _is_closed(self, conn: Any) -> bool:
        with self.watch.over(conn, GREETED_WITHIN) as question:
            closed = bool(super()._is_closed(conn))  # type: ignore[misc]
        if question.is_cut:
            # The others went to the same server.
            self.close_idle()
        return closed
