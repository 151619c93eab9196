"""Repeated log entries, limited to one a minute each."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

#: Milliseconds between two entries about the same thing.
EVERY = 60_000


class LimitedLog:
    """Logs the first entry about a thing, then at most one a minute, with the number left out.

    Parameters:
      logger: Where they are written.
      every: Milliseconds between two entries about the same thing.
    """

    def __init__(self, logger: logging.Logger, *, every: int = EVERY) -> None:
        self._logger = logger
        self._every = every / 1000
        self._lock = threading.Lock()
        #: When each thing was last logged, monotonic, and how many entries were left out since.
        self._last: dict[str, tuple[float, int]] = {}

    def log(self, level: int, about: str, text: str, *args: Any, exc_info: Any = None) -> bool:
        """Log an entry, unless one about the same thing was logged within the last minute.

        Parameters:
          level: That of ``logging``.
          about: Names the thing; there must be few names, because they are kept in memory.
          text: The entry, with *args* as ``logging`` takes them.
          exc_info: As ``logging`` takes it.

        Returns:
          Whether it was written.
        """
        now = time.monotonic()
        with self._lock:
            last, left_out = self._last.get(about, (None, 0))
            if last is not None and now - last < self._every:
                self._last[about] = last, left_out + 1
                return False
            self._last[about] = now, 0
        if left_out:
            text += f" ({left_out} more like it were not logged since the last.)"
        self._logger.log(level, text, *args, exc_info=exc_info)
        return True
