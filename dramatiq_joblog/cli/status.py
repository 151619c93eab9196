"""``status``: what needs attention."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click
from rich.text import Text

from dramatiq_joblog.admin.problem import said as said_at
from dramatiq_joblog.reading.display import shell_word
from dramatiq_joblog.states import ProblemKind, State

from .app import AWAY, NOTHING, Session, command
from .style import QUIET, TITLE, age, colour, line, mark, number, shape

if TYPE_CHECKING:
    from dramatiq_joblog import JobLog, Problem

    from .table import Screen

#: For each kind of problem, the state whose shape and colour it gets.
_LOOKS = {
    ProblemKind.LOST: State.LOST,
    ProblemKind.QUEUES: State.ENQUEUED,
    ProblemKind.THREADS: State.STARTED,
    ProblemKind.OVERDUE: State.DELAYED,
    ProblemKind.SECTIONS: State.WAITING,
    ProblemKind.SLOWER: State.RETRYING,
}
#: Cells before the sentence: a shape and a space.
_INDENT = 2


@command(
    "status",
    "Show what needs attention; exit 1 if anything does.",
    examples=[
        ("status", "every problem, with its cure"),
        ("status > /dev/null", "for scripts: exit code 1 if there is a problem"),
        ("status --json | jq '.problems[].kind'", "for programs"),
    ],
)
def status(session: Session) -> None:
    """Show what needs attention, with its kind, the cure and a search for the jobs.

    Exits with 1 if there is a problem, and with 3 if the log's database does not respond. In a
    pipe: kind, since, count, sentence, search. Muted problems (see mute) do not count.
    """
    joblog, screen = session.joblog, session.screen
    known = joblog.problems(muted=True)
    problems = [problem for problem in known if problem.muted is None]
    muted = [problem for problem in known if problem.muted is not None]
    if session.json:
        screen.json(
            {
                "well": not problems,
                "problems": [problem.as_dict() for problem in problems],
                "muted": [problem.as_dict() for problem in muted],
            }
        )
    elif not screen.live:
        for problem in problems:
            facts = problem.as_dict()
            cells = (facts[name] for name in ("kind", "since", "count", "text", "search"))
            screen.raw("\t".join(line(cell) or "-" for cell in cells))
    else:
        _show(screen, joblog, problems)
        _quiet(screen, muted)
    if any((p.kind, p.subject) == (ProblemKind.DATABASE, "connection") for p in problems):
        raise click.exceptions.Exit(AWAY)
    if problems:
        raise click.exceptions.Exit(NOTHING)


def _show(screen: Screen, joblog: JobLog, problems: list[Problem]) -> None:
    if not problems:
        screen.write(shape(State.FINISHED), (" All is well", TITLE))
        _counted(screen, joblog)
        return
    count = len(problems)
    things = f"{count} thing{'s' * (count != 1)} need{'s' * (count == 1)} attention"
    screen.write((things, TITLE))
    now = datetime.now(timezone.utc)
    for problem in problems:
        _problem(screen, problem, now)


def _problem(screen: Screen, problem: Problem, now: datetime) -> None:
    state = _LOOKS.get(problem.kind, State.DEAD)
    title, rest = line(problem.title), line(problem.text)[len(line(problem.title)) :]
    screen.write()
    since = age(problem.since, now)
    # Not after the command, which people copy.
    kind = problem.kind.value
    seen = (f" ({kind})" if since == "0 s" else f" ({kind}, {since})", QUIET)
    text = Text.assemble(shape(state), " ", (title, f"{TITLE} {colour(state)}"), rest, seen)
    screen.hanging(text, _INDENT)
    screen.paragraph(Text(line(problem.cure), QUIET), _INDENT)
    if problem.search:
        search = shell_word(problem.search, spaces=True)
        words = Text.assemble(("dramatiq-joblog list ", QUIET), search)
        screen.paragraph(words, _INDENT)


def _quiet(screen: Screen, muted: list[Problem]) -> None:
    """Say what was muted."""
    if muted:
        screen.write()
    for problem in muted:
        row = problem.muted
        if row is not None:
            said = f"{line(problem.title)}: muted by {line(row.who)} until {said_at(row.until)}, "
            screen.hanging(Text(f"\u2013 {said}{line(row.reason)}", QUIET), _INDENT)


def _counted(screen: Screen, joblog: JobLog) -> None:
    """Return the number of jobs as a text."""
    counts = joblog.counts()
    text = Text()
    for state, count in counts.items():
        if count:
            text.append_text(mark(state)).append(f" {number(count, capped=count.capped)}   ")
    text.rstrip()
    screen.fit(text or Text("There is no job yet.", QUIET))
