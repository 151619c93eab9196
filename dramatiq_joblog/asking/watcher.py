"""One thread per process and log that queries for all waits.

A thousand waits share one query at a time, each of a bounded length.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

from dramatiq.logging import get_logger
from peewee import fn

from dramatiq_joblog.database.compiled import Compiled, padded
from dramatiq_joblog.database.connection import Connection
from dramatiq_joblog.database.limited_log import LimitedLog
from dramatiq_joblog.errors import DatabaseAwayError, JobLogError, JobNotFound
from dramatiq_joblog.schema.query import J, literal_states
from dramatiq_joblog.states import ACTIVE, FINAL

from .listener import FamilyListener

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dramatiq_joblog.schema.tables import Tables

    from .listener import Listener

#: Milliseconds between two checks; more, once nothing has happened for a while.
TICK, TICK_AT_MOST, FOR_A_WHILE = 50, 100, 5_000
#: The pause after a check is at least this many times as long as the check.
REST = 3
#: Milliseconds until a database that did not answer is queried again.
AGAIN = 500
#: Milliseconds that the thread and its connection stay after the last wait.
LINGER = 2_000
#: The most jobs, or families, in one query.
MOST_JOBS, MOST_FAMILIES = 512, 100


class Watcher(Generic[J]):
    """Watches jobs for waiting code, in each process.

    Parameters:
      tables: The log's tables.
    """

    def __init__(self, tables: Tables[J]) -> None:
        self._tables = tables
        self._pid = os.getpid()
        self._watch = _Watch(tables)

    def add(self, listener: Listener[J]) -> None:
        """Watch a job for a listener, unless it is already watched."""
        if self._pid != os.getpid():
            # After a fork: the thread and its connection belong to the parent process.
            _left_to_parents.append(self._watch)
            self._pid, self._watch = os.getpid(), _Watch(self._tables)
        self._watch.add(listener)

    def discard(self, listener: Listener[J]) -> None:
        """Stop watching for a listener."""
        if self._pid == os.getpid():
            self._watch.discard(listener)

    def close(self) -> None:
        """End all waits, the thread and its connection."""
        if self._pid == os.getpid():
            self._watch.close()


#: Kept alive, because closing a parent's connection here would break it there.
_left_to_parents: list[Any] = []


class _Watch(Generic[J]):
    """The watcher of one process."""

    def __init__(self, tables: Tables[J]) -> None:
        # Any: conditions on columns are peewee's, which are untyped.
        self._job: Any = tables.job
        self._glance = Compiled(tables.database, self._glancing)
        self._connection = Connection(tables.database)
        self._limited = LimitedLog(get_logger(__name__, Watcher))
        self._guard = threading.Lock()
        self._listeners: dict[Listener[J], None] = {}
        self._newcomers: list[Listener[J]] = []
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._closing = False
        #: When something last happened, or a wait last began; monotonic.
        self._active_at = 0.0

    def add(self, listener: Listener[J]) -> None:
        with self._guard:
            if listener in self._listeners:
                return
            self._listeners[listener] = None
            self._newcomers.append(listener)
            self._active_at = time.monotonic()
            self._wanted.set()
            self._start()

    def discard(self, listener: Listener[J]) -> None:
        with self._guard:
            self._listeners.pop(listener, None)

    def close(self) -> None:
        with self._guard:
            listeners, self._listeners = list(self._listeners), {}
            thread, self._closing = self._thread, True
            self._wanted.set()
        for listener in listeners:
            listener.inbox.put(JobLogError(f"the log was closed before job {listener.jid} ended"))
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=10.0)
        with self._guard:
            self._closing = False
            # A new wait may have begun meanwhile: the log stays usable.
            self._start()

    def _start(self) -> None:
        if self._thread is None and self._listeners and not self._closing:
            self._thread = threading.Thread(
                target=self._run, name="dramatiq_joblog watcher", daemon=True
            )
            self._thread.start()

    # On the watcher's thread

    def _run(self) -> None:
        due = 0.0
        while True:
            everyone = due <= time.monotonic()
            listeners = self._take(everyone=everyone)
            if listeners is None:
                return
            pause = self._look_patiently(listeners)
            if everyone or pause is None:
                due = time.monotonic() + (AGAIN / 1000 if pause is None else pause)
            self._rest(due)

    def _take(self, *, everyone: bool) -> list[Listener[J]] | None:
        """Return the listeners to check for now; None at the end of the thread."""
        with self._guard:
            newcomers, self._newcomers = self._newcomers, []
            self._wanted.clear()
            idle = time.monotonic() - self._active_at > LINGER / 1000
            if self._closing or (idle and not self._listeners):
                self._newcomers = newcomers
                self._connection.close()
                self._thread = None
                return None
            if everyone:
                return list(self._listeners)
            return [listener for listener in newcomers if listener in self._listeners]

    def _look_patiently(self, listeners: Sequence[Listener[J]]) -> float | None:
        """Check; return the seconds until the next check, or None without a database."""
        began = time.monotonic()
        try:
            self._look(listeners)
        except DatabaseAwayError as e:
            self._limited.log(
                logging.WARNING, "unavailable", "Waits for jobs cannot query the log: %s", e
            )
            return None
        except Exception as e:  # noqa: BLE001
            # The error would come again and again, so the waiting code is informed.
            for listener in listeners:
                self._send(listener, _failed(e))
        return self._pause(time.monotonic() - began)

    def _pause(self, took: float) -> float:
        """Return the seconds until the next check, after one that *took* so many."""
        calm = time.monotonic() - self._active_at > FOR_A_WHILE / 1000
        return max((TICK_AT_MOST if calm else TICK) / 1000, REST * took)

    def _rest(self, due: float) -> None:
        """Sleep until then, or until a new wait begins."""
        pause = due - time.monotonic() if self._listeners else LINGER / 1000
        self._wanted.wait(max(0.001, pause))

    def _look(self, listeners: Sequence[Listener[J]]) -> None:
        """Query what is new about their jobs, and put it into their inboxes."""
        by_jid: dict[str, list[Listener[J]]] = {}
        for listener in listeners:
            by_jid.setdefault(listener.jid, []).append(listener)
        for jids in _parts(by_jid, MOST_JOBS):
            seen, rows = self._connection.ask(partial(self._read, jids, by_jid))
            for jid in jids:
                for listener in by_jid[jid]:
                    self._hear(listener, seen.get(jid), rows.get(jid))
        self._look_for_families([each for each in listeners if isinstance(each, FamilyListener)])
        for listener in listeners:
            listener.end_check()

    def _read(
        self, jids: Sequence[str], by_jid: dict[str, list[Listener[J]]]
    ) -> tuple[dict[str, tuple[Any, ...]], dict[str, J]]:
        """Return the state of each job, and the rows that a listener wants."""
        job = self._job
        found = self._glance.execute(padded(jids)).fetchall()
        seen = {jid: (state, updated_at, root) for jid, state, updated_at, root in found}
        wanted = [
            jid
            for jid, facts in seen.items()
            if any(listener.wants(facts[:2]) for listener in by_jid[jid])
        ]
        rows = job.select().where(job.jid.in_(wanted)) if wanted else ()
        return seen, {row.jid: row for row in rows}

    def _glancing(self, jids: Sequence[str]) -> Any:
        """Return the query for the states of jobs, which runs often."""
        job = self._job
        columns = job.select(job.jid, job.state, job.updated_at, job.root_jid)
        return columns.where(job.jid.in_(jids))

    def _hear(self, listener: Listener[J], facts: tuple[Any, ...] | None, job: J | None) -> None:
        if facts is None:
            if listener.seen is not None:
                self._send(listener, JobNotFound(listener.jid))
        else:
            if job is not None and listener.wants(facts[:2]):
                self._active_at = time.monotonic()
                listener.take(job)
                if job.state in FINAL:
                    self.discard(listener)
            listener.note(facts[:2], facts[2])

    def _send(self, listener: Listener[J], error: JobLogError) -> None:
        """Send an error, which ends the wait."""
        self.discard(listener)
        listener.inbox.put(error)

    def _look_for_families(self, listeners: Sequence[FamilyListener[J]]) -> None:
        by_root: dict[str, list[FamilyListener[J]]] = {}
        for listener in listeners:
            if listener.root is not None:
                by_root.setdefault(listener.root, []).append(listener)
        for roots in _parts(by_root, MOST_FAMILIES):
            for root in self._connection.ask(partial(self._ended_families, roots)):
                members = self._connection.ask(partial(self._family, root))
                if all(member.state in FINAL for member in members):
                    for listener in by_root[root]:
                        self.discard(listener)
                        listener.inbox.put(members)

    def _ended_families(self, roots: Sequence[str]) -> set[str]:
        job = self._job
        root = fn.COALESCE(job.root_jid, job.jid)
        going_on = (
            job.select(root)
            .where(
                job.state.in_(literal_states(ACTIVE)),
                job.jid.in_(roots) | job.root_jid.in_(roots),
            )
            .group_by(root)
            .tuples()
        )
        return {*roots} - {root for (root,) in going_on}

    def _family(self, root: str) -> list[J]:
        job = self._job
        family = job.select().where((job.jid == root) | (job.root_jid == root))
        return list(family.order_by(job.id))


def _failed(error: Exception) -> JobLogError:
    failed = JobLogError(f"the log could not query jobs: {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed


def _parts(jids: Iterable[str], most: int) -> Iterator[list[str]]:
    """Split *jids* into lists of a bounded length, in a stable order."""
    jids = sorted(jids)
    for start in range(0, len(jids), most):
        yield jids[start : start + most]
