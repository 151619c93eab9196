"""What an action applies to: jobs that a search finds, and problems."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.states import CANCELLABLE, State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from .context import Visit

#: The maximum number of jobs in one action.
MOST = 1000
#: Seconds to spend on a search for matching jobs.
LOOK_FOR = 10.0
#: The actions, and the states of the jobs that each applies to.
STATES = {
    "requeue": (State.DEAD, State.FINISHED, State.SKIPPED),
    "dismiss": (State.DEAD,),
    "cancel": CANCELLABLE,
    "rerun": (State.LOST,),
    "now": (State.DELAYED, State.RETRYING),
}
#: The durations for which a problem can be muted, in milliseconds.
SPANS = {
    "1h": ("1 hour", 3_600_000),
    "8h": ("8 hours", 28_800_000),
    "1d": ("1 day", 86_400_000),
    "3d": ("3 days", 259_200_000),
    "7d": ("7 days", 604_800_000),
    "30d": ("30 days", 2_592_000_000),
}
#: The actions that cancel jobs and send them again.
ANEW = frozenset({"rerun", "now"})


def as_json(value: Any) -> str:
    """Return an argument as JSON; empty if it has no such form."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        # A default value.
        return ""


@dataclass
class Matching:
    """The jobs that match searches."""

    #: The newest of them, at most :data:`MOST`.
    jobs: list[Any]
    #: How far back the search got, if there was no time for all.
    looked_back_to: datetime | None = None


def jobs_matching(visit: Visit, what: str, words: Iterable[str]) -> Matching:
    """Return the jobs that match any search and that the action applies to, newest first."""
    until = time.monotonic() + LOOK_FOR
    found: dict[str, Any] = {}
    bound: datetime | None = None
    for text in words:
        query = visit.search(text).in_state(*STATES[what])
        page = query.page(limit=MOST)
        found.update((job.jid, job) for job in page.jobs)
        # Without an index, a page has only the matches among a bounded number of jobs.
        while page.looked_back_to is not None and len(found) < MOST:
            if time.monotonic() > until:
                bound = max(filter(None, (bound, page.looked_back_to)))
                break
            page = query.page(limit=MOST, before=page.older)
            found.update((job.jid, job) for job in page.jobs)
    return Matching(list(found.values())[:MOST], bound)


def problem_of(visit: Visit, kind: Any, subject: Any) -> Any:
    """Return a current problem; None if it no longer exists."""
    found = visit.joblog.problems(timeout=visit.site.timeout, muted=True)
    return next((p for p in found if (p.kind.value, p.subject) == (kind, subject)), None)


def mute_of(visit: Visit, kind: Any, subject: Any) -> Any:
    """Return the mute of a problem, which may itself be gone; None if it is not muted."""
    which = kind, fold_jid(str(subject or ""))
    return next((m for m in visit.joblog.mutes if (m.kind, m.subject) == which), None)


def int_of(value: Any) -> int:
    """Return a number from a form or an address; -1 if it is none."""
    text = str(value or "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
