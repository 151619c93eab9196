"""A bounded pool of threads, separate from those of the host application."""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Requests that are answered at once, and that wait for their turn.
THREADS, WAITING = 8, 32


class BusyError(Exception):
    """Raised when so many requests wait that another would wait for long."""


class UnansweredError(Exception):
    """Raised when an answer did not come in time; its thread goes on until it has one."""


class Threads:
    """Threads that are made when they are needed, in whatever process that is.

    Parameters:
      threads: How many there are at most.
      waiting: How many requests may wait for one; None for any number.
      name: What the threads are called.
    """

    def __init__(
        self, *, threads: int = THREADS, waiting: int | None = WAITING, name: str = "page"
    ) -> None:
        self._threads = threads
        self._most = math.inf if waiting is None else threads + waiting
        self._name = name
        self._guard = threading.Lock()
        self._executor: tuple[int, ThreadPoolExecutor] | None = None
        self._at_work = 0

    async def run(self, function: Callable[[], T], *, within: float | None = None) -> T:
        """Return what *function* returns on one of the threads, *within* so many seconds, if any.

        Raises:
          BusyError: If too many wait already.
          UnansweredError: If it takes longer.
        """
        with self._guard:
            if self._at_work >= self._most:
                raise BusyError
            self._at_work += 1
            executor = self._of_this_process()
        future = executor.submit(contextvars.copy_context().run, function)
        future.add_done_callback(self._done)
        try:
            # Not cancelled with the wait: what has begun cannot be stopped, and counts.
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), within)
        except (TimeoutError, asyncio.TimeoutError) as e:
            future.cancel()
            raise UnansweredError from e

    def _of_this_process(self) -> ThreadPoolExecutor:
        """Return the threads; those of the process that this one was forked from are not here."""
        pid = os.getpid()
        if self._executor is None or self._executor[0] != pid:
            self._at_work = 1
            self._executor = (
                pid,
                ThreadPoolExecutor(
                    self._threads, thread_name_prefix=f"dramatiq_joblog {self._name}"
                ),
            )
        return self._executor[1]

    def _done(self, _: object) -> None:
        with self._guard:
            self._at_work -= 1
