"""A log record for the end of each run, with its columns as attributes."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.schema.models import instant_of
from dramatiq_joblog.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The logger's name.
LOGGER = "dramatiq_joblog.outcome"

_LEVELS = {State.RETRYING: logging.WARNING, State.DEAD: logging.ERROR}
#: The fields of a run's record, in this order, if known.
_FIELDS = (
    "time",
    *("jid", "actor", "queue", "job_type", "user_id", "state", "attempt", "max_retries"),
    *("duration", "queue_time", "error_type", "error_message", "dead_reason", "skip_reason"),
    *("section", "worker", "parent_jid", "root_jid", "replay_of", "trace_id"),
)


class OutcomeFormatter(logging.Formatter):
    """Writes a record of ``dramatiq_joblog.outcome`` as one line of JSON.

    Example:
      >>> handler = logging.StreamHandler()
      >>> handler.setFormatter(OutcomeFormatter())
      >>> logging.getLogger("dramatiq_joblog.outcome").addHandler(handler)
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the columns of the record as JSON."""
        fields = {name: getattr(record, name, None) for name in _FIELDS}
        known = {name: value for name, value in fields.items() if value is not None}
        return json.dumps(known, default=str)


def log_outcome(row: Mapping[str, Any], user_column: str) -> None:
    """Log how a run ended: as a sentence, and as fields of the record.

    Parameters:
      row: The job's columns as its run ends.
      user_column: The column of its user.
    """
    logger, level = logging.getLogger(LOGGER), _LEVELS.get(row["state"], logging.INFO)
    if not logger.isEnabledFor(level):
        return
    known: dict[str, Any] = {**row, "user_id": row.get(user_column)}
    if row["attempt"] > 1:
        # It is the wait before the first run, and counted from the first send.
        known["queue_time"] = None
    known["time"] = instant_of(row["updated_at"]).isoformat(timespec="milliseconds")
    why = row.get("skip_reason") or row.get("error_message") or row.get("dead_reason")
    values = (row["jid"], row["actor"], row["state"], row["attempt"], f": {why}" if why else "")
    text = "Job %s of %s is %s after attempt %d%s"
    record = logger.makeRecord(LOGGER, level, __file__, 0, text, values, None)
    # Not as *extra*, which refuses names that the user's record factory has set.
    record.__dict__.update({n: known[n] for n in _FIELDS if known.get(n) is not None})
    logger.handle(record)
