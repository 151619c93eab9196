"""One problem, with its cure, and the words that all problems share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.states import ProblemKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dramatiq_joblog.schema.models import Mute

#: As many names are said.
NAMED = 5
#: Characters of a name in a sentence.
LONGEST = 60


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong now, and what to do about it."""

    #: What kind of thing.
    kind: ProblemKind
    #: Which one of its kind, such as a queue or an error; the same as long as the problem lasts.
    subject: str
    #: Since when, in UTC.
    since: datetime
    #: The number of jobs; or of other things, if it is not about jobs.
    count: int
    #: The first words of the text, as a title.
    title: str
    #: The problem, in one sentence.
    text: str
    #: What to do about it.
    cure: str
    #: The words of a search that finds the jobs; empty if it is not about jobs.
    search: str = ""
    #: Who muted it, until when and why; None if nobody did.
    muted: Mute | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        since = self.since.astimezone(timezone.utc).isoformat(timespec="milliseconds")
        return {
            "kind": self.kind.value,
            "subject": self.subject,
            "since": since.replace("+00:00", "Z"),
            "count": self.count,
            "title": self.title,
            "text": self.text,
            "cure": self.cure,
            "search": self.search,
            "muted": None if self.muted is None else self.muted.as_dict(),
        }


def seen(  # noqa: PLR0917 - in the order of the fields
    kind: ProblemKind,
    subject: str,
    since: datetime,
    count: int,
    title: str,
    rest: str,
    cure: str,
    search: str = "",
) -> Problem:
    """Return a problem whose sentence is *title* and *rest*."""
    return Problem(kind, subject, since, count, title, title + rest, cure, search)


@dataclass(frozen=True)
class Look:
    """One thing that was looked at, and what is wrong with it."""

    #: What was looked at, as ``clock``; the same each time.
    name: str
    #: What is said if nothing is wrong, in one sentence.
    well: str
    #: What is wrong.
    problems: tuple[Problem, ...] = ()
    #: Why it cannot be known; empty if it is.
    unknown: str = ""


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Return problems in the order in which people should care: by kind, then the oldest first."""
    rank = {kind: place for place, kind in enumerate(ProblemKind)}
    return sorted(problems, key=lambda p: (rank[p.kind], p.since, p.subject))


def jobs(number: int) -> str:
    """Return ``1 job`` or ``3 jobs``."""
    return plural(number, "job")


def plural(number: int, thing: str) -> str:
    """Return a number of things."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def said(instant: datetime) -> str:
    """Return an instant as sentences have it: without its date if that is today's."""
    utc = instant.astimezone(timezone.utc)
    today = utc.date() == datetime.now(timezone.utc).date()
    return f"{utc:%H:%M} UTC" if today else f"{utc:%Y-%m-%d %H:%M} UTC"


def cut(name: str) -> str:
    """Return a name that is short enough for a sentence."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def quoted(name: str) -> str:
    """Return a name in quotes."""
    return repr(cut(name))


def names(texts: Iterable[str]) -> str:
    """Return texts in quotes: the first of them, and how many more there are."""
    known = list(dict.fromkeys(texts))
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return ", ".join(map(quoted, known[:NAMED])) + more
