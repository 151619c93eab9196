"""``current_job()``: what an actor can know and report about its own run."""

from __future__ import annotations

import logging
import operator
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from dramatiq_joblog.errors import JobLogError
from dramatiq_joblog.payload.sanitize import clean, text_of
from dramatiq_joblog.payload.values import as_number

from .log_lines import Lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dramatiq_joblog.locking.leases import Held
    from dramatiq_joblog.payload.redaction import Redactor

    from .inbox import LateStart
    from .log_lines import Batch

T = TypeVar("T")

#: Characters kept of a text of progress.
MAX_TEXT = 1_000


class LiveRun:
    """A run whose body is at work here: what it says, and what the log knows of that.

    Parameters:
      message_id: Dramatiq's name of the job.
      actor: The name of its actor.
      root_jid: The first job of its family.
      row: The columns of the run: its ``jid``, ``token`` and ``attempt``.
      redactor: Takes secrets out of what it says.
      lease: What it holds of its section, if it has one.
      lines_level: From which level on its lines are kept; None for none.
      start: Its start, for as long as nobody needs to see it in the log.
    """

    __slots__ = (
        "_actor",
        "_closed",
        "_jobs",
        "_logs",
        "_row",
        "_start",
        "_written",
        "lease",
        "lines_level",
        "message_id",
        "redactor",
        "reported",
        "root_jid",
    )

    def __init__(
        self,
        message_id: str,
        actor: str,
        root_jid: str,
        row: Mapping[str, Any],
        redactor: Redactor,
        *,
        lease: Held | None = None,
        lines_level: int | None = None,
        start: LateStart | None = None,
    ) -> None:
        self.message_id, self.root_jid, self._actor = message_id, root_jid, actor
        self._row = row
        self.redactor = redactor
        self.lease = lease
        self.lines_level = lines_level
        self._start = start
        #: Its last progress.
        self.reported: tuple[Any, Any, Any] | None = None
        self._written: tuple[Any, Any, Any] | None = None
        # What few runs need: made at the first ask, for whichever thread comes first.
        self._jobs: dict[int, CurrentJob] = {}
        self._logs: dict[int, Lines] = {}
        self._closed = False

    @property
    def jid(self) -> str:
        """The job, as the log names it."""
        return str(self._row["jid"])

    @property
    def token(self) -> str:
        """The run."""
        return str(self._row["token"])

    @property
    def job(self) -> CurrentJob:
        """The run as its actor sees it; most never ask."""
        if 0 not in self._jobs:
            row = self._row
            job = CurrentJob(self, self.message_id, row["attempt"], self.root_jid, self._actor)
            self._jobs.setdefault(0, job)
        return self._jobs[0]

    @property
    def meta(self) -> Any:
        """What its actor wants to keep; None if it never asked for its job."""
        return self._jobs[0].meta if self._jobs else None

    @property
    def news(self) -> tuple[Any, Any, Any] | None:
        """Its last progress, if the log does not know of it; see :meth:`note_written`."""
        return None if self.reported is self._written else self.reported

    def note_written(self, progress: tuple[Any, Any, Any]) -> None:
        """Note that the log knows of a progress."""
        self._written = progress

    def take_start(self) -> LateStart | None:
        """Return its start if that is not in the log, once."""
        start, self._start = self._start, None
        return start

    def add_line(self, instant: int, level: str, logger: str, text: str) -> None:
        """Keep a line, as :meth:`Lines.add` does, unless the run is over."""
        if self.lines_level is None or self._closed:
            return
        if not self._logs:
            lines = Lines(self.jid, self.token, self._row["attempt"], self.redactor.text)
            self._logs.setdefault(0, lines)
        self._logs[0].add(instant, level, logger, text)

    @property
    def lines(self) -> Lines | None:
        """What it logged; None if that is nothing."""
        return self._logs.get(0)

    def end_lines(self) -> Batch | None:
        """Keep no more lines, and return what is not written yet."""
        self._closed = True
        return self._logs[0].end() if self._logs else None


class CurrentJob:
    """The running job, as its actor sees it."""

    __slots__ = ("_run", "actor", "attempt", "jid", "meta", "root_jid")

    def __init__(self, run: LiveRun, jid: str, attempt: int, root_jid: str, actor: str) -> None:
        self._run = run
        #: Dramatiq's ``message_id``.
        self.jid = jid
        #: Number of this attempt; 1 for the first.
        self.attempt = attempt
        #: The first job of the family that this one was sent in.
        self.root_jid = root_jid
        #: Name of its actor.
        self.actor = actor
        #: Anything that the actor wants to keep with its row; stored as JSON with the outcome.
        self.meta: dict[str, Any] = {}

    @property
    def token(self) -> str:
        """The unique id of this run."""
        return self._run.token

    @property
    def lease(self) -> Held | None:
        """The lease of the job's critical sections, if it has any."""
        return self._run.lease

    def log(self, text: str, *, level: str | int = "INFO") -> None:
        """Keep a log line with this job, whatever the configuration of ``logging``.

        Example:
          >>> current_job().log("12 rows had no price")

        Parameters:
          text: The line.
          level: The name or the number of its level.
        """
        name = level if isinstance(level, str) else logging.getLevelName(level)
        self._run.add_line(time.time_ns() // 1_000_000, name, self.actor, text_of(text))

    def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Report how far the job is; it is cheap enough for the innermost loop.

        The latest progress is written with the process's heartbeat, every five seconds by
        default, and with the outcome.

        Example:
          >>> current_job().progress(12, 40, "reading prices")

        Parameters:
          done: How much is done.
          total: How much there is in total; None if unknown.
          text: What is being done.
        """
        self._run.reported = (done, total, text)

    def track(
        self, iterable: Iterable[T], total: float | None = None, text: str | None = None
    ) -> Iterator[T]:
        """Iterate over *iterable*, reporting the job's progress.

        Example:
          >>> for row in current_job().track(rows, text="reading prices"):
          ...     read(row)

        Parameters:
          iterable: Anything to iterate over.
          total: How many items it has; by default its length, if it has one.
          text: What is being done.
        """
        if total is None:
            total = operator.length_hint(iterable) or None
        self.progress(0, total, text)
        for done, item in enumerate(iterable, 1):
            yield item
            self.progress(done, total, text)

    @property
    def fence(self) -> int | None:
        """A number that grows with each holder of the job's section, for stores that check it.

        If the job has several sections, it is that of the first; see :attr:`fences`.
        """
        lease = self.lease
        return None if lease is None else lease.fence

    @property
    def fences(self) -> dict[str, int]:
        """The fences of all its sections, by their keys."""
        lease = self.lease
        return {} if lease is None else lease.fences

    @property
    def lease_lost(self) -> bool:
        """Whether another job may hold one of its sections: this job was paused for too long."""
        lease = self.lease
        return lease is not None and lease.lost


#: Async actors see it too: Dramatiq copies the context into their event loop.
running: ContextVar[LiveRun | None] = ContextVar("dramatiq_joblog_current", default=None)


def current_job() -> CurrentJob | None:
    """Return the running job; None outside of actors, or if the job is not logged.

    Example:
      >>> current_job() is None
      True
    """
    run = running.get()
    return None if run is None else run.job


def require_current_job() -> CurrentJob:
    """Return the running job, or raise if there is none.

    Use it instead of :func:`current_job` in the body of an actor: type checkers know that it
    never returns None.

    Example:
      >>> require_current_job().meta["rows"] = 12

    Raises:
      JobLogError: Outside an actor, or in one whose jobs are not logged.
    """
    job = current_job()
    if job is None:
        raise JobLogError(
            "no logged job runs here: call require_current_job() in the body of an actor whose "
            "jobs are logged, or current_job(), which returns None elsewhere"
        )
    return job


def progress_of(reported: tuple[Any, Any, Any], redactor: Redactor) -> dict[str, Any]:
    """Return a progress as it is kept."""
    done, total, text = reported
    return {
        "done": as_number(done),
        "total": as_number(total),
        "text": None if text is None else clean(redactor.text(text_of(text)), MAX_TEXT),
    }
