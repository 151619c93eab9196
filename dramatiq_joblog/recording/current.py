"""``current_job()``: what an actor can read and report about its own run."""

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
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from dramatiq_joblog.locking.leases import Held
    from dramatiq_joblog.payload.redaction import Redactor

    from .inbox import LateStart
    from .log_lines import Batch

T = TypeVar("T")

#: The maximum length of a progress text, in characters.
MAX_TEXT = 1_000


class LiveRun:
    """A run that is executing in this process: its reports, and which of them are stored.

    Parameters:
      message_id: Dramatiq's ID of the message.
      actor: The name of its actor.
      root_jid: The jid of the first job of its family.
      row: The run's ``jid``, ``token`` and ``attempt``.
      redactor: Removes secrets from its reports.
      lease: Its lease of the section, if it has one.
      lines_level: The lowest level of log lines that are kept; None for none.
      start: Its start, while that has not been written.
      on_question: Called with the name of its actor when its job first queries the log.
    """

    __slots__ = (
        "_actor",
        "_closed",
        "_jobs",
        "_logs",
        "_on_question",
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
        on_question: Callable[[str], None] | None = None,
    ) -> None:
        self.message_id, self.root_jid, self._actor = message_id, root_jid, actor
        self._row = row
        self.redactor = redactor
        self.lease = lease
        self.lines_level = lines_level
        self._start = start
        self._on_question = on_question
        #: The last progress reported.
        self.reported: tuple[Any, Any, Any] | None = None
        self._written: tuple[Any, Any, Any] | None = None
        # Created at first use, because few runs need it; any thread may be first.
        self._jobs: dict[int, CurrentJob] = {}
        self._logs: dict[int, Lines] = {}
        self._closed = False

    @property
    def jid(self) -> str:
        """The job's jid in the log."""
        return str(self._row["jid"])

    @property
    def token(self) -> str:
        """The token of the run."""
        return str(self._row["token"])

    @property
    def job(self) -> CurrentJob:
        """The run as its actor sees it; created at first use."""
        if 0 not in self._jobs:
            row = self._row
            job = CurrentJob(self, self.message_id, row["attempt"], self.root_jid, self._actor)
            self._jobs.setdefault(0, job)
        return self._jobs[0]

    @property
    def meta(self) -> Any:
        """The actor's ``meta``; None if the actor never called :func:`current_job`."""
        return self._jobs[0].meta if self._jobs else None

    @property
    def news(self) -> tuple[Any, Any, Any] | None:
        """The last progress, if it is not stored yet; see :meth:`note_written`."""
        return None if self.reported is self._written else self.reported

    def note_written(self, progress: tuple[Any, Any, Any]) -> None:
        """Note that a progress is stored."""
        self._written = progress

    def note_question(self) -> None:
        """Note that its job queries the log."""
        listener, self._on_question = self._on_question, None
        if listener is not None:
            listener(self._actor)

    def take_start(self) -> LateStart | None:
        """Return the start if it is not in the log; the first call only."""
        start, self._start = self._start, None
        return start

    def add_line(self, instant: int, level: str, logger: str, text: str) -> None:
        """Keep a log line, as :meth:`Lines.add` does, unless the run has ended."""
        if self.lines_level is None or self._closed:
            return
        if not self._logs:
            lines = Lines(self.jid, self.token, self._row["attempt"], self.redactor.text)
            self._logs.setdefault(0, lines)
        self._logs[0].add(instant, level, logger, text)

    @property
    def lines(self) -> Lines | None:
        """Its log lines; None if it logged nothing."""
        return self._logs.get(0)

    def end_lines(self) -> Batch | None:
        """Stop keeping lines, and return those not yet written."""
        self._closed = True
        return self._logs[0].end() if self._logs else None


class CurrentJob:
    """The running job, as its actor sees it."""

    __slots__ = ("_run", "actor", "attempt", "jid", "meta", "root_jid")

    def __init__(self, run: LiveRun, jid: str, attempt: int, root_jid: str, actor: str) -> None:
        self._run = run
        #: Dramatiq's ``message_id``.
        self.jid = jid
        #: The number of this attempt, from 1.
        self.attempt = attempt
        #: The jid of the first job of its family.
        self.root_jid = root_jid
        #: The name of its actor.
        self.actor = actor
        #: Data to keep with the job's row; stored as JSON with the outcome.
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
        """Keep a log line with this job, independent of the configuration of ``logging``.

        It is kept at any level, unless the job keeps no lines (``log_lines=False``).

        Example:
          >>> current_job().log("12 rows had no price")

        Parameters:
          text: The line.
          level: The name or the number of its level.
        """
        name = level if isinstance(level, str) else logging.getLevelName(level)
        self._run.add_line(time.time_ns() // 1_000_000, name, self.actor, text_of(text))

    def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Report the job's progress; cheap enough for the innermost loop.

        The latest progress is written with the process's heartbeat, every five seconds by
        default, and with the outcome.

        Example:
          >>> current_job().progress(12, 40, "reading prices")

        Parameters:
          done: The amount done.
          total: The total amount; None if unknown.
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
          total: The number of items; by default the length of *iterable*, if it has one.
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
        """The fencing token of the job's section: a number that grows with each holder.

        If the job has several sections, the fence of the first; see :attr:`fences`.
        """
        lease = self.lease
        return None if lease is None else lease.fence

    @property
    def fences(self) -> dict[str, int]:
        """The fences of all its sections, by key."""
        lease = self.lease
        return {} if lease is None else lease.fences

    @property
    def lease_lost(self) -> bool:
        """Whether a lease has expired, so that another job may hold one of its sections."""
        lease = self.lease
        return lease is not None and lease.lost


#: Set in async actors too: Dramatiq copies the context into their event loop.
running: ContextVar[LiveRun | None] = ContextVar("dramatiq_joblog_current", default=None)


#: Called on worker threads when the log is queried outside a run; None on other threads.
asked_outside: ContextVar[Callable[[], None] | None] = ContextVar(
    "dramatiq_joblog_asked_outside", default=None
)


def current_job() -> CurrentJob | None:
    """Return the running job; None outside an actor, or if the job is not logged.

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
    """Return a progress in its stored form: redacted and shortened."""
    done, total, text = reported
    return {
        "done": as_number(done),
        "total": as_number(total),
        "text": None if text is None else clean(redactor.text(text_of(text)), MAX_TEXT),
    }
