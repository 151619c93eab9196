"""The errors of this package: one class for each case that a caller would handle differently."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dramatiq.errors import DramatiqError, RateLimitExceeded
from dramatiq.middleware import MiddlewareError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


#: How SQLite, PostgreSQL and MySQL say that tables or rights are missing.
_NO_RIGHT = re.compile(
    "permission denied|command denied|[Aa]ccess denied|readonly database|read-only|read only"
)
_NO_TABLES = re.compile("no such table|no column|does not exist|doesn't exist|Unknown column")


class JobLogError(DramatiqError):
    """Base of every error of this package."""

    def __init__(self, message: str) -> None:
        super().__init__(message)  # type: ignore[no-untyped-call]


class DatabaseAwayError(JobLogError):
    """Raised when the log's database is unavailable; it may be back later."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        #: Whether tables or columns of the log are missing.
        self.no_tables = _NO_TABLES.search(message) is not None
        #: Whether a right to read or write them is missing.
        self.no_right = _NO_RIGHT.search(message) is not None

    @property
    def cure(self) -> str:
        """What to do about it, in one sentence; empty if it may go away by itself."""
        if self.no_tables:
            return "Call create_tables() on the log."
        if self.no_right:
            return (
                "Let this user read and write the log: grant SELECT, INSERT, UPDATE and DELETE on "
                "its tables and USAGE on their sequences, or make the file and its folder writable."
            )
        return ""


class JobNotFound(JobLogError):
    """Raised when the log has no job with the given jid."""

    def __init__(self, jid: str) -> None:
        super().__init__(f"the log has no job {jid!r}")
        #: The jid that was asked for.
        self.jid = jid


class SearchError(JobLogError, ValueError):
    """Raised when a search, or a time in it, cannot be understood; the text says what to write."""


class QueryTimeout(JobLogError):
    """Raised when a query took longer than allowed by :meth:`JobLog.reading`."""

    def __init__(self, timeout: int) -> None:
        super().__init__(
            f"the log's database did not respond within {timeout} ms; query less, for example a "
            "shorter time or one job type"
        )
        #: The limit, in milliseconds.
        self.timeout = timeout


class WaitTimeout(JobLogError, TimeoutError):
    """Raised when a job, or its family, did not end within the time to wait."""

    def __init__(
        self, jid: str, timeout: int, state: str | None, *, answered: bool, family: bool = False
    ) -> None:
        what, now = f"job {jid}", f"it is {state}"
        if family:
            what, now = f"the family of job {jid}", f"{now} itself, and not all of them have ended"
        if state is None:
            now = "the log has no such job yet"
        if not answered:
            now = "the log's database did not respond"
        super().__init__(f"{what} did not end within {timeout} ms: {now}")
        #: The job; of several, one that had not ended.
        self.jid = jid
        #: How long the call waited, in milliseconds.
        self.timeout = timeout
        #: The last state that was seen; None if the job was not found.
        self.state = state


class RequeueError(JobLogError):
    """Raised when a job cannot be run again as it was; nothing was sent."""

    def __init__(self, jid: str, reason: str) -> None:
        what = f"job {jid}" if jid else "the jobs"
        super().__init__(f"{what} cannot be run again: {reason}")
        #: The job that was to be run again; empty for several.
        self.jid = jid
        #: Why it cannot be.
        self.reason = reason


class RequeueInterruptedError(JobLogError):
    """Raised when running many jobs again stopped after some of them were sent.

    Repeating the call runs those that are left, and none twice.
    """

    def __init__(
        self, jid: str, sent: Sequence[Any], refused: Mapping[str, str], cause: str, left: int = 1
    ) -> None:
        super().__init__(
            f"{len(sent):,} jobs run again, {len(refused):,} were refused, and {left:,} are left, "
            f"from job {jid} on: {cause}. Repeat it to run those that are left; none runs twice."
        )
        #: The job at which it stopped: it is unknown whether its new message was accepted.
        self.jid = jid
        #: The new messages that were sent, in order.
        self.sent = list(sent)
        #: Why a job could not be run again, by its jid.
        self.refused = dict(refused)
        #: How many jobs are left: that job and those after it.
        self.left = left
        #: What the broker or the database said.
        self.why = cause


class CancelError(JobLogError):
    """Raised when a job cannot be cancelled; nothing was changed."""

    def __init__(self, jid: str, reason: str) -> None:
        super().__init__(f"job {jid} cannot be cancelled: {reason}")
        #: The job that was to be cancelled.
        self.jid = jid
        #: Why it cannot be.
        self.reason = reason


class CancelInterruptedError(DatabaseAwayError):
    """Raised when the database became unavailable while many jobs were being cancelled.

    Repeating the call cancels those that are left.
    """

    def __init__(
        self, cancelled: Sequence[str], refused: Mapping[str, str], cause: str, left: int
    ) -> None:
        super().__init__(
            f"{len(cancelled):,} jobs are cancelled, {len(refused):,} were refused, and {left:,} "
            f"are left as they were: {cause}. Repeat it to cancel those that are left."
        )
        #: The jids of the cancelled jobs, in order.
        self.cancelled = list(cancelled)
        #: Why a job could not be cancelled, by its jid.
        self.refused = dict(refused)
        #: How many jobs were not cancelled.
        self.left = left
        #: What the database said.
        self.why = cause


class LockNotAcquired(JobLogError, RateLimitExceeded):
    """Raised when another job or lock holds a key.

    It is a ``RateLimitExceeded``: if an actor does not catch it, the job is retried without an
    error in the worker's log.
    """

    def __init__(
        self,
        key: str,
        holder: str,
        *,
        owner: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> None:
        super().__init__(f"lock {key!r} {holder}")
        #: The key.
        self.key = key
        #: The jid of the job that holds the key, or ``host:pid:thread`` for a manual lock
        #: outside of jobs; None if the key has become free in the meantime.
        self.owner = owner
        #: When the holder took it, an aware UTC datetime.
        self.since = since
        #: When the lease expires; a live holder renews it.
        self.until = until


class SectionTakenError(LockNotAcquired, MiddlewareError):
    """Raised instead of running a job whose section is taken, if its policy is to retry."""


class SectionUnknownError(DatabaseAwayError, MiddlewareError):
    """Raised when the log cannot find out whether a key is free.

    It is raised instead of running a job with a section, and by ``send()`` for a unique message.
    """


class OutcomeNotKeptError(JobLogError, MiddlewareError):
    """Raised instead of an acknowledgement if the log could not store the job's outcome.

    The message stays with the broker, and is delivered again.
    """


class DuplicateJob(JobLogError, MiddlewareError):
    """Raised by ``send()`` when another job holds the message's unique key."""

    def __init__(self, key: str, jid: str) -> None:
        super().__init__(f"the key {key!r} is held by job {jid}; this message was not sent")
        #: The key.
        self.key = key
        #: The job that holds it.
        self.jid = jid


class ConfigurationError(JobLogError, MiddlewareError, ValueError):
    """Raised when the log, an actor or a message is configured in a way that cannot work.

    It is a ``MiddlewareError`` because Dramatiq swallows all other errors while an actor is
    declared.
    """
