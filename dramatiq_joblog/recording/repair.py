"""Repairs of a refused event: more and more is left out, down to the outcome.

An outcome is never lost because of optional data.  The columns of a custom model are left out
first, and then written one by one, so that those the database accepts are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from dramatiq_joblog.payload.sanitize import clean
from dramatiq_joblog.payload.secret_texts import scrub

from .events import Ended

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .events import Event

#: The beginning of the note on an incomplete row.  It is removed once everything is stored.
NOT_STORED = "not stored"

#: The optional columns, beside the outcome.
_PAYLOAD = ("args", "kwargs", "meta", "options", "progress", "sealed", "withheld")
#: The columns of the outcome, all with values made by this package.
_BARE = frozenset(
    {
        *("jid", "actor", "queue", "state", "attempt", "token", "process", "worker", "section"),
        *("created_at", "updated_at", "enqueued_at", "started_at", "finished_at", "eta"),
        *("dead_reason", "waiting_since"),
    }
)
_BARE_FAILURE = frozenset({"jid", "token", "attempt", "outcome", "started_at", "finished_at"})


@dataclass(frozen=True)
class Repair:
    """An incomplete event, and the columns that may be added once it is written."""

    event: Event
    #: The columns of a custom model, which are tried one by one.
    columns: dict[str, Any]
    #: What else is left out.
    left_out: str | None
    #: The error of the complete event.
    error: Exception

    def as_written(self) -> Event:
        """Return the event without these columns, with a note that they are not stored."""
        return self._noted(dict.fromkeys(self.columns, self.error))

    def note(self, refused: Mapping[str, Exception]) -> str | None:
        """Return the note of the row, once all its columns except *refused* are stored."""
        return cast("str | None", self._noted(refused).row.get("note"))

    def _noted(self, refused: Mapping[str, Exception]) -> Event:
        texts = [_refusal(f"column {name}", error) for name, error in refused.items()]
        if len({str(error) for error in refused.values()}) == 1 < len(refused):
            texts = [_refusal(f"columns {', '.join(refused)}", self.error)]
        if self.left_out:
            texts.append(_refusal(self.left_out, self.error))
        if not texts:
            return self.event
        notes = [clean("; ".join(texts), 500), *filter(None, [self.event.row.get("note")])]
        row = self.event.row | {"note": clean("; ".join(notes), 1000)}
        return replace(self.event, row=row)


def repairs(event: Event, own: dict[str, Any], error: Exception) -> Iterator[Repair]:
    """Yield *event* with more and more left out.

    Parameters:
      event: The event that the database refused.
      own: The columns of a custom model, with their defaults.
      error: The database's error.
    """
    row = event.row
    filled = {name: row[name] for name, value in own.items() if row.get(name) not in (None, value)}
    row = row | own
    if isinstance(event, Ended) and event.start is not None:
        start = replace(event.start, row=event.start.row | own)
        event = replace(event, start=start)
    if filled:
        # Usually a custom column is the cause, such as a foreign key not committed yet.
        yield Repair(replace(event, row=row), filled, None, error)
    if isinstance(event, Ended) and (event.lines or event.forget):
        event = replace(event, lines=None, forget=None)
        yield Repair(replace(event, row=row), filled, "log lines", error)
    row = row | dict.fromkeys(name for name in _PAYLOAD if name in row)
    what = "the arguments and what the job stored"
    yield Repair(replace(event, row=row), filled, what, error)
    row = {name: value for name, value in row.items() if name in {*_BARE, "note"}} | own
    event, what = replace(event, row=row), "all but the outcome"
    if isinstance(event, Ended) and event.failure is not None:
        bare = {name: value for name, value in event.failure.items() if name in _BARE_FAILURE}
        event = replace(event, failure=bare)
    yield Repair(event, filled, what, error)
    if isinstance(event, Ended):
        # The keys that it holds then expire.
        event = replace(event, section=None, unique=None)
        yield Repair(event, filled, f"{what}, and what it held", error)


def _refusal(what: str, error: Exception) -> str:
    return f"{NOT_STORED}, as the database refused it: {what} ({said(error)})"


def said(error: Exception) -> str:
    """Return the first line of a database error; PostgreSQL quotes the whole row below it."""
    return scrub(next(iter(str(error).strip().splitlines()), type(error).__name__))
