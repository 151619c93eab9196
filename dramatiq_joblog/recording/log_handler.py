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

#: Where the code of the host and of the log lies: what they say of a job stands on its row.
_NOT_OF_THE_JOB = tuple(
    str(Path(file).parent) + os.sep for file in (dramatiq.errors.__file__, __file__)
)

_formatter = logging.Formatter()


class Capture(logging.Handler):
    """Gives lines to the jobs that run where they are logged; one for the whole process.

    It stands at the root of all loggers, while workers run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Stand there for no worker yet, as in a process that was just forked."""
        self._users = 0
        self._counting = threading.Lock()

    def enter(self) -> None:
        """Stand there for one worker more."""
        with self._counting:
            self._users += 1
        self.attach()

    def leave(self) -> None:
        """Stand there for one worker less, and for none not at all."""
        with self._counting:
            self._users -= 1
            if self._users == 0:
                logging.root.removeHandler(self)

    def attach(self) -> None:
        """Stand at the root of all loggers; also if a set-up of ``logging`` took it away."""
        # addHandler looks again, with a lock: two threads add it once.
        if self not in logging.root.handlers:
            logging.root.addHandler(self)

    def handle(self, record: LogRecord) -> bool:
        """Keep a line with its job; it takes no lock but the job's own."""
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
    """Adds ``jid``, ``actor`` and ``attempt`` of the running job to each record.

    Add it to a handler, whose format may then use these names.  It lets every record through, and
    does not replace attributes that a record already has.

    Example:
      >>> handler = logging.StreamHandler()
      >>> handler.addFilter(JobContextFilter(default="-"))
      >>> handler.setFormatter(logging.Formatter("%(jid)s %(actor)s %(attempt)s %(message)s"))

    Parameters:
      default: Their value outside of jobs, or in jobs that are not logged.
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
        # Arguments that do not fit: other handlers report it, and the job goes on.
        text = f"{record.msg} % {type(record.args).__name__}: {message_of(e)}"
    if record.exc_info and record.exc_info[1] is not None:
        text += "\n" + _formatter.formatException(record.exc_info)
    return text


#: The one of this process.
capture = Capture()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=capture.forget)
