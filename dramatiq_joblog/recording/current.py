"""``current_job()``: what an actor may know and say about its own run."""

from __future__ import annotations

import logging
import operator
import time
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from dramatiq_joblog.errors import JobLogError
from dramatiq_joblog.payload.sanitize import clean, text_of
from dramatiq_joblog.payload.values import as_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dramatiq_joblog.locking.locks import Lease
    from dramatiq_joblog.payload.redaction import Redactor

    from .log_lines import Lines
    from .transitions import Event

T = TypeVar("T")

#: Characters kept of a text that tells of progress.
MAX_TEXT = 1_000


@dataclass(eq=False)
class CurrentJob:
    """The job whose actor is running."""

    #: Dramatiq's ``message_id``.
    jid: str
    #: Number of this attempt; 1 for the first.
    attempt: int
    #: The first job of the family that this one was sent in.
    root_jid: str
    #: Name of its actor.
    actor: str
    #: The run.
    token: str
    _: KW_ONLY
    #: Takes secrets out of what it says.
    redactor: Redactor
    #: What it holds of its critical section, if it has one.
    lease: Lease | None = None
    #: Whatever the actor wants to keep with its row: stored, as JSON, with the outcome.
    meta: dict[str, Any] = field(default_factory=dict)
    #: What it logs; None if that is not kept.
    lines: Lines | None = None
    #: The handler that gives it what it logs through ``logging``.
    capture: object = None
    #: Its start, for as long as nobody needs to see it in the log.
    start: Event | None = None
    #: Its last progress, and that which the log knows of.
    told: tuple[Any, Any, Any] | None = None
    written: tuple[Any, Any, Any] | None = None

    def log(self, text: str, *, level: str | int = "INFO") -> None:
        """Keep a line with this job, whatever ``logging`` is set up to do.

        Example:
          >>> current_job().log("12 rows had no price")

        Parameters:
          text: The line.
          level: The name or the number of its level.
        """
        if self.lines is not None:
            name = level if isinstance(level, str) else logging.getLevelName(level)
            self.lines.add(time.time_ns() // 1_000_000, name, self.actor, text_of(text))

    def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Tell how far the job is; it costs nearly nothing, so call it as often as you like.

        The last word of all jobs of the process goes out with its sign of life, every five
        seconds by default, and with the outcome.

        Example:
          >>> current_job().progress(12, 40, "reading prices")

        Parameters:
          done: How much is done.
          total: How much there is; None if nobody knows.
          text: What is being done.
        """
        self.told = (done, total, text)

    def track(
        self, iterable: Iterable[T], total: float | None = None, text: str | None = None
    ) -> Iterator[T]:
        """Go through *iterable*, telling how far the job is.

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
        self.told = (0, total, text)
        for done, item in enumerate(iterable, 1):
            yield item
            self.told = (done, total, text)

    @property
    def fence(self) -> int | None:
        """A number that grows with each holder of the job's section, for stores that check it."""
        return None if self.lease is None else self.lease.fence

    @property
    def lease_lost(self) -> bool:
        """Whether another job may be in the section by now: this one was paused for too long."""
        return self.lease is not None and self.lease.lost


#: Async actors see it too: Dramatiq copies the context into their event loop.
running: ContextVar[CurrentJob | None] = ContextVar("dramatiq_joblog_current", default=None)


def current_job() -> CurrentJob | None:
    """Return the job that runs here, or None outside an actor or in one that is not logged.

    Example:
      >>> current_job() is None
      True
    """
    return running.get()


def require_current_job() -> CurrentJob:
    """Return the job that runs here; in the body of an actor there is always one.

    Use it in place of :func:`current_job` where there must be a job: type checkers know that
    it is never None.

    Example:
      >>> require_current_job().meta["rows"] = 12

    Raises:
      JobLogError: Outside an actor, or in one whose jobs are not logged.
    """
    job = running.get()
    if job is None:
        raise JobLogError(
            "no logged job runs here: call require_current_job() in the body of an actor whose "
            "jobs are logged, or current_job(), which returns None elsewhere"
        )
    return job


def progress_of(told: tuple[Any, Any, Any], redactor: Redactor) -> dict[str, Any]:
    """Return a progress as it is kept."""
    done, total, text = told
    return {
        "done": as_number(done),
        "total": as_number(total),
        "text": None if text is None else clean(redactor.text(text_of(text)), MAX_TEXT),
    }
