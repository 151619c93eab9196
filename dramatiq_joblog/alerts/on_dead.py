"""Calls the application's ``on_dead`` for each job that died in this process."""

from __future__ import annotations

import logging
import multiprocessing.util
import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger

from dramatiq_joblog.database.limited_log import LimitedLog
from dramatiq_joblog.errors import DatabaseAwayError
from dramatiq_joblog.payload.functions import call_function, check_function
from dramatiq_joblog.recording.events import GRANTED, Ended
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import DeadReason, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dramatiq_joblog.recording.events import Answer, Answers, Event

#: How many dead jobs may wait for a slow function; further ones are only logged.
MOST = 10_000
#: How many are remembered, because an end may be written twice.
REMEMBERED = 1_000
#: How often a row is queried, and the seconds in between.
_TRIES, _AGAIN = 5, 1.0
#: Seconds that an ending process waits for the function.
_END_WITHIN = 10.0


@dataclass(frozen=True)
class Death:
    """A committed end that made its job dead."""

    jid: str
    #: The run.
    token: str | None
    #: When it was written, in milliseconds since 1970; for a job that lost too many workers.
    at: int | None


class DeadCaller:
    """Calls a function with the row of each job whose death was written here.

    Parameters:
      job: The bound job model.
      function: Called with a row, on a separate thread; an async function is run to its end.

    Raises:
      ConfigurationError: If it cannot be called with a job.
    """

    def __init__(self, job: Any, function: Callable[[Any], Any]) -> None:
        check_function("on_dead=", function, "a job")
        self._job = job
        self._function = function
        self._limited = LimitedLog(get_logger(__name__, type(self)))
        self._begin()

    def _begin(self) -> None:
        """Set the state of a new process."""
        self._pid = os.getpid()
        self._deaths: deque[Death] = deque()
        self._known: OrderedDict[Death, None] = OrderedDict()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._closing = False

    def written(self, events: Sequence[Event], answers: Answers) -> None:
        """Take what was committed; called on the writer's thread, which does not wait."""
        of_each = (_death_of(event, answers.get(event.jid, GRANTED)) for event in events)
        deaths = [death for death in of_each if death is not None]
        if not deaths:
            return
        if self._pid != os.getpid():
            self._begin()
        for death in deaths:
            if death in self._known:
                continue
            self._known[death] = None
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            if len(self._deaths) >= MOST:
                self._limited.log(logging.ERROR, "many", "on_dead is too slow for so many jobs.")
                continue
            self._deaths.append(death)
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="dramatiq_joblog on_dead", daemon=True
            )
            self._thread.start()
            # Before daemon threads are stopped, and after the writer has written everything.
            multiprocessing.util.Finalize(
                self, _close_at_exit, (weakref.ref(self),), exitpriority=90
            )
        self._wanted.set()

    def close(self, timeout: float = _END_WITHIN) -> None:
        """Call the function for the waiting jobs, within *timeout* seconds."""
        thread = self._thread
        if self._pid != os.getpid() or thread is None or thread is threading.current_thread():
            return
        self._closing = True
        self._wanted.set()
        thread.join(timeout)
        if not thread.is_alive():
            self._thread, self._closing = None, False

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            while self._deaths:
                self._call(self._deaths.popleft())
            if self._closing:
                return

    def _call(self, death: Death) -> None:
        try:
            row = self._row_of(death)
            if row is not None:
                call_function(self._function, row)
        except BaseException:  # noqa: BLE001 - it is logged: an exit in it must not end the thread
            text = "on_dead failed for job %s."
            get_logger(__name__, type(self)).exception(text, death.jid)

    def _row_of(self, death: Death) -> Any:
        """Return the row as it was committed; None if its job has changed since."""
        for tries in range(_TRIES):
            try:
                row = self._job.get_or_none(self._job.jid == death.jid)
            except DatabaseAwayError:
                if tries == _TRIES - 1 or self._closing:
                    raise
                time.sleep(_AGAIN)
            else:
                return row if row is not None and _is_of(row, death) else None
        return None


def _death_of(event: Event, answer: Answer) -> Death | None:
    row = event.row
    ended = isinstance(event, Ended) and row["state"] == State.DEAD
    # Or a refused start: its job may have died of that, or was dead before.
    if ended or (not answer.granted and answer.found == State.DEAD):
        return Death(event.jid, row.get("token"), row.get("updated_at"))
    return None


def _is_of(row: Any, death: Death) -> bool:
    if row.state != State.DEAD:
        return False
    if row.token == death.token:
        return True
    at = None if row.finished_at is None else to_millis(row.finished_at)
    return bool(row.dead_reason == DeadReason.INTERRUPTED and at == death.at)


def _close_at_exit(reference: weakref.ref[DeadCaller]) -> None:
    caller = reference()
    if caller is not None:
        caller.close()
