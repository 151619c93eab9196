"""What can go wrong, one class for each thing a caller would handle differently."""

from __future__ import annotations

import re

from dramatiq.errors import DramatiqError
from dramatiq.middleware import MiddlewareError


class JobLogError(DramatiqError):
    """Base of every error of this package."""

    def __init__(self, message: str) -> None:
        super().__init__(message)  # type: ignore[no-untyped-call]


class DatabaseAwayError(JobLogError):
    """Raised when the log's database cannot be asked now; it may be able to later."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        #: Whether it is the log's tables, or columns of them, that are missing.
        self.no_tables = re.search("no such table|no column|does not exist", message) is not None


class JobNotFound(JobLogError):
    """Raised when the log has no job of the given jid."""

    def __init__(self, jid: str) -> None:
        super().__init__(f"the log has no job {jid!r}")
        #: The jid that was asked for.
        self.jid = jid


class ConfigurationError(JobLogError, MiddlewareError, ValueError):
    """Raised when the log, an actor or a message is declared in a way that cannot work.

    It is a ``MiddlewareError`` because Dramatiq swallows anything else that is raised
    while an actor is declared.
    """
