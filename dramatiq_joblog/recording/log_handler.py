"""A handler of ``logging`` that gives each line to the job that logs it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import dramatiq.errors

from dramatiq_joblog.payload.sanitize import message_of

from .current import running

if TYPE_CHECKING:
    from logging import LogRecord

#: Where the code of the host and of the log lies: what they say of a job stands on its row.
_NOT_OF_THE_JOB = tuple(
    str(Path(file).parent) + os.sep for file in (dramatiq.errors.__file__, __file__)
)

_formatter = logging.Formatter()


class Capture(logging.Handler):
    """Gives lines to the jobs of one middleware, that run where the lines are logged.

    It stands at the root of all loggers, while a worker runs.
    """

    def attach(self) -> None:
        """Stand at the root of all loggers; also if a set-up of ``logging`` took it away."""
        # addHandler looks again, with a lock: two threads add it once.
        if self not in logging.root.handlers:
            logging.root.addHandler(self)

    def detach(self) -> None:
        """Stand there no more."""
        logging.root.removeHandler(self)

    def handle(self, record: LogRecord) -> bool:
        """Keep a line with its job; it takes no lock but the job's own."""
        job = running.get()
        if job is not None and job.capture is self:
            lines = job.lines
            if (
                lines is not None
                and record.levelno >= lines.level
                and not record.pathname.startswith(_NOT_OF_THE_JOB)
            ):
                text = _text_of(record)
                lines.add(int(record.created * 1000), record.levelname, record.name, text)
        handlers = logging.root.handlers
        if handlers[0] is self and all(isinstance(handler, Capture) for handler in handlers):
            self._stand_in(record)
        return True

    def _stand_in(self, record: LogRecord) -> None:
        """Do what Python does for those who set up no logging: warnings go to stderr."""
        last = logging.lastResort
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None and logger is not logging.root:
            if logger.handlers:
                return
            logger = logger.parent
        if last is not None and record.levelno >= last.level:
            last.handle(record)


class JobContextFilter(logging.Filter):
    """Puts ``jid``, ``actor`` and ``attempt`` of the job that runs on each record.

    Add it to a handler, whose format may then name them; it lets every record through, and
    leaves what a record has already.

    Example:
      >>> handler = logging.StreamHandler()
      >>> handler.addFilter(JobContextFilter(default="-"))
      >>> handler.setFormatter(logging.Formatter("%(jid)s %(actor)s %(attempt)s %(message)s"))

    Parameters:
      default: What they are outside a job, or in one that is not logged.
    """

    def __init__(self, *, default: str | None = None) -> None:
        super().__init__()
        self._default = default

    def filter(self, record: LogRecord) -> bool:
        """Add the three fields."""
        job = running.get()
        for name in ("jid", "actor", "attempt"):
            if not hasattr(record, name):
                setattr(record, name, self._default if job is None else getattr(job, name))
        return True


def _text_of(record: LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception as e:  # noqa: BLE001
        # Arguments that do not fit: other handlers tell of it, and the job goes on.
        text = f"{record.msg} % {type(record.args).__name__}: {message_of(e)}"
    if record.exc_info and record.exc_info[1] is not None:
        text += "\n" + _formatter.formatException(record.exc_info)
    return text
