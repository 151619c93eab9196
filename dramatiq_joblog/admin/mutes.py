"""Muted problems: known, with a reason, until a time or until they get worse."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.payload.sanitize import MAX_MESSAGE, clean, clean_optional, fold_jid
from dramatiq_joblog.payload.values import shown
from dramatiq_joblog.schema.models import Mute
from dramatiq_joblog.states import ProblemKind

from .problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A problem returns if its count has grown by more than this factor.
WORSE = 2
#: The maximum time for which a problem can be muted, in milliseconds.
LONGEST = 31 * 86_400_000


def check(problem: Any) -> Problem:
    """Return the problem to mute.

    Raises:
      ConfigurationError: If it is not a problem, or cannot be muted.
    """
    if not isinstance(problem, Problem):
        raise ConfigurationError(
            f"{shown(problem)} is not a problem: give one that joblog.problems() returned"
        )
    if problem.kind is ProblemKind.DATABASE:
        raise ConfigurationError(
            "a problem of the database cannot be muted: nothing else is known while it lasts"
        )
    return problem


def check_muted(problem: Any) -> Problem | Mute:
    """Return the problem to unmute, or the row that mutes it: the problem itself may be gone.

    Raises:
      ConfigurationError: If it is neither.
    """
    return problem if isinstance(problem, Mute) else check(problem)


def mute(model: Any, problem: Problem, *, until: int, reason: str, who: str | None) -> Mute:
    """Mute a problem, replacing an earlier mute; call it in a transaction."""
    now = database_now(model._meta.database)
    model.delete().where((model.until < now) | _of(model, problem)).execute()
    number = model.insert(
        kind=problem.kind.value,
        subject=problem.subject,
        title=clean(problem.title, MAX_MESSAGE),
        count=problem.count,
        at=now,
        until=until,
        who=clean_optional(who) or "unknown",
        reason=clean(reason, MAX_MESSAGE),
    ).execute()
    row: Mute = model.get_by_id(number)
    return row


def unmute(model: Any, problem: Problem | Mute) -> bool:
    """Unmute a problem, and return whether it was muted."""
    return bool(model.delete().where(_of(model, problem)).execute())


def standing(model: Any) -> Any:
    """Return a select of the current mutes, the first to end first."""
    now = database_now(model._meta.database)
    return model.select().where(model.until > now).order_by(model.until, model.id)


def apply(problems: Iterable[Problem], mutes: Iterable[Mute]) -> list[Problem]:
    """Return problems; those that are muted and have not got worse have their mute."""
    known = {(row.kind, row.subject): row for row in mutes}
    found = []
    for problem in problems:
        row = known.get((problem.kind.value, fold_jid(problem.subject)))
        is_muted = row is not None and problem.count <= WORSE * row.count
        found.append(replace(problem, muted=row) if is_muted else problem)
    return found


def _of(model: Any, problem: Problem | Mute) -> Any:
    same = model.subject == fold_jid(problem.subject)
    return (model.kind == str(problem.kind)) & same
