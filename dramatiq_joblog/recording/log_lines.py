"""The log lines of one run until they are written, up to a limit."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.payload.sanitize import MAX_MESSAGE, clean, clean_optional, clean_redacted

if TYPE_CHECKING:
    from collections.abc import Callable

#: Characters kept for each run: half from its first lines, half from its last.
MAX_LINES = 64_000
#: Characters that each line counts in addition to its text.
_ALSO = 32


def check_level(value: Any, where: str) -> int | None:
    """Return the number of the lowest level that is kept, or None to keep none.

    Parameters:
      value: The name or number of a level; True for all levels; False or None for none.
      where: Where the value was given, for the error's text.

    Raises:
      ConfigurationError: If there is no such level.
    """
    if value is None or value is False:
        return None
    if value is True:
        return 0
    level = logging.getLevelName(value.upper()) if isinstance(value, str) else value
    if not isinstance(level, int):
        raise ConfigurationError(
            f"{where}={value!r} is not a level: use a name such as 'INFO', a number, "
            "or False for none"
        )
    return level


class _Line(NamedTuple):
    number: int
    #: Milliseconds since 1970.
    time: int
    level: str
    logger: str
    text: str

    @property
    def size(self) -> int:
        return len(self.text) + _ALSO


@dataclass
class Batch:
    """Lines to write."""

    #: The rows, including the one that states how many lines are left out.
    lines: list[dict[str, Any]]
    #: Lines to delete: the jid, the token, and the first and last number.
    forget: tuple[str, str, int, int] | None
    #: The number of the last line in it, and of the last that is left out.
    upto: int
    left_out_to: int


class Lines:
    """The lines of one run, from any of its threads.

    Lines are numbered, so that writing them twice is harmless and their order is kept.

    Parameters:
      jid: The job.
      token: The token of the run.
      attempt: The number of the attempt.
      redact: Removes secrets from a text.
    """

    __slots__ = (
        "_attempt",
        "_head",
        "_head_count",
        "_head_size",
        "_jid",
        "_last_time",
        "_left_out_from",
        "_left_out_to",
        "_lock",
        "_redact",
        "_tail",
        "_tail_size",
        "_token",
        "_told_left_out",
        "_written",
        "closed",
        "count",
    )

    def __init__(self, jid: str, token: str, attempt: int, redact: Callable[[str], str]) -> None:
        self._jid, self._token, self._attempt = jid, token, attempt
        self._redact = redact
        #: The number of lines logged.
        self.count = 0
        #: Whether the run has ended; later lines belong to no job.
        self.closed = False
        self._lock = threading.Lock()
        self._head: list[_Line] = []
        self._head_count = self._head_size = 0
        self._tail: deque[_Line] = deque()
        self._tail_size = 0
        #: The time of the first line left out, and the number of the last.
        self._left_out_from = self._left_out_to = 0
        self._told_left_out = self._written = self._last_time = 0

    def add(self, time: int, level: str, logger: str, text: str) -> None:
        """Keep a line.

        Parameters:
          time: Milliseconds since 1970.
          level: The name of its level.
          logger: The name of its logger.
          text: Its text.
        """
        if len(text) > MAX_MESSAGE:
            text = clean_redacted(text, MAX_MESSAGE, self._redact)
        with self._lock:
            if self.closed:
                return
            self.count += 1
            # The clock may be set back; keep the lines in order.
            self._last_time = time = max(time, self._last_time)
            line = _Line(self.count, time, level, logger, text)
            if not self._tail and self._head_size + line.size <= MAX_LINES // 2:
                self._head.append(line)
                self._head_count += 1
                self._head_size += line.size
                return
            self._tail.append(line)
            self._tail_size += line.size
            while self._tail_size > MAX_LINES // 2:
                out = self._tail.popleft()
                self._tail_size -= out.size
                self._left_out_from = self._left_out_from or out.time
                self._left_out_to = out.number

    def take(self) -> Batch | None:
        """Return the lines not yet written, or None; call :meth:`done` once they are committed."""
        with self._lock:
            if self.count == self._written:
                return None
            lines = [line for line in (*self._head, *self._tail) if line.number > self._written]
            upto, left_out_to = self.count, self._left_out_to
            forget = None
            if left_out_to > self._told_left_out:
                first = self._head_count + 1
                forget = (self._jid, self._token, first, left_out_to)
                text = f"[... {left_out_to - first + 1} lines left out ...]"
                lines.insert(
                    sum(line.number < first for line in lines),
                    _Line(first, self._left_out_from, "", "", text),
                )
        return Batch([self._row(line) for line in lines], forget, upto, left_out_to)

    def done(self, batch: Batch) -> None:
        """Note that a batch is written."""
        with self._lock:
            self._written, self._told_left_out = batch.upto, batch.left_out_to
            self._head = [line for line in self._head if line.number > batch.upto]

    def end(self) -> Batch | None:
        """Stop keeping lines, and return those not yet written, like :meth:`take`."""
        self.closed = True
        return self.take()

    def _row(self, line: _Line) -> dict[str, Any]:
        return {
            "jid": self._jid,
            "token": self._token,
            "attempt": self._attempt,
            "number": line.number,
            "time": line.time,
            "level": clean_optional(line.level, 16),
            "logger": clean_optional(line.logger),
            "text": clean(self._redact(line.text), 2 * MAX_MESSAGE),
        }
