"""One line of JSON for each run that ends, through ``logging``: for ELK, Loki and the like."""

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
#: What is told of a run, in this order, where it is known.
_TOLD = (
    *("jid", "actor", "queue", "job_type", "user_id", "state", "attempt", "max_retries"),
    *("duration", "queue_time", "error_type", "error_message", "dead_reason", "skip_reason"),
    *("section", "worker", "parent_jid", "root_jid", "replay_of", "trace_id"),
)


def tell(row: Mapping[str, Any], user_column: str) -> None:
    """Tell how a run ended.

    Example:
      >>> logging.getLogger("dramatiq_joblog.outcome").addHandler(logging.StreamHandler())

    Parameters:
      row: The job's columns as its run ends.
      user_column: The one of its user.
    """
    known: dict[str, Any] = {**row, "user_id": row.get(user_column)}
    told = {"time": instant_of(row["updated_at"]).isoformat(timespec="milliseconds")}
    told |= {name: known[name] for name in _TOLD if known.get(name) is not None}
    logging.getLogger(LOGGER).log(
        _LEVELS.get(row["state"], logging.INFO), "%s", json.dumps(told, default=str)
    )
