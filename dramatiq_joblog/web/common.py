"""What several pages need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dramatiq_joblog.errors import SearchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .context import Visit
    from .periods import Period

#: Rows of each kind that a page counts itself, where no worker has counted them yet.
COUNTED_AT_MOST = 10_000
#: So many changes are marked at most, the last ones.
MARKS = 40
#: Rows on one page.
PER_PAGE = 50

#: What the overview and the dead can be seen over, in milliseconds.
RANGES = {
    "1h": 3_600_000,
    "3h": 10_800_000,
    "24h": 86_400_000,
    "3d": 259_200_000,
    "7d": 604_800_000,
    "30d": 2_592_000_000,
    "90d": 7_776_000_000,
}
DEFAULT_RANGE = "24h"


def chosen(fields: Mapping[str, Any], name: str, options: dict[str, int]) -> str:
    """Return which of some ranges an address or a form names.

    Raises:
      SearchError: If it is none of them.
    """
    given = str(fields.get(name, DEFAULT_RANGE))
    if given not in options:
        raise SearchError(f"{name}={given!r} is not offered: use one of {', '.join(options)}")
    return given


def marks_in(visit: Visit, period: Period) -> list[Any]:
    """Return the moments that something changed in a time, the newest first."""
    deploy = visit.joblog.Deploy
    within = deploy.at >= period.since, deploy.at <= period.end
    return visit.rows("the marks", lambda: visit.joblog.marks.where(*within).limit(MARKS))


def waiters(visit: Visit, key: str) -> list[Any]:
    """Return the jobs that wait for a section, the one that is next first."""
    line = visit.joblog.waiters(key).limit(PER_PAGE)
    return visit.rows(f"the line for {key}", lambda: line)


def lines(visit: Visit, keys: Iterable[str]) -> dict[str, list[Any]]:
    """Return the jobs that wait for some sections, the one that is next first."""
    none: dict[str, list[Any]] = {}
    found = visit.part("who waits", lambda: visit.joblog.waiters_by_key(keys, limit=PER_PAGE), none)
    return {key: [visit.seen(job) for job in line] for key, line in found.items()}


def deed(row: Any) -> dict[str, Any]:
    """Say what a person did, as lists of actions do."""
    verbs = {
        "cancel": "cancelled",
        "dismiss": "dismissed",
        "mute": "muted a problem",
        "unmute": "unmuted a problem",
        "requeue": "ran again",
        "ticket": "made a link for a ticket",
        "unlock": "unlocked",
    }
    return {
        "at": row.at,
        "who": row.who or "someone",
        "verb": verbs.get(row.what, str(row.what)),
        "jid": row.jid if row.what != "unlock" else None,
        # Of a link the digest is kept, which nobody can read.
        "key": row.key if row.what != "ticket" else None,
        "detail": row.detail,
    }
