"""The first line of every page: the problems, or that all is well."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from dramatiq_joblog.reading.display import number
from dramatiq_joblog.schema.query import word
from dramatiq_joblog.states import ProblemKind, State

from .formats import rough

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, tzinfo

    from dramatiq_joblog.admin.problem import Problem

    from .access import Access
    from .links import Links

#: The maximum number of problems shown in full, and named on one line.
MOST, NAMED = 7, 3

#: The shape of each kind, and the job state whose colour it has.
_LOOKS = {
    ProblemKind.LOST: ("lost", "lost"),
    ProblemKind.RETRIES_LOST: ("dead", "dead"),
    ProblemKind.MISSED: ("delayed", "delayed"),
    ProblemKind.NEW_ERROR: ("dead", "dead"),
    ProblemKind.RISING_ERROR: ("dead", "dead"),
    ProblemKind.FAILING: ("dead", "dead"),
    ProblemKind.QUEUES: ("enqueued", "enqueued"),
    ProblemKind.THREADS: ("started", "started"),
    ProblemKind.OVERDUE: ("delayed", "delayed"),
    ProblemKind.SECTIONS: ("lock", "waiting"),
    ProblemKind.SLOWER: ("retrying", "retrying"),
}
#: The action that runs their jobs again; lost ones are cancelled first.
_AGAIN = {ProblemKind.LOST: "rerun", ProblemKind.RETRIES_LOST: "requeue"}
#: The pages for problems that no search finds.
_PAGES = {ProblemKind.CLOCK: "workers", ProblemKind.SECTIONS: "locks"}


class Reader(Protocol):
    """The part of a :class:`Visit` that a verdict is worded for."""

    access: Access
    link: Links
    now: datetime
    zone: tzinfo


@dataclass(frozen=True)
class Line:
    """A problem, as the page shows it."""

    title: str
    #: The rest of its sentence.
    rest: str
    cure: str
    #: The link to its jobs; empty if there is none.
    href: str
    icon: str
    state: str
    since: datetime
    age: str
    #: The action against it: its name, text and link.
    button: tuple[str, str, str] | None
    #: The link to mute or unmute it.
    mute: str
    #: Who muted it, until when and why; empty if it is not muted.
    muted: str


@dataclass(frozen=True)
class Verdict:
    """The first line of a page."""

    #: The number of things that need attention.
    count: int
    #: The first problems.
    lines: list[Line]
    #: The muted problems.
    muted: list[Line]

    @property
    def heading(self) -> str:
        """The summary: ``3 things need attention``."""
        if not self.count:
            return "All is well"
        return (
            f"{self.count} thing{'s' * (self.count != 1)} need{'s' * (self.count == 1)} attention"
        )

    @property
    def more(self) -> int:
        """How many are not shown."""
        return self.count - len(self.lines)


def verdict_of(problems: Sequence[Problem], reader: Reader) -> Verdict:
    """Return the verdict on problems."""
    active = [problem for problem in problems if problem.muted is None]
    muted = [problem for problem in problems if problem.muted is not None]
    lines = [_line(problem, reader) for problem in active[:MOST]]
    return Verdict(len(active), lines, [_line(problem, reader) for problem in muted[:MOST]])


def flags_of(problems: Sequence[Problem]) -> dict[str, str]:
    """Return which errors are new or rising, by ``error in actor``, worded like the first line."""
    names = {ProblemKind.NEW_ERROR: "new", ProblemKind.RISING_ERROR: "rising"}
    return {one.subject: names[one.kind] for one in problems if one.kind in names}


def _line(problem: Problem, reader: Reader) -> Line:
    link = reader.link
    icon, state = _LOOKS.get(problem.kind, ("warn", "dead"))
    age = max(0.0, (reader.now - problem.since) / timedelta(milliseconds=1))
    what = "mute" if problem.muted is None else "unmute"
    which = {"kind": problem.kind.value, "subject": problem.subject}
    return Line(
        title=problem.title,
        rest=problem.text[len(problem.title) :],
        cure=problem.cure,
        href=_href(problem, link),
        icon=icon,
        state=state,
        since=problem.since,
        # The age of a problem that was just found is unknown.
        age=rough(age) if age >= 1_000 else "",
        button=_button(problem, link),
        mute=""
        if problem.kind is ProblemKind.DATABASE
        else link("confirm", what=what, **which, back=link.back),
        muted="" if problem.muted is None else muted_by(problem.muted, reader),
    )


def muted_by(row: Any, reader: Reader) -> str:
    """Return a text with who muted a problem, until when and why."""
    until = f"{row.until.astimezone(reader.zone):%a %d %b, %H:%M}"
    # The reason may contain what the rest of the sentence hides.
    why = f": {row.reason}" if reader.access.sees_arguments else ""
    return f"muted by {row.who} until {until}{why}"


def _button(problem: Problem, link: Links) -> tuple[str, str, str] | None:
    """Return the action that runs a problem's jobs again, if that is its cure."""
    what = _AGAIN.get(problem.kind)
    if what is None or not problem.search or word("state", State.STARTED) in problem.search:
        return None
    one = "it" if problem.count == 1 else f"the {number(problem.count)}"
    href = link("confirm", what=what, q=problem.search, back=link.back)
    return "requeue", f"Run {one} again", href


def _href(problem: Problem, link: Links) -> str:
    if page := _PAGES.get(problem.kind):
        return link(page)
    return link("jobs", q=problem.search) if problem.search else ""


def summary(stats: Any, time: str) -> str:
    """Return the summary of a log without problems, for a period such as ``the last 24 h``."""
    if stats is None:
        return "No job is lost, overdue or stuck, and no error is new."
    ended = {name: stats.counts.get(name, 0) for name in ("finished", "skipped", "dead")}
    if not any(ended.values()):
        return f"No job ended in {time}."
    parts = [f"{ended['finished']:,} job{'s' * (ended['finished'] != 1)} finished"]
    if ended["skipped"]:
        parts.append(f"{ended['skipped']:,} were skipped")
    parts.append(f"{ended['dead']:,} died" if ended["dead"] else "none died")
    return f"{', '.join(parts)} in {time}."
