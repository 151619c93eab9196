"""One problem, with its cure, and helpers for the texts of problems."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.payload.values import iso_text
from dramatiq_joblog.states import ProblemKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dramatiq_joblog.schema.models import Mute

#: The maximum number of names in a sentence.
NAMED = 5
#: The maximum length of a name in a sentence.
LONGEST = 60


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong now, and what to do about it."""

    #: The kind of problem.
    kind: ProblemKind
    #: Its subject, such as a queue or an error; the same for as long as the problem lasts.
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
    #: Who muted it, until when and why; None if it is not muted.
    muted: Mute | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as a dictionary for JSON."""
        return {
            "kind": self.kind.value,
            "subject": self.subject,
            "since": iso_text(self.since),
            "count": self.count,
            "title": self.title,
            "text": self.text,
            "cure": self.cure,
            "search": self.search,
            "muted": None if self.muted is None else self.muted.as_dict(),
        }


def seen(
    kind: ProblemKind,
    subject: str,
    *,
    since: datetime,
    count: int,
    title: str,
    rest: str,
    cure: str,
    search: str = "",
) -> Problem:
    """Return a problem with the text *title* and *rest*."""
    return Problem(kind, subject, since, count, title, title + rest, cure, search)


@dataclass(frozen=True)
class Look:
    """One check, and the problems that it found."""

    #: The name of the check, such as ``clock``; stable.
    name: str
    #: The text if nothing is wrong, in one sentence.
    well: str
    #: The problems found.
    problems: tuple[Problem, ...] = ()
    #: Why the check could not be made; empty if it could.
    unknown: str = ""


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Return problems in order of urgency: by kind, then oldest first."""
    rank = {kind: place for place, kind in enumerate(ProblemKind)}
    return sorted(problems, key=lambda p: (rank[p.kind], p.since, p.subject))


def jobs(number: int) -> str:
    """Return ``1 job`` or ``3 jobs``."""
    return plural(number, "job")


def plural(number: int, thing: str) -> str:
    """Return a number with a noun in the singular or plural."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def said(instant: datetime) -> str:
    """Format an instant for a sentence: without the date if it is today."""
    utc = instant.astimezone(timezone.utc)
    today = utc.date() == datetime.now(timezone.utc).date()
    return f"{utc:%H:%M} UTC" if today else f"{utc:%Y-%m-%d %H:%M} UTC"


def cut(name: str) -> str:
    """Shorten a name for a sentence."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def quoted(name: str) -> str:
    """Return a name in quotes."""
    return repr(cut(name))


def names(texts: Iterable[str]) -> str:
    """Return the first texts in quotes, and how many more there are."""
    known = list(dict.fromkeys(texts))
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return ", ".join(map(quoted, known[:NAMED])) + more
