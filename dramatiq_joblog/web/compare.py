"""What changed: a period compared with an earlier one, most surprising change first."""

from __future__ import annotations

import math
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.errors import SearchError
from dramatiq_joblog.reading.compared import WHAT, amount, times
from dramatiq_joblog.reading.display import number
from dramatiq_joblog.schema.query import user_field, word
from dramatiq_joblog.statistics.changes import SMALLEST, Change, changes
from dramatiq_joblog.statistics.series import Percentiles

from . import axes, commands
from .common import COUNTED_AT_MOST, marks_in
from .formats import plain_duration
from .periods import RANGES, WEEK, Period, moment, period_of
from .unusual import last_week

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.responses import Response

    from .context import Visit

#: The maximum number of changes shown, and of unchanged things.
MOST, USUAL = 40, 12
_DAY = 86_400_000
#: The largest factor that is drawn.
_MOST_FACTOR = 16.0
_HIGH = 120
#: The maximum age of a mark to compare with, in days, and its minimum age, in minutes.
_LONG_AGO, _JUST_NOW = 30, 5
#: Limits of counting users: errors, jobs per error, and milliseconds.
_MOST_ERRORS, _LOOKED_AT, _COUNTING = 8, 500, 40
#: A mark this long before the first run of an error may have caused it.
_SOON = timedelta(minutes=30)
#: The maximum length of its name that is shown.
_LONGEST = 20


def compare(visit: Visit) -> Response:
    """Respond with the changes since the same time of another day, or since the last mark."""
    last = _last_change(visit)
    period = period_of(visit)
    against = _against(visit, period, last)
    if against == "change":
        # The period before the mark is as long as the one since.
        period = Period("", last.at, None, visit.now, moment(last.at, visit.now, visit.zone))
    log, keep = visit.joblog, visit.site.keep
    back = {"yesterday": _DAY, "week": WEEK, "change": period.length}[against]

    def ask(since: Any, until: Any) -> Any:
        return log.stats(since=since, until=until, by="name", at_most=COUNTED_AT_MOST)

    now = visit.part(
        "the time",
        lambda: keep(
            f"stats {period.key}", lambda: ask(period.since, period.until), times=period.times
        ),
        None,
    )
    none: list[Any] = []
    before = visit.part(
        "the time before",
        lambda: keep(
            f"compared {against} {period.key}",
            lambda: [ask(*period.ago(n * back)) for n in (1, 2)],
            times=150,
        ),
        none,
    )
    visit.whole(now)
    # Do not compare with a period that is only partly known.
    before = [stats for stats in before if stats.groups and stats.known_since is None]
    found = changes(now, before) if now is not None and before else []
    if visit.wants_json:
        return visit.json({"against": against, "changes": [vars(change) for change in found]})
    facts = {
        "command": commands.compares(last.name if against == "change" else against, visit.query),
        "period": period,
        "ranges": list(RANGES),
        "against": against,
        "choices": _choices(visit, period, last),
        "now_text": moment(period.since, period.end, visit.zone),
        "was_text": moment(*period.ago(back), visit.zone),
        "rows": _rows(visit, found[:MOST], period, now),
        "more": max(0, len(found) - MOST),
        "usual": _usual(now, before, found),
        "chart": None if now is None else _chart(now, before, visit.zone),
        "compared": bool(before),
        "high": _HIGH,
    }
    return visit.page("compare.html", "What changed", facts, live=True, section="overview")


def _last_change(visit: Visit) -> Any:
    """Return the last mark, or None if it is too old."""
    since = visit.now - timedelta(days=_LONG_AGO), visit.now - timedelta(minutes=_JUST_NOW)
    marks = visit.joblog.marks.where(visit.joblog.Deploy.at.between(*since)).limit(1)
    return next(iter(visit.rows(None, lambda: marks)), None)


def _choices(visit: Visit, period: Period, last: Any) -> list[tuple[str, str]]:
    """Return the choices to compare with: pairs of a URL value and a text."""
    choices = [("yesterday", "the day before"), ("week", last_week(period, visit.zone))]
    if last is not None:
        name = last.name if len(last.name) <= _LONGEST else f"{last.name[: _LONGEST - 1]}\u2026"
        choices.append(("change", f"before {name}"))
    return choices


def _against(visit: Visit, period: Period, last: Any) -> str:
    given = visit.query.get("with", "week")
    if given not in {"week", "yesterday", "change"}:
        raise SearchError(f"with={given!r} is not offered: use week, yesterday or change")
    if given == "change" and last is None:
        return "week"
    if given == "yesterday" and period.length > _DAY:
        return "week"
    return given


#: The shape of each kind of change.
_LOOKS = {
    "duration": "started",
    "queue_time": "enqueued",
    "failed": "dead",
    "jobs": "list",
    "error": "dead",
    "new": "list",
    "silent": "delayed",
}


def _rows(visit: Visit, found: Sequence[Change], period: Period, now: Any) -> list[dict[str, Any]]:
    """Return changes as the page shows them; errors with their first run and number of users."""
    rows = [_row(change, period) for change in found]
    errors = [row for row in rows if row["words"]][:_MOST_ERRORS]
    if not errors:
        return rows
    series = {(each.error_type, each.actor): each.series for each in now.errors}
    marks = marks_in(visit, period)
    for row in errors:
        if row["flag"]:
            row["since"] = _since(visit, series.get((row["error"], row["actor"]), ()), now, marks)
        row["users"] = visit.site.keep(
            f"users {visit.zone} {row['words']}", partial(_users, visit, row["words"]), times=15
        )
    return rows


def _since(visit: Visit, numbers: Sequence[int], now: Any, marks: Sequence[Any]) -> str:
    """Return a text with when the first run was, and after which mark."""
    first = next((n for n, count in enumerate(numbers) if count), None)
    if first is None:
        return ""
    at = now.times[first]
    local, step = at.astimezone(visit.zone), timedelta(milliseconds=now.step)
    is_today = local.date() == visit.local_now.date()
    text = f"{local:%H:%M}" if is_today else f"{local:%d %b %H:%M}"
    near = [mark.name for mark in marks if at - _SOON <= mark.at < at + step]
    # Marks are sorted newest first.
    return f"{text}, after {near[0]}" if near else text


def _users(visit: Visit, words: str) -> str:
    """Return the number of users among a bounded number of jobs that a search finds."""
    job = visit.joblog.Job
    found = visit.search(words).limit(_LOOKED_AT).select(user_field(job).alias("user"))
    rows = visit.part(None, lambda: list(found.tuples()), None, timeout=_COUNTING)
    if rows is None:
        return ""
    users = len({user for (user,) in rows if user is not None})
    return f"{number(users)}{'+' * (len(rows) >= _LOOKED_AT)}" if users else ""


def _row(change: Change, period: Period) -> dict[str, Any]:
    factor = change.factor
    flag = "" if factor is not None else "silent" if change.kind == "silent" else "new"
    share = 0.0
    if factor:
        log = math.log(factor) / math.log(_MOST_FACTOR)
        share = max(-1.0, min(1.0, log))
    elif flag:
        share = -1.0 if flag == "silent" else 1.0
    words = ""
    if change.kind == "error":
        words = f"{word('error', change.name or '*')} {word('actor', change.actor)} {period.words}"
    return {
        "name": change.name or "no error",
        "actor": change.actor,
        "kind": change.kind,
        "what": WHAT[change.kind],
        "look": _LOOKS[change.kind],
        "is_worse": change.is_worse,
        "before": amount(change, change.before),
        "now": amount(change, change.now),
        "factor": ""
        if not factor
        else times(factor)
        if factor >= 1
        else f"\u00f7 {1 / factor:.1f}",
        "flag": flag,
        "x": round(50 + 50 * share, 1),
        "cut": abs(share) >= 1,
        "words": words,
        "error": change.name if words else "",
        "since": "",
        "users": "",
    }


def _usual(now: Any, before: list[Any], found: list[Change]) -> list[tuple[str, str, str]]:
    """Return what has not changed, to show that it was checked."""
    if now is None or not before:
        return []
    changed = {(change.name, change.kind) for change in found}
    was = {group.name: group for group in before[0].groups}
    rows = []
    for group in now.groups:
        if (group.name, "duration") in changed or group.name not in was:
            continue
        p95 = Percentiles.of(group.durations).p95
        earlier = Percentiles.of(was[group.name].durations).p95
        if not p95 or not earlier:
            continue
        if 1 / SMALLEST < p95 / earlier < SMALLEST:
            rows.append((f"{group.name}, p95", plain_duration(earlier), plain_duration(p95)))
    return rows[:USUAL]


def _ended(stats: Any) -> list[int]:
    names = ("finished", "dead", "skipped")
    rows = zip(*(stats.series[name] for name in names), strict=True)
    return [sum(row) for row in rows]


def _chart(now: Any, before: list[Any], zone: Any) -> dict[str, Any]:
    """Draw the number of ended jobs in both periods, aligned by hour."""
    lines = []
    for stats in (now, *before[:1]):
        numbers, size = _ended(stats), axes.bars_of(len(stats.times))
        sums = [sum(numbers[at : at + size]) for at in range(0, len(numbers), size)]
        hours = stats.step * size / 3_600_000
        lines.append([value / hours for value in sums])
    # The last bar is incomplete.
    lines[0][-1:] = []
    top = axes.nice(max((max(values, default=0) for values in lines), default=0))
    paths = []
    for values, whole in zip(lines, (len(lines[0]) + 1, len(lines[-1])), strict=False):
        width = axes.WIDE / max(1, whole)
        xs = [(index + 0.5) * width for index in range(len(values))]
        paths.append(axes.line(xs, values, top, _HIGH))
    return {
        "now": paths[0],
        "was": paths[1] if len(paths) > 1 else "",
        "top": top,
        "counts": [sum(_ended(stats)) for stats in (now, *before[:1])],
        "axis": axes.time_axis(now.times, now.step, zone),
    }
