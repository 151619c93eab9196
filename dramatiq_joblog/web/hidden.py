"""What the level ``"without-arguments"`` hides: arguments, and everything that may repeat them.

Error messages, tracebacks, log lines and keys of sections often contain arguments.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from peewee import Model

from dramatiq_joblog.schema.models import Action, AlertState, Lock, Mute
from dramatiq_joblog.states import DeadReason, ProblemKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dramatiq_joblog.admin.problem import Problem
    from dramatiq_joblog.reading.search import Term

T = TypeVar("T")

#: The placeholder for a key.
HIDDEN = "hidden"
#: The hidden columns of jobs, runs and lines; and of alerts, which may name keys.
_SECRET = frozenset({"args", "kwargs", "meta", "progress", "skip_reason", "text"})
_SECRET |= frozenset({"error_message", "traceback"})
_OF_ALERTS = frozenset({"search", "subjects", "summary"})
#: The hidden columns of a muted problem: its subject and the reason may name keys.
_OF_MUTES = frozenset({"reason", "subject"})
#: The search keys that would reveal hidden values.
_ASKS = frozenset({None, "args", "lines", "section"})
REFUSAL = (
    "You may not see the arguments of jobs, nor what can repeat them: args:, lines:, section: "
    "and text without a key find nothing. Name a type:, an actor:, a user: or an error:."
)


class Visible:
    """What a visitor may see of rows.

    Parameters:
      everything: Whether that is everything, as without the level ``"without-arguments"``.
    """

    def __init__(self, *, everything: bool) -> None:
        self._everything = everything

    def row(self, row: T) -> T:
        """Return a row without the hidden values."""
        if self._everything:
            return row
        without: T = without_arguments(row)
        return without

    def as_dict(self, row: Any) -> dict[str, Any]:
        """Return a row as a dictionary without the hidden values."""
        if not self._everything:
            return as_dict(row)
        document: dict[str, Any] = row.as_dict()
        return document

    def key(self, key: str) -> str:
        """Return the key of a section, or a placeholder for it."""
        return key if self._everything else HIDDEN

    def problem(self, problem: Problem) -> Problem:
        """Return a problem without hidden keys."""
        return problem if self._everything else without_keys(problem)


def without_arguments(row: Any) -> Any:
    """Remove the hidden values from a row that was read, and return it; it is never saved."""
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
    """Return a row as a dictionary, without the hidden values."""
    document: dict[str, Any] = without_arguments(row).as_dict()
    return {name: value for name, value in document.items() if name not in _SECRET}


def without_keys(problem: Problem) -> Problem:
    """Return a problem without names of sections."""
    if problem.kind is not ProblemKind.SECTIONS:
        return problem
    return replace(problem, subject="", text=f"{problem.title}.")


def asks_for_arguments(terms: Iterable[Term]) -> bool:
    """Return whether words of a search would reveal hidden values."""
    return any(map(_asks, terms))


def _asks(term: Term) -> bool:
    if term.key == "reason":
        # The reason of a skipped job names its section.
        return term.value not in {reason.value for reason in DeadReason}
    return term.key in _ASKS or (term.key or "").startswith("args.")
