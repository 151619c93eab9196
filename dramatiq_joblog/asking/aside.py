"""Queries from coroutines, run on separate threads so that no event loop blocks."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from dramatiq_joblog.database.checkout import closings
from dramatiq_joblog.database.timeouts import answered_within
from dramatiq_joblog.errors import ConfigurationError, DatabaseAwayError
from dramatiq_joblog.schema.query import count_asked

from .threads import Threads, UnansweredError

if TYPE_CHECKING:
    from collections.abc import Callable

    from peewee import Database

T = TypeVar("T")

#: Milliseconds to wait for an answer, by default.
DEFAULT_TIMEOUT = 30_000
#: Milliseconds that an answer may still take after the connection is cut.
_LATER = 500
#: The most milliseconds to wait for an answer: a day.
_MOST = 86_400_000


class Aside:
    """Calls functions on threads of the log.

    Parameters:
      database: The database that they query.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._threads = Threads(waiting=None, name="aside")

    async def run(self, function: Callable[[], T], timeout: int = DEFAULT_TIMEOUT) -> T:
        """Call *function*, which may query the database, and return its result.

        Parameters:
          function: It is called with the context variables of the caller.
          timeout: Milliseconds to wait for it; then a silent connection is cut.

        Raises:
          DatabaseAwayError: If the database is unavailable, or there was no answer in time.
        """
        timeout = count_asked("timeout", timeout, most=_MOST)

        # It may be requested before, and begin after, the log is closed.
        since = closings(self._database)

        def ask() -> T:
            with answered_within(self._database, timeout, since=since):
                return function()

        try:
            return await self._threads.run(ask, within=(timeout + _LATER) / 1000)
        except UnansweredError:
            raise DatabaseAwayError(
                f"there was no answer within {timeout} ms; a change that was sent may still be made"
            ) from None

    async def fetch(self, asked: Any, timeout: int = DEFAULT_TIMEOUT) -> Any:
        """Return the rows of a query as a list, or what a function returns.

        Raises:
          ConfigurationError: If it is neither, or the function is asynchronous.
        """
        if not callable(asked) and (isinstance(asked, str) or not isinstance(asked, Iterable)):
            raise ConfigurationError(
                f"fetch({asked!r}) has no rows: give a query, such as joblog.jobs.dead(), "
                "or a function"
            )
        if inspect.iscoroutinefunction(asked):
            raise ConfigurationError(
                "fetch() calls functions on a thread, and cannot call an async one: await it "
                "directly"
            )
        return await self.run(asked if callable(asked) else lambda: list(asked), timeout)
