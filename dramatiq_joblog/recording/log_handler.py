"""A ``logging`` handler that assigns each line to the job that logged it."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import dramatiq.errors

from dramatiq_joblog.payload.sanitize import message_of

from .current import current_job, running

if TYPE_CHECKING:
    from logging import LogRecord

#: The folders of Dramatiq and of this package: their messages about a job are on its row.
_NOT_OF_THE_JOB = tuple(
    str(Path(file).parent) + os.sep for file in (dramatiq.errors.__file__, __file__)
)

_formatter = logging.Formatter()


class Capture(logging.Handler):
    """Assigns log lines to the running job; one handler for the whole process.

    It is attached to the root logger while workers run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Reset the count of workers, in a process that was just forked."""
        self._users = 0
        self._counting = threading.Lock()

    def enter(self) -> None:
        """Add a worker."""
        with self._counting:
            self._users += 1
        self.attach()

    def leave(self) -> None:
        """Remove a worker; without workers, detach from the root logger."""
        with self._counting:
            self._users -= 1
            if self._users == 0:
                logging.root.removeHandler(self)

    def attach(self) -> None:
        """Attach to the root logger, again if a configuration of ``logging`` removed it."""
        # addHandler checks again under a lock, so that two threads add it once.
        if self not in logging.root.handlers:
            logging.root.addHandler(self)

    def handle(self, record: LogRecord) -> bool:
        """Keep a line with its job; the only lock taken is the job's."""
        run = running.get()
        if (
            run is not None
            and run.lines_level is not None
            and record.levelno >= run.lines_level
            and not record.pathname.startswith(_NOT_OF_THE_JOB)
        ):
            text = _text_of(record)
            run.add_line(int(record.created * 1000), record.levelname, record.name, text)
        if logging.root.handlers == [self]:
            self._stand_in(record)
        return True

    def _stand_in(self, record: LogRecord) -> None:
        """Write warnings to stderr, as Python does if logging is not configured."""
        last = logging.lastResort
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None and logger is not logging.root:
            if logger.handlers:
                return
            logger = logger.parent
        if last is not None and record.levelno >= last.level:
            last.handle(record)


class JobContextFilter(logging.Filter):
    """Adds ``jid``, ``actor`` and ``attempt`` of the running job to each record.

    Add it to a handler, whose format may then use these names.  It lets every record through, and
    does not replace attributes that a record already has.

    Example:
      >>> handler = logging.StreamHandler()
      >>> handler.addFilter(JobContextFilter(default="-"))
      >>> handler.setFormatter(logging.Formatter("%(jid)s %(actor)s %(attempt)s %(message)s"))

    Parameters:
      default: Their value outside a job, or in a job that is not logged.
    """

    def __init__(self, *, default: str | None = None) -> None:
        super().__init__()
        self._default = default

    def filter(self, record: LogRecord) -> bool:
        """Add the three fields."""
        job = current_job()
        for name in ("jid", "actor", "attempt"):
            if not hasattr(record, name):
                setattr(record, name, self._default if job is None else getattr(job, name))
        return True


def _text_of(record: LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception as e:  # noqa: BLE001
        # The arguments do not match the format; other handlers report it, and the job goes on.
        text = f"{record.msg} % {type(record.args).__name__}: {message_of(e)}"
    if record.exc_info and record.exc_info[1] is not None:
        text += "\n" + _formatter.formatException(record.exc_info)
    return text


#: The handler of this process.
capture = Capture()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=capture.forget)
