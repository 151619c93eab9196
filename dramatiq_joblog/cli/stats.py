"""``stats``: counts, durations, failures, and waiting jobs."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from dramatiq_joblog.payload.values import iso_text
from dramatiq_joblog.reading.search import instant
from dramatiq_joblog.states import State
from dramatiq_joblog.statistics.series import GROUPED_BY

from .app import Session, command
from .cells import SHORT_JID, kind
from .confirm import progress
from .style import QUIET, aligned, colour, line, mark, number
from .table import Column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dramatiq_joblog.joblog import JobLog
    from dramatiq_joblog.statistics.series import ErrorCount, Group, GroupedBy, Stats

    from .table import Screen

#: The states, in the columns in which they are shown.
_GRID = (
    (State.ENQUEUED, State.STARTED, State.FINISHED),
    (State.DELAYED, State.RETRYING, State.DEAD),
    (State.WAITING, State.LOST, State.SKIPPED),
)
#: The outcomes that are drawn over time, and their labels.
_DRAWN = {"finished": "finished", "skipped": "skipped", "retried": "retried", "dead": "dead"}
_SPARKS = "▁▂▃▄▅▆▇█"
#: Cells of a chart line, of that of an error, and the most errors that are shown.
_CELLS, _FEW, _ERRORS = 48, 24, 10


@command(
    "stats",
    "Show counts, durations and failures.",
    examples=[
        ("stats", "the last 24 hours"),
        ("stats --since 1h", "the last hour"),
        ("stats --since 2026-11-01 --until 2026-11-08 --by actor", "a week, by actor"),
        ("stats --json | jq .counts.dead.count", "for programs"),
    ],
)
@click.option(
    "--by",
    type=click.Choice(GROUPED_BY),
    default="job_type",
    show_default=True,
    help="How to group the figures.",
)
@click.option(
    "--since",
    default="24h",
    show_default=True,
    metavar="TIME",
    help="Start: 1h, 2d ago, or a date.",
)
@click.option("--until", metavar="TIME", help="End, in the same form; by default now.")
def stats(session: Session, *, by: GroupedBy, since: str, until: str | None) -> None:
    """Show how many jobs there are, how long they take, what fails and what waits.

    Jobs by state are counted up to 10 000 of each. Figures over time include jobs that were
    pruned.
    """
    joblog = session.joblog
    begin, end = instant(since), None if until is None else instant(until)
    with _while_counting(joblog):
        figures = joblog.stats(since=begin, until=end, by=by)
    counts, oldest = joblog.counts(), joblog.oldest()
    if session.json:
        session.screen.json(_document(figures, counts, oldest))
        return
    screen = session.screen
    now = datetime.now(timezone.utc)
    screen.write(("Jobs", "bold"))
    _states(screen, counts)
    _throughput(screen, figures)
    _groups(screen, figures.groups, by)
    _errors(screen, figures.errors)
    if oldest:
        screen.title("Oldest waiting")
        screen.table(
            [
                Column("Job", lambda j: j.jid[:SHORT_JID], lambda j: j.jid, keep=9),
                Column(
                    "For",
                    lambda j: aligned(_waits(j, now)),
                    lambda j: _waits(j, now),
                    keep=10,
                    right=True,
                ),
                Column("State", lambda j: mark(j.state), lambda j: str(j.state), keep=8),
                Column("Type", lambda j: line(kind(j)), keep=7, least=12),
                Column("Queue", lambda j: line(j.queue), keep=6, least=8),
            ],
            oldest,
        )


def _while_counting(joblog: JobLog) -> contextlib.AbstractContextManager[Any]:
    """Show progress, because counting from jobs, without totals, may take long."""
    if joblog.core.totals.counted() is not None:
        return contextlib.nullcontext()
    return progress("Counting the jobs, as no worker has done so yet")


def _waits(job: Any, now: datetime) -> int:
    since: datetime = job.enqueued_at or job.created_at
    return max(0, round((now - since).total_seconds() * 1000))


def _states(screen: Screen, counts: Mapping[State, Any]) -> None:
    for row in _GRID:
        text = Text()
        for state in row:
            name = mark(state)
            name.pad_right(12 - len(name))
            count = number(counts[state], capped=counts[state].capped)
            style = QUIET if not counts[state] else ""
            text.append_text(name).append(f"{count:>8}    ", style)
        text.rstrip()
        screen.fit(text)


def _throughput(screen: Screen, figures: Stats) -> None:
    counts = figures.counts
    screen.title("Ended", f"{figures.since:%Y-%m-%d %H:%M} to {figures.until:%Y-%m-%d %H:%M} UTC")
    for outcome in _DRAWN:
        series = figures.series[outcome]
        name = mark(outcome)
        name.pad_right(12 - len(name))
        total = (f"{number(counts[outcome]):>8}  ", "" if counts[outcome] else QUIET)
        screen.write(name, total, _sparks(series, colour(outcome)))


def _sparks(series: Sequence[int], style: str, width: int = _CELLS) -> Text:
    """Draw numbers over time, each relative to the greatest; a dot for zero."""
    width = min(width, len(series))
    cells = [0] * width
    for i, count in enumerate(series):
        cells[i * width // len(series)] += count
    most = max(cells, default=0)
    top = len(_SPARKS) - 1
    drawn = Text()
    for count in cells:
        # Round up, so that anything above zero is visible.
        drawn.append(_SPARKS[-(-count * top // most)] if count else "·", style if count else QUIET)
    return drawn


def _groups(screen: Screen, groups: Sequence[Group], by: str) -> None:
    if not groups:
        return
    screen.title("By type" if by == "job_type" else "By actor", "time in queue and of the last run")
    screen.table(
        [
            Column(by.removeprefix("job_").title(), lambda g: g.name or "none", keep=20, least=14),
            _counted("finished", "Finished", 19),
            _counted("dead", "Dead", 18),
            _counted("retried", "Retried", 15),
            _counted("skipped", "Skipped", 6),
            _percentile("queue_time", "p50", "Queue p50", 8),
            _percentile("queue_time", "p95", "p95", 7),
            _percentile("queue_time", "p99", "p99", 5),
            _percentile("duration", "p50", "Took p50", 16),
            _percentile("duration", "p95", "p95", 17),
            _percentile("duration", "p99", "p99", 14),
        ],
        groups,
    )


def _counted(outcome: str, title: str, keep: int) -> Column[Group]:
    def shown(group: Group) -> str:
        return number(group.counts[outcome]) if group.counts[outcome] else ""

    return Column(title, shown, lambda g: g.counts[outcome], keep=keep, right=True)


def _percentile(of: str, name: str, title: str, keep: int) -> Column[Group]:
    def value(group: Group) -> Any:
        return getattr(getattr(group, of), name)

    return Column(title, lambda g: aligned(value(g)), value, keep=keep, right=True)


def _errors(screen: Screen, errors: Sequence[ErrorCount]) -> None:
    if not errors:
        return
    more = len(errors) - _ERRORS
    screen.title("Failed runs by error", f"{number(more)} more not shown" if more > 0 else "")
    screen.table(
        [
            Column("Error", lambda e: line(e.error_type or "none"), keep=9, least=16),
            Column("Actor", lambda e: line(e.actor), keep=8, least=12),
            Column("Runs", lambda e: number(e.count), lambda e: e.count, keep=10, right=True),
            Column(
                "Over time",
                lambda e: _sparks(e.series, colour(State.DEAD), _FEW),
                keep=1,
                seen_only=True,
            ),
        ],
        errors[:_ERRORS],
    )


def _document(figures: Stats, counts: Mapping[State, Any], oldest: Sequence[Any]) -> dict[str, Any]:
    return {
        "counts": {
            str(state): {"count": int(count), "capped": count.capped}
            for state, count in counts.items()
        },
        "since": iso_text(figures.since),
        "until": iso_text(figures.until),
        "step": figures.step,
        "times": [iso_text(at) for at in figures.times],
        "series": figures.series,
        "groups": [
            {
                "name": group.name,
                "counts": group.counts,
                "queue_time": asdict(group.queue_time),
                "duration": asdict(group.duration),
            }
            for group in figures.groups
        ],
        "errors": [asdict(error) for error in figures.errors],
        "oldest": [job.as_dict() for job in oldest],
    }
