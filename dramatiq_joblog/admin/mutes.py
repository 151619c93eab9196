"""Problems that people muted: known, with a reason, until a time or until they get worse."""

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

#: A problem whose count grew by more than this factor is back.
WORSE = 2
#: Milliseconds for which a problem can be muted at most: everyone has forgotten it by then.
LONGEST = 31 * 86_400_000


def check(problem: Any) -> Problem:
    """Return the problem to mute.

    Raises:
      ConfigurationError: If it is none, or cannot be muted.
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
    """Mute a problem, in place of an earlier time; in a transaction."""
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
    """End the time for which a problem is muted, and return whether it was."""
    return bool(model.delete().where(_of(model, problem)).execute())


def standing(model: Any) -> Any:
    """Return a select of what is muted now, that which ends first before others."""
    now = database_now(model._meta.database)
    return model.select().where(model.until > now).order_by(model.until, model.id)


def apply(problems: Iterable[Problem], mutes: Iterable[Mute]) -> list[Problem]:
    """Return problems, those that are muted and did not get worse with who did it."""
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
