"""Logs in JSON, one object a line, with the jid of the job that runs."""

from __future__ import annotations

import json
import logging
import sys

from dramatiq_joblog import JobContextFilter

_FIELDS = ("jid", "actor", "attempt", "state", "duration")


class JsonFormatter(logging.Formatter):
    """Writes a record as one object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object; what is not known is left out."""
        facts: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "text": record.getMessage(),
        }
        for name in _FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                facts[name] = value
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, default=str)


def configure() -> None:
    """Have all that this process logs written so, to its standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(JobContextFilter())
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
