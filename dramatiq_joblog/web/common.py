"""Functions shared by several pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .context import Visit
    from .periods import Period

#: The maximum number of rows of each kind that a page counts, if they are not in the totals.
COUNTED_AT_MOST = 10_000
#: The maximum number of marks that are drawn, the last ones.
MARKS = 40
#: Rows on one page.
PER_PAGE = 50


def marks_in(visit: Visit, period: Period) -> list[Any]:
    """Return the marks of a period, newest first."""
    deploy = visit.joblog.Deploy
    within = deploy.at >= period.since, deploy.at <= period.end
    return visit.rows("the marks", lambda: visit.joblog.marks.where(*within).limit(MARKS))


def waiters(visit: Visit, key: str) -> list[Any]:
    """Return the jobs that wait for a section, the next one first."""
    line = visit.joblog.waiters(key).limit(PER_PAGE)
    return visit.rows(f"the line for {key}", lambda: line)


def lines(visit: Visit, keys: Iterable[str]) -> dict[str, list[Any]]:
    """Return the jobs that wait for each of some sections, the next one first."""
    none: dict[str, list[Any]] = {}
    found = visit.part("who waits", lambda: visit.joblog.waiters_by_key(keys, limit=PER_PAGE), none)
    return {key: [visit.visible.row(job) for job in line] for key, line in found.items()}


def deed(row: Any) -> dict[str, Any]:
    """Return a recorded action, as lists show it."""
    verbs = {
        "cancel": "cancelled",
        "delete_search": "deleted a saved search",
        "dismiss": "dismissed",
        "limit": "changed the limit of",
        "mute": "muted a problem",
        "prune": "pruned jobs",
        "unmute": "unmuted a problem",
        "requeue": "ran again",
        "save_search": "saved a search",
        "ticket": "made a link for a ticket",
        "unlock": "unlocked",
    }
    return {
        "at": row.at,
        "who": row.who or "someone",
        "verb": verbs.get(row.what, str(row.what)),
        "jid": row.jid if row.what != "unlock" else None,
        # The key of a ticket is a digest, which is unreadable.
        "key": row.key if row.what != "ticket" else None,
        "detail": row.detail,
    }
