"""The group-commit writer: one thread and one connection a process.

Worker threads hand it events and wait for the commit; it takes all that is waiting,
writes it as one transaction and wakes the waiters.  There is no timer: one thread that
waits costs one commit, and eight that wait still cost one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing.util
import os
import queue
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger
from peewee import InterfaceError, MySQLDatabase, OperationalError, PeeweeException, SqliteDatabase

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peewee import Database

    from .transitions import Event, Transitions

#: Milliseconds that one batch is tried for while the database is away or busy.
DEFAULT_RETRY_FOR = 5_000
#: Milliseconds that the database may take for one statement or lock.
STATEMENT_TIMEOUT = 10_000
#: As many events are written in one transaction at most.
MAX_BATCH = 500


@dataclass(eq=False)
class _Ticket:
    event: Event | None
    done: threading.Lock = field(default_factory=threading.Lock)


_STOP = _Ticket(None)


class Writer:
    """Writes events in the order they come, in batches.

    Nothing starts before the first event.  A process that was forked from one with a
    writer gets a thread and a connection of its own.

    Parameters:
      transitions: The statements of the log.
      retry_for: Milliseconds to try one batch while the database cannot be asked.
    """

    def __init__(self, transitions: Transitions, *, retry_for: int = DEFAULT_RETRY_FOR) -> None:
        self._transitions = transitions
        self._database: Database = transitions.database
        self._retry_for = retry_for
        self._logger = get_logger(__name__, type(self))
        self._connection: Any = None
        self._start_lock = threading.Lock()
        self._tickets: queue.SimpleQueue[_Ticket] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        #: Events that could not be written, since this process began.
        self.lost = 0
        writers.add(self)

    def put(self, event: Event) -> None:
        """Hand over *event* and go on."""
        self._submit(event)

    def write(self, event: Event) -> bool:
        """Hand over *event* and wait until it is committed.

        Returns:
          For a start, whether the run may go on; True otherwise.
        """
        self._submit(event).done.acquire()
        return event.granted

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until all that was handed over before is written.

        Returns:
          False if that took longer than *timeout*, in seconds.
        """
        if self._thread is None:
            return True
        return self._submit(None).done.acquire(timeout=timeout)

    def close(self) -> None:
        """Write what was handed over, then end the thread and its connection."""
        if self._thread is None:
            return
        self.flush()
        thread, self._thread = self._thread, None
        self._tickets.put(_STOP)
        thread.join(timeout=30.0)

    def reset(self) -> None:
        """Forget the thread, the queue and the connections of the process that was forked."""
        database: Any = self._database
        inherited.append(
            (
                self._connection,
                database._state.conn,
                getattr(database, "_connections", None),
                getattr(database, "_in_use", None),
            )
        )
        database.dispose()
        self._connection = None
        self._start_lock = threading.Lock()
        self._tickets = queue.SimpleQueue()
        self._thread = None

    def _submit(self, event: Event | None) -> _Ticket:
        ticket = _Ticket(event)
        ticket.done.acquire()
        if self._thread is None:
            self._start()
        self._tickets.put(ticket)
        return ticket

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="dramatiq_joblog writer", daemon=True
                )
                self._thread.start()
                # Runs before daemon threads are stopped, in multiprocessing's children too.
                multiprocessing.util.Finalize(
                    self, _flush_at_exit, (weakref.ref(self),), exitpriority=100
                )

    def _run(self) -> None:
        while True:
            batch = [self._tickets.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < MAX_BATCH:
                    batch.append(self._tickets.get_nowait())
            stop = _STOP in batch
            batch = [ticket for ticket in batch if ticket is not _STOP]
            try:
                for wave in _waves([t.event for t in batch if t.event is not None]):
                    self._write(wave)
            except Exception:
                self._logger.critical("The job log's writer failed.", exc_info=True)
            finally:
                for ticket in batch:
                    ticket.done.release()
            if stop:
                self._disconnect()
                return

    def _write(self, events: Sequence[Event]) -> None:
        """Write a batch; while the database is away try again; set aside what is poisoned."""
        deadline = time.monotonic() + self._retry_for / 1000
        pause = 0.01
        while True:
            try:
                self._connect()
                self._transitions.write(events)
            except (OperationalError, InterfaceError) as e:
                self._disconnect()
                if _never_there(e):
                    self._give_up(events, e, "call create_tables() on the log, or migrate it")
                    return
                if time.monotonic() > deadline:
                    self._give_up(events, e, "is the database up and reachable?")
                    return
                time.sleep(pause)
                pause = min(pause * 2, 0.5)
            except Exception as e:  # noqa: BLE001
                # One poisoned event of any kind never takes its batch with it.
                self._disconnect()
                if _never_there(e):
                    self._give_up(events, e, "call create_tables() on the log, or migrate it")
                elif len(events) > 1:
                    for event in events:
                        self._write([event])
                else:
                    self._repair(events[0], e)
                return
            else:
                return

    def _repair(self, event: Event, error: Exception) -> None:
        """Write a poisoned event without what is not needed, saying so on its row."""
        dropped = dict.fromkeys(("args", "kwargs", "max_retries", "meta"))
        bare = event.row | dropped | self._transitions.own_defaults()
        bare["note"] = f"not stored, because the database refused: {error}"[:1000]
        repaired = dataclasses.replace(event, row=bare)
        try:
            self._connect()
            self._transitions.write([repaired])
        except Exception as e:  # noqa: BLE001
            # Whatever it is, it must not take the writer or other events with it.
            self._disconnect()
            self._give_up([event], e, "this event was set aside")
        else:
            event.granted, event.found = repaired.granted, repaired.found
            self._logger.warning("Job %s was logged in part: %s", event.jid, error)

    def _give_up(self, events: Sequence[Event], error: Exception, cure: str) -> None:
        self.lost += len(events)
        self._logger.error(
            "The job log could not write %d event(s), first of job %s: %s (%s)",
            len(events),
            events[0].jid,
            str(error).strip(),
            cure,
        )

    def _connect(self) -> None:
        database = self._database
        if not database.is_closed():
            return
        database.connect()
        if isinstance(database, SqliteDatabase):
            # An acknowledged commit survives a killed process; a power cut may take the
            # last ones, and never damages the file.
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "busy_timeout = 5000"):
                database.execute_sql(f"PRAGMA {pragma}")
        elif not isinstance(database, MySQLDatabase):
            for setting in ("statement_timeout", "lock_timeout"):
                database.execute_sql(f"SET {setting} = {STATEMENT_TIMEOUT}")
        self._connection = database.connection()

    def _disconnect(self) -> None:
        database = self._database
        self._connection = None
        try:
            if not database.is_closed():
                if hasattr(database, "manual_close"):
                    database.manual_close()
                else:
                    database.close()
        except PeeweeException as e:
            self._logger.debug("Closing a broken connection failed: %s", e)


def _waves(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Split *events* so that no part has one job twice, keeping each job's order."""
    wave: dict[str, Event] = {}
    for event in events:
        if event.jid in wave:
            yield list(wave.values())
            wave = {}
        wave[event.jid] = event
    if wave:
        yield list(wave.values())


def _never_there(error: Exception) -> bool:
    """Tell a missing table or column, which no waiting will bring."""
    text = str(error).lower()
    return "no such table" in text or "no column named" in text or "does not exist" in text


def _flush_at_exit(reference: weakref.ref[Writer]) -> None:
    writer = reference()
    if writer is not None:
        writer.flush()


# For the child of a fork only: threads and connections belong to the process that made them.
writers: weakref.WeakSet[Writer] = weakref.WeakSet()
#: Connections of the parent.  They are kept, as even closing one here would harm it there.
inherited: list[Any] = []


def _after_fork() -> None:
    for writer in list(writers):
        writer.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
