"""What is left out of an event that the database refuses: less and less, down to the outcome.

An outcome is never given up for what only decorates it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.payload.redaction import scrub
from dramatiq_joblog.payload.sanitize import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .transitions import Event

#: How the note of a row begins that is written in part.  It goes once all is stored after all.
NOT_STORED = "not stored"

#: What a message says beside what became of it.
_PAYLOAD = ("args", "kwargs", "meta", "options", "progress", "sealed", "withheld")
#: What became of it, by our own words and times.
_BARE = frozenset(
    {
        *("jid", "actor", "queue", "state", "attempt", "token", "process", "worker", "section"),
        *("created_at", "updated_at", "enqueued_at", "started_at", "finished_at", "eta"),
        *("dead_reason", "waiting_since"),
    }
)
_BARE_FAILURE = frozenset({"jid", "token", "attempt", "outcome", "started_at", "finished_at"})


def repairs(event: Event, own: dict[str, Any], error: Exception) -> Iterator[Event]:
    """Yield *event* with more and more left out, each with a note of what.

    Parameters:
      event: What the database refused.
      own: The columns of a model of the user's own, and what stands there when nothing is said.
      error: How it was refused.
    """
    row, failure = event.row, event.failure
    filled = [name for name, default in own.items() if row.get(name) not in (None, default)]
    for name in filled if len(filled) > 1 else ():
        # Most often it is one, as a foreign key that is not committed yet.
        yield _noted(event, row | {name: own[name]}, f"column {name}", error)
    row = row | own
    if filled:
        yield _noted(event, row, f"columns {', '.join(filled)}", error)
    if event.lines or event.forget:
        event = replace(event, lines=None, forget=None)
        yield _noted(event, row, "log lines", error)
    row = row | dict.fromkeys(name for name in _PAYLOAD if name in row)
    yield _noted(event, row, "arguments and what the job noted", error)
    row = {name: value for name, value in row.items() if name in _BARE} | own
    if failure is not None:
        failure = {name: value for name, value in failure.items() if name in _BARE_FAILURE}
    event = replace(event, failure=failure)
    yield _noted(event, row, "all but the outcome", error)
    if event.kind == "end":
        # What it holds then runs out by itself.
        event = replace(event, section=None, unique=None)
        yield _noted(event, row, "all but the outcome, and what it held", error)


def _noted(event: Event, row: dict[str, Any], what: str, error: Exception) -> Event:
    refused = f"{NOT_STORED}, as the database refused it: {what} ({scrub(str(error).strip())})"
    notes = [clean(refused, 500), *filter(None, [event.row.get("note")])]
    return replace(event, row=row | {"note": clean("; ".join(notes), 1000)})
