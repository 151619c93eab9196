"""Actions of users on jobs and keys, and the audit log."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from peewee import SQL, Case, Select, fn

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.payload.sanitize import MAX_MESSAGE, clean, clean_optional, fold_jid
from dramatiq_joblog.schema.models import instant_of
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import DeadReason, State
from dramatiq_joblog.statistics.cells import span_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Milliseconds of an hour, the unit of the windows.
_HOUR = 3_600_000
#: The default windows of counts of dead jobs: 1 and 3 hours, 1, 3 and 7 days.
DEFAULT_WINDOWS = (1 * _HOUR, 3 * _HOUR, 24 * _HOUR, 72 * _HOUR, 168 * _HOUR)
#: The number of newest dead jobs that are checked for lost retries.
_LOOKED_AT = 5_000
#: The maximum length of a mark's name.
MAX_NAME = 255
#: The number of jobs changed by one statement.
_BATCH = 500


@dataclass(frozen=True)
class DeadGroup:
    """Dead jobs with the same error and actor, without dismissed ones."""

    #: The class of the error; None for jobs without an error.
    error_type: str | None
    actor: str
    #: How many became dead within each window, by the window's milliseconds.
    counts: dict[int, int]
    #: The jid of the one sent last.
    jid: str
    #: When the last of them became dead.
    last_at: datetime
    #: The text of that job's error.
    message: str | None


def retries_lost(job: Any, now: int) -> tuple[int, datetime | None]:
    """Count the dead jobs with a lost retry that must be run again manually.

    Only jobs of the last week, among the newest dead jobs that are not dismissed.

    Returns:
      Their number, and when the first of them died.
    """
    newest = (
        job.select(
            job.dead_reason.alias("reason"),
            job.replayed_by.alias("again"),
            job.finished_at.alias("died"),
        )
        .where(*open_dead(job, now - DEFAULT_WINDOWS[-1]))
        .order_by(job.finished_at.desc())
        .limit(_LOOKED_AT)
    )
    lost = SQL("reason") == DeadReason.RETRY_LOST.value, SQL("again IS NULL")
    columns = [fn.COUNT(SQL("*")), fn.MIN(SQL("died"))]
    query = Select([newest.alias("newest")], columns).where(*lost)
    ((count, first),) = job._meta.database.execute(query)
    return int(count), None if first is None else instant_of(first)


def record(
    action: Any, what: str, *, who: str, jid: str | None, key: str | None, detail: str | None
) -> Any:
    """Record an action, and return the row."""
    database = action._meta.database
    number = action.insert(
        at=database_now(database),
        who=clean_optional(who) or "unknown",
        what=clean_optional(what, 32),
        jid=None if jid is None else fold_jid(jid),
        key=clean_optional(key),
        detail=None if detail is None else clean(detail, MAX_MESSAGE),
    ).execute()
    return action.get_by_id(number)


def mark(deploy: Any, name: str, *, at: int | None, who: str | None) -> Any:
    """Record a mark, and return the row."""
    number = deploy.insert(
        at=database_now(deploy._meta.database) if at is None else at,
        name=clean(name, MAX_NAME),
        who=clean_optional(who) or "unknown",
    ).execute()
    return deploy.get_by_id(number)


def dismiss(job: Any, jids: Sequence[str]) -> list[str]:
    """Dismiss those of *jids* that are dead and not dismissed yet; return their jids."""
    dismissed = []
    now = database_now(job._meta.database)
    for start in range(0, len(jids), _BATCH):
        some = job.jid.in_([fold_jid(jid) for jid in jids[start : start + _BATCH]])
        open_ones = some, job.state == State.DEAD, job.dismissed_at.is_null()
        found = [row.jid for row in job.select(job.jid).where(*open_ones).order_by(job.jid)]
        for jid in found:
            # One by one, so that of concurrent callers only one reports a job as dismissed.
            mine = job.jid == jid, job.state == State.DEAD, job.dismissed_at.is_null()
            if job.update(dismissed_at=now).where(*mine).execute():
                dismissed.append(jid)
    return dismissed


def unlock(lock: Any, key: str, slot: int, fence: int) -> Any:
    """Release a slot of a section if *fence* still holds it; return the row as it was, or None."""
    mine = (lock.kind == "section", lock.key == key, lock.slot == slot, lock.fence == fence)
    held = lock.get_or_none(*mine, lock.owner.is_null(False))
    freed = (
        lock.update(owner=None, token=None, process=None, expires_at=None)
        .where(*mine, lock.owner.is_null(False))
        .execute()
    )
    return held if freed else None


def dead_groups(job: Any, windows: Iterable[int], now: int) -> list[DeadGroup]:
    """Group dead jobs by error and actor, most recent death first."""
    windows = sorted(windows)
    counts = [fn.SUM(Case(None, [(job.finished_at >= now - window, 1)], 0)) for window in windows]
    last, newest = fn.MAX(job.finished_at), fn.MAX(job.id)
    groups = list(
        job.select(job.error_type, job.actor, last, newest, *counts)
        .where(*open_dead(job, now - windows[-1]))
        .group_by(job.error_type, job.actor)
        .order_by(SQL("3 DESC"), job.error_type, job.actor)
        .tuples()
    )
    rows: dict[int, Any] = {}
    for start in range(0, len(groups), _BATCH):
        numbers = [group[3] for group in groups[start : start + _BATCH]]
        some = job.select(job.id, job.jid, job.error_message).where(job.id.in_(numbers))
        rows |= {row.id: row for row in some}
    return [
        DeadGroup(
            error_type=error_type,
            actor=actor,
            counts={w: int(n) for w, n in zip(windows, numbers, strict=True)},
            jid=rows[number].jid,
            last_at=last if isinstance(last, datetime) else instant_of(last),
            message=rows[number].error_message,
        )
        for error_type, actor, last, number, *numbers in groups
        # A job may have been deleted in between.
        if number in rows
    ]


@dataclass(frozen=True)
class DeadMessage:
    """Dead jobs with error messages that differ only in numbers, ids and quoted text."""

    #: The message, with ``*`` in place of what differs; usable in a search.
    pattern: str
    #: The number of jobs with it among those checked.
    count: int


#: The parts that differ between messages of the same kind, in order of precedence.
_DIFFERS = re.compile(
    r"""(?x)
    "[^"\n]*" | '[^'\n]*' | \u201c[^\u201d\n]*\u201d
    | \b[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}\b
    | \b0x[0-9a-fA-F]+\b
    | \b(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{8,}\b
    | \d+(?:[.,:]\d+)*
    """
)


def pattern_of(message: str) -> str:
    """Return the common part of messages of the same kind, with ``*`` for what differs.

    Example:
      >>> pattern_of('feed 7 of "kiosk24" has no rows')
      'feed * of * has no rows'
    """
    line = message.strip().partition("\n")[0][:200]
    return re.sub(r"\*(?:[\s,;]*\*)+", "*", _DIFFERS.sub("*", line))


def dead_messages(
    job: Any, window: int, now: int, limit: int
) -> dict[tuple[str | None, str], list[DeadMessage]]:
    """Group the newest dead jobs of each error and actor by the pattern of their messages."""
    newest = (
        job.select(job.error_type, job.actor, job.error_message)
        .where(*open_dead(job, now - window))
        .order_by(job.finished_at.desc())
        .limit(limit)
    )
    found: dict[tuple[str | None, str], Counter[str]] = {}
    for error_type, actor, message in newest.tuples():
        found.setdefault((error_type, actor), Counter())[pattern_of(message or "")] += 1
    return {
        key: [DeadMessage(*pair) for pair in counts.most_common()] for key, counts in found.items()
    }


def dead_series(
    job: Any, window: int, step: int, now: int
) -> dict[tuple[str | None, str], list[int]]:
    """Count the dead jobs of each error and actor in each step of a window."""
    begin = (now - window) - (now - window) % step
    steps = -((begin - now) // step)
    rows = (
        job.select(job.error_type, job.actor, span_of(job.finished_at, step), fn.COUNT(SQL("*")))
        .where(*open_dead(job, now - window))
        .group_by(SQL("1, 2, 3"))
        .tuples()
    )
    series: dict[tuple[str | None, str], list[int]] = {}
    for error_type, actor, at, count in rows:
        numbers = series.setdefault((error_type, actor), [0] * steps)
        # Jobs that died after *now* belong to the last step.
        numbers[min(steps - 1, (int(at) - begin) // step)] += int(count)
    return series


def open_dead(job: Any, since: int) -> tuple[Any, ...]:
    """Return the conditions for undismissed dead jobs since an instant."""
    return (
        job.state.in_(literal_states([State.DEAD])),
        job.dismissed_at.is_null(),
        job.finished_at >= since,
    )
