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
        if len(logging.root.handlers) == 1:
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


def _text_of(record: LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception as e:  # noqa: BLE001
        # Arguments that do not fit: other handlers tell of it, and the job goes on.
        text = f"{record.msg} % {type(record.args).__name__}: {message_of(e)}"
    if record.exc_info and record.exc_info[1] is not None:
        text += "\n" + _formatter.formatException(record.exc_info)
    return text
