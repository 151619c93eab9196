"""``diff`` and ``types``: what changed, and statistics of each job type."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from dramatiq_joblog.reading.compared import WHAT, amount, in_words, times
from dramatiq_joblog.reading.display import percent
from dramatiq_joblog.reading.search import instant
from dramatiq_joblog.states import State
from dramatiq_joblog.statistics.changes import Change, changes

from .app import NOTHING, Refusal, Session, at_most, command
from .style import QUIET, TITLE, aligned, colour, line, number
from .table import Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog import JobLog
    from dramatiq_joblog.statistics.series import Group, Stats

    from .table import Screen

#: How far back the period to compare with is, by name.
_BACK = {"yesterday": timedelta(days=1), "week": timedelta(weeks=1)}
#: The number of earlier periods to compare with, which shows how much they vary.
_TIMES = 2


@command(
    "diff",
    "Show what changed between two times.",
    examples=[
        ("diff yesterday", "the last 24 hours, compared with the 24 before"),
        ("diff week --since 3h", "the last three hours, compared with the same a week ago"),
        ("diff v412", "since a mark, compared with an equally long time before it"),
        ("diff 14:05", "since a time, compared with an equally long time before it"),
    ],
)
@click.argument("against", default="week", metavar="[yesterday|week|MARK|TIME]")
@click.option(
    "--since",
    default="24h",
    show_default=True,
    metavar="TIME",
    help="Start, with yesterday or week.",
)
@click.option("--until", metavar="TIME", help="End, in the same form; by default now.")
@at_most
def diff(session: Session, *, against: str, since: str, until: str | None, limit: int) -> None:
    """Show what changed: job types by count, failures, duration and queue time; errors.

    Compares with the same hours a week ago (the default) or yesterday, or the time since a mark or
    an instant with as long before it; the biggest surprise comes first. Exits with 1
    if there is nothing to compare with.

    In a pipe: kind, name, actor, before, now, factor. If --limit leaves changes out, standard
    error says how many; --json has them all.
    """
    joblog, screen = session.joblog, session.screen
    begin, end, shifts = _periods(joblog, against, since, until)
    now = joblog.stats(since=begin, until=end, by="name")
    earlier = [joblog.stats(since=begin - s, until=end - s, by="name") for s in shifts]
    before = [stats for stats in earlier if stats.groups]
    found = changes(now, before) if before else []
    if session.json:
        screen.json(
            {
                "since": begin.isoformat(),
                "until": end.isoformat(),
                "against": [(begin - shifts[0]).isoformat(), (end - shifts[0]).isoformat()],
                "compared": bool(before),
                "changes": [asdict(change) for change in found],
            }
        )
    elif before:
        _show_changes(
            screen,
            found[:limit],
            _spelled(begin, end),
            _spelled(begin - shifts[0], end - shifts[0]),
        )
        if len(found) > limit:
            session.remark(f"{number(len(found) - limit)} more; see --limit")
    if not before:
        if not session.json:
            click.echo(
                "there is nothing to compare with: no job ended in the earlier period", err=True
            )
        raise click.exceptions.Exit(NOTHING)


def _periods(
    joblog: JobLog, against: str, since: str, until: str | None
) -> tuple[datetime, datetime, list[timedelta]]:
    """Return the start and end of the period, and how far back the earlier ones are."""
    now = joblog.now()
    end = now if until is None else instant(until, now)
    if against in _BACK:
        begin = instant(since, now)
        if begin >= end:
            raise Refusal(f"--since {since} is not before --until {until or 'now'}")
        # For a period longer than a day, the days before it.
        back = _BACK[against] * max(1, -((begin - end) // _BACK[against]))
        return begin, end, [back * (number_ + 1) for number_ in range(_TIMES)]
    begin = _moment(joblog, against, now)
    if begin >= end:
        raise Refusal(f"{against!r} is not before {until or 'now'}: nothing has passed since")
    return begin, end, [(end - begin) * (number_ + 1) for number_ in range(_TIMES)]


def _moment(joblog: JobLog, text: str, now: datetime) -> datetime:
    """Return the time of a mark, or the time that a text names."""
    mark = joblog.marks.where(joblog.Deploy.name == text).first()
    if mark is not None:
        at: datetime = mark.at
        return at
    return instant(text, now)


def _spelled(begin: datetime, end: datetime) -> str:
    form = (
        "%H:%M"
        if end - begin <= timedelta(days=1) and begin.date() == end.date()
        else "%d %b %H:%M"
    )
    return f"{begin:%d %b %H:%M} to {end:{form}} UTC"


def _show_changes(screen: Screen, found: Sequence[Change], now: str, before: str) -> None:
    if screen.live:
        screen.write(("What changed", TITLE), (f"  {now}", QUIET))
        screen.write((f"against {before}", QUIET))
        screen.write()
    if not found:
        if screen.live:
            screen.write("All is as usual.")
        return
    screen.table(
        [
            Column("What", lambda c: WHAT[c.kind], lambda c: c.kind, keep=8),
            Column("Name", _name, lambda c: c.name, keep=9, least=14),
            Column("Actor", lambda c: line(c.actor), keep=4, least=8),
            Column("Before", lambda c: amount(c, c.before), lambda c: c.before, keep=6, right=True),
            Column("Now", lambda c: amount(c, c.now), lambda c: c.now, keep=7, right=True),
            Column("Factor", _factor, lambda c: c.factor, keep=5, right=True),
        ],
        found,
    )


def _name(change: Change) -> Text:
    return Text(line(change.name or "no error"), colour(State.DEAD) if change.is_worse else "")


def _factor(change: Change) -> str:
    if not change.factor:
        return "silent" if change.kind == "silent" else "new"
    return times(change.factor) if change.factor >= 1 else f"÷ {1 / change.factor:.1f}"


@command(
    "types",
    "Compare each job type with a week ago.",
    examples=[
        ("types", "the last 24 hours, the biggest change first"),
        ("types --since 1h", "the last hour"),
    ],
)
@click.option(
    "--since", default="24h", show_default=True, metavar="TIME", help="Start: 1h, 2d ago."
)
@click.option("--until", metavar="TIME", help="End, in the same form; by default now.")
def types(session: Session, *, since: str, until: str | None) -> None:
    """Show each job type: how many jobs ended, how many runs failed, how long they took.

    The type that has worsened most since the same hours of last week comes first. Jobs without a
    type are listed by their actor's name.
    """
    joblog = session.joblog
    begin, end, shifts = _periods(joblog, "week", since, until)
    now = joblog.stats(since=begin, until=end, by="name")
    earlier = [joblog.stats(since=begin - s, until=end - s, by="name") for s in shifts]
    before = [stats for stats in earlier if stats.groups]
    rows = _types(now, before)
    columns: list[Column[_Type]] = [
        Column("Job type", lambda r: line(r.name or "none"), keep=20, least=14),
        Column("Ended", lambda r: number(r.ended), lambda r: r.ended, keep=15, right=True),
        Column("Failed", _failed, lambda r: r.failed, keep=17, right=True),
        Column("p50", lambda r: aligned(r.p50), lambda r: r.p50, keep=14, right=True),
        Column("p95", lambda r: aligned(r.p95), lambda r: r.p95, keep=18, right=True),
        Column("Was", lambda r: aligned(r.was), lambda r: r.was, keep=13, right=True),
        Column("Against last week", _said, lambda r: r.said, keep=16, least=20),
    ]
    session.show(rows, columns, nothing="no job ended in this time")


class _Type:
    """One row of the list of job types."""

    def __init__(
        self, name: str, group: Group | None, was: Group | None, changed: Sequence[Change]
    ) -> None:
        self.name = name
        counts = {} if group is None else group.counts
        self.ended = sum(counts.get(outcome, 0) for outcome in ("finished", "dead", "skipped"))
        failed = counts.get("dead", 0) + counts.get("retried", 0)
        ran = counts.get("finished", 0) + failed
        #: The share of its runs that failed; None if none ended.
        self.failed = failed / ran if ran else None
        self.p50 = None if group is None else group.duration.p50
        self.p95 = None if group is None else group.duration.p95
        self.was = None if was is None else was.duration.p95
        worse = [change for change in changed if change.is_worse]
        some = (worse or changed)[:2]
        self.said = "; ".join(", ".join(filter(None, in_words(change))) for change in some)
        self.is_worse = bool(worse)
        self.surprise = max((change.surprise for change in worse), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a dict for JSON."""
        return {key: value for key, value in vars(self).items() if key != "surprise"}


def _types(now: Stats, before: Sequence[Stats]) -> list[_Type]:
    groups = {group.name: group for group in now.groups}
    was = {group.name: group for group in before[0].groups} if before else {}
    changed: dict[str, list[Change]] = {}
    for change in changes(now, before) if before else ():
        if change.kind != "error":
            changed.setdefault(change.name, []).append(change)
    rows = [
        _Type(name, groups.get(name), was.get(name), changed.get(name, ()))
        for name in dict.fromkeys([*groups, *changed])
    ]
    return sorted(rows, key=lambda row: (-row.surprise, -row.ended, row.name))


def _failed(row: _Type) -> Text:
    if row.failed is None:
        return Text()
    return Text(percent(row.failed), colour(State.DEAD) if row.failed else QUIET)


def _said(row: _Type) -> Text:
    text = Text(line(row.said or "as usual"), "" if row.said else QUIET)
    if row.is_worse:
        text.stylize(colour(State.DEAD))
    return text
