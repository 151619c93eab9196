"""The audit record of an action on many jobs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.payload.sanitize import MAX_MESSAGE, clean, clean_optional, fold_jid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ManyActions:
    """The audit records of one action on many jobs.

    Parameters:
      action: The bound model of actions.
      what: The name of the action.
      who: The user who did it.
    """

    def __init__(self, action: Any, what: str, who: str | None) -> None:
        self._action = action
        self._what = clean_optional(what, 32)
        self._who = clean_optional(who) or "unknown"
        self._insert = Compiled(action._meta.database, self._inserting)

    def record(self, details: Mapping[str, str]) -> None:
        """Record the detail of each job, by jid."""
        if details:
            known = (self._what, self._who)
            rows = ((*known, fold_jid(j), clean(d, MAX_MESSAGE)) for j, d in details.items())
            self._insert.execute(list(itertools.chain.from_iterable(rows)))

    def _inserting(self, values: Sequence[Any]) -> Any:
        action, now = self._action, database_now(self._action._meta.database)
        rows = [(now, *values[at : at + 4]) for at in range(0, len(values), 4)]
        fields = [action.at, action.what, action.who, action.jid, action.detail]
        return action.insert_many(rows, fields=fields)
