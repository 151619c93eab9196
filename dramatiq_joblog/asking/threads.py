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

#: How many requests are answered at a time, and how many may wait.
THREADS, WAITING = 8, 32


class BusyError(Exception):
    """Raised when too many requests are already waiting."""


class UnansweredError(Exception):
    """Raised when an answer did not come in time; its thread continues until it has one."""


class Threads:
    """Threads that are started when they are needed, in each process.

    Parameters:
      threads: The most threads.
      waiting: How many requests may wait for a thread; None for any number.
      name: The name of the threads.
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
        """Call *function* on one of the threads, and return its result *within* so many seconds.

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
            # Not cancelled with the wait: a call that has begun cannot be stopped, and counts.
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), within)
        except (TimeoutError, asyncio.TimeoutError) as e:
            future.cancel()
            raise UnansweredError from e

    def _of_this_process(self) -> ThreadPoolExecutor:
        """Return this process's threads; after a fork, those of the parent do not exist here."""
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
