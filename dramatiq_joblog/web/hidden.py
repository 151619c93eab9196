"""What someone may not see who may look without arguments: them, and all that may repeat them.

The text of an error, a traceback, a line of the log and the key of a section are often made of
what a job was sent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peewee import Model

from dramatiq_joblog.schema.models import Action, AlertState, Lock, Mute
from dramatiq_joblog.states import DeadReason, ProblemKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dramatiq_joblog.admin.problem import Problem
    from dramatiq_joblog.reading.search import Term

#: What stands in the place of a key.
HIDDEN = "hidden"
#: What is not shown of a job, a run or a line; and of an alert, which may name keys.
_SECRET = frozenset({"args", "kwargs", "meta", "progress", "skip_reason", "text"})
_SECRET |= frozenset({"error_message", "traceback"})
_OF_ALERTS = frozenset({"search", "subjects", "summary"})
#: What is not shown of a problem that somebody muted: which one it is, and why, may name keys.
_OF_MUTES = frozenset({"reason", "subject"})
#: Words of a search whose values would be found out by asking.
_ASKS = frozenset({None, "args", "lines", "section"})
REFUSAL = (
    "You may not see the arguments of jobs, nor what can repeat them: args:, lines:, section: "
    "and text without a key find nothing. Name a type:, an actor:, a user: or an error:."
)


def without_arguments(row: Any) -> Any:
    """Take from a row that was read what may not be seen, and return it; it is never saved."""
    if not isinstance(row, Model):
        return row
    names = _SECRET
    if isinstance(row, AlertState):
        names |= _OF_ALERTS
    elif isinstance(row, Mute):
        names |= _OF_MUTES
    for name in names & row._meta.fields.keys():
        setattr(row, name, None)
    name = "key" if isinstance(row, (Action, Lock)) else "section"
    if getattr(row, name, None) is not None:
        setattr(row, name, HIDDEN)
    return row


def as_dict(row: Any) -> dict[str, Any]:
    """Return a row as data, with no word of what may not be seen."""
    document: dict[str, Any] = without_arguments(row).as_dict()
    return {name: value for name, value in document.items() if name not in _SECRET}


def without_keys(problem: Problem) -> Problem:
    """Return a problem that names no section."""
    if problem.kind is not ProblemKind.SECTIONS:
        return problem
    return replace(problem, subject="", text=f"{problem.title}.")


def asks_for_arguments(terms: Iterable[Term]) -> bool:
    """Return whether some words of a search would find out what may not be seen."""
    return any(map(_asks, terms))


def _asks(term: Term) -> bool:
    if term.key == "reason":
        # That of a job which was skipped names the section that it did not come into.
        return term.value not in {reason.value for reason in DeadReason}
    return term.key in _ASKS or (term.key or "").startswith("args.")
