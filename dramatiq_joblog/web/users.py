"""One user: their jobs on one time axis."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.reading.story import sent_at
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.schema.query import word
from dramatiq_joblog.states import ACTIVE, FINAL, Outcome, State

from . import axes
from .common import marks_in
from .formats import brief, percent, plain_duration
from .periods import RANGES, WEEK, Period, period_of
from .presenters import JobRow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from starlette.responses import Response

    from .context import Visit

#: The maximum number of jobs drawn and counted, and of rows in the list.
MOST_JOBS, LISTED = 400, 25
#: The maximum number of lanes for a type, and the height of each.
MOST_LANES, _LANE = 12, 9
#: The minimum width of a bar, in percent of the axis.
_LEAST = 0.35
_MS = timedelta(milliseconds=1)


def user(visit: Visit) -> Response:
    """Respond with the jobs of one user in a period, unfinished ones first."""
    name = visit.request.path_params["user"]
    period = period_of(visit)
    rows, capped = jobs_of(visit, name, period)
    is_name = bool(rows) or not name.endswith(".json") or _is_known(visit, name)
    stem = visit.read_suffix(name, is_name=is_name)
    if stem != name:
        name, (rows, capped) = stem, jobs_of(visit, stem, period)
    if visit.wants_json:
        return visit.json({"user": name, "jobs": [visit.visible.as_dict(row) for row in rows]})
    last = None
    if not rows:
        newest = visit.joblog.jobs.for_user(name).order_by(visit.joblog.Job.created_at.desc())
        last = next(iter(visit.rows(None, lambda: newest.limit(1))), None)
    waits = waits_of(visit, rows)
    facts = {
        "user": name,
        "words": word("user", name),
        "period": period,
        "ranges": list(RANGES),
        "cells": cells_of(visit, name, period, rows, waits, capped=capped) if rows else [],
        "verdict": verdict_of(rows, visit.now),
        "rows": rows_of(visit, rows),
        **drawing_of(visit, rows, waits, period),
        "total": len(rows),
        "capped": capped,
        "last": None if last is None else JobRow(last, visit.now),
    }
    heading = f"User {brief(name)}"
    return visit.page("user.html", heading, facts, live=True, section="jobs")


def drawing_of(
    visit: Visit,
    rows: Sequence[Any],
    waits: dict[str, list[tuple[datetime, datetime]]],
    period: Period,
) -> dict[str, Any]:
    """Return the drawing of a user's jobs on one time axis."""
    axis = _axis(period)
    changes = axes.deploys(marks_in(visit, period), replace(axis, until=axis.end), visit.zone)
    return {"lanes": _lanes(rows, waits, axis), "grid": _grid(axis, visit), "deploys": changes}


def rows_of(visit: Visit, rows: Sequence[Any]) -> list[JobRow]:
    """Return the rows of the list: dead jobs first, then unfinished ones."""
    seen = visit.access.sees_arguments
    return [JobRow(row, visit.now, seen=seen) for row in _unfinished_first(rows)[:LISTED]]


def _axis(period: Period) -> Period:
    """Return the period that is drawn; it advances in visible steps, not at every update."""
    step = max(60_000, period.length // 500)
    past = -to_millis(period.end) % step
    return replace(
        period,
        since=period.since + past * _MS,
        until=period.end + past * _MS,
    )


def _is_known(visit: Visit, name: str) -> bool:
    """Return whether the log has any job of a user."""
    ever = visit.joblog.jobs.for_user(name).select(visit.joblog.Job.id).limit(1)
    return bool(visit.rows(None, ever.tuples))


def jobs_of(visit: Visit, name: str, period: Period) -> tuple[list[Any], bool]:
    """Return the newest jobs of a user that were sent in a period, oldest first."""
    job = visit.joblog.Job
    query = visit.joblog.jobs.for_user(name)
    query = query.where(job.created_at >= period.since, job.created_at < period.end)
    newest = query.order_by(job.created_at.desc(), job.id.desc()).limit(MOST_JOBS + 1)
    rows = visit.rows("the jobs", lambda: newest)
    return rows[:MOST_JOBS][::-1], len(rows) > MOST_JOBS


def waits_of(visit: Visit, rows: Sequence[Any]) -> dict[str, list[tuple[datetime, datetime]]]:
    """Return when jobs waited for a section, by jid."""
    waits: dict[str, list[tuple[datetime, datetime]]] = {}
    jids = [row.jid for row in rows if row.section is not None]
    if jids:
        failure = visit.joblog.Failure
        found = failure.select(failure.jid, failure.started_at, failure.finished_at).where(
            failure.jid.in_(jids), failure.outcome == Outcome.WAITED.value
        )
        for wait in visit.rows("the waits", lambda: found):
            if wait.started_at is not None and wait.finished_at is not None:
                waits.setdefault(wait.jid, []).append((wait.started_at, wait.finished_at))
    for row in rows:
        if row.state == State.WAITING and row.waiting_since is not None:
            waits.setdefault(row.jid, []).append((row.waiting_since, visit.now))
    return waits


def _unfinished_first(rows: Sequence[Any]) -> list[Any]:
    """Return dead jobs, then unfinished ones, then the others; each newest first."""

    def rank(row: Any) -> int:
        return 0 if row.state == State.DEAD else 1 if row.state in ACTIVE else 2

    newest = sorted(rows, key=lambda row: row.created_at, reverse=True)
    return sorted(newest, key=rank)


def cells_of(
    visit: Visit,
    name: str,
    period: Period,
    rows: Sequence[Any],
    waits: dict[str, list[tuple[datetime, datetime]]],
    *,
    capped: bool,
) -> list[dict[str, Any]]:
    """Return the figures of a user's jobs, each with its search."""
    states = Counter(row.state for row in rows)
    on_their_way = sum(states[state] for state in ACTIVE)
    waited = sum((b - a) / _MS for times in waits.values() for a, b in times)
    ran = sum(row.duration or 0 for row in rows)
    sections = len({row.section for row in rows if row.jid in waits})
    sections *= visit.access.sees_arguments
    more = "+" if capped else ""
    words = word("user", name)
    # By the range's name, if any, so that the page does not change every second.
    in_time = f"{words} since:{period.name or axes.iso(period.since)}"
    in_time += f" until:{axes.iso(period.end)}" if period.until else ""

    def cell(text: str, value: Any, note: str, query: str) -> dict[str, Any]:
        return {"name": text, "value": value, "note": note, "q": f"{in_time} {query}".strip()}

    return [
        cell("Jobs", f"{len(rows)}{more}", _usually(visit, name, period), ""),
        cell(
            "Finished",
            states[State.FINISHED],
            percent(states[State.FINISHED] / len(rows)),
            "state:finished",
        ),
        cell("Dead", states[State.DEAD], "", "state:dead dismissed:yes dismissed:no"),
        cell(
            "On their way",
            on_their_way,
            f"{states[State.STARTED]} running" if states[State.STARTED] else "",
            "state:active",
        ),
        cell("Skipped", states[State.SKIPPED], "", "state:skipped"),
        cell(
            "Waited for sections",
            plain_duration(waited) if waited else "0",
            f"{sections} section{'s' * (sections != 1)}" if sections else "",
            "",
        ),
        cell("Time in runs", plain_duration(ran), "", ""),
    ]


def _usually(visit: Visit, name: str, period: Period) -> str:
    """Return a text with the user's number of jobs in the same period a week before, capped."""
    job = visit.joblog.Job
    since, until = period.ago(WEEK)
    query = visit.joblog.jobs.for_user(name).where(job.created_at >= since, job.created_at < until)
    some = query.order_by().select(job.id).limit(MOST_JOBS + 1)
    number = len(visit.rows(None, some.tuples))
    if not number:
        return ""
    return f"last week {min(number, MOST_JOBS)}{'+' * (number > MOST_JOBS)}"


def verdict_of(rows: Sequence[Any], now: datetime) -> dict[str, Any] | None:
    """Return what is missing for the user: dead, lost or unfinished jobs."""
    dead = [row for row in rows if row.state == State.DEAD and row.dismissed_at is None]
    dead = [row for row in dead if row.replayed_by is None]
    lost = [row for row in rows if row.state == State.LOST]
    going = [row for row in rows if row.state in ACTIVE and row.state != State.LOST]
    if not dead and not lost:
        return None
    missing = [*dead, *lost]
    newest = max(missing, key=lambda row: row.finished_at or row.updated_at)
    shown = JobRow(newest, now)
    some = f"{len(missing)} job{'s' * (len(missing) != 1)} of this user did not finish"
    rest = len(rows) - len(missing) - len(going)
    others = [f"{len(going)} {'have' if len(going) != 1 else 'has'} not ended yet"] if going else []
    others += [f"{rest} ended normally"] if rest else []
    return {
        "look": "dead" if dead else "lost",
        "text": some[0].upper() + some[1:],
        "name": shown.name,
        "jid": newest.jid,
        "at": newest.finished_at or newest.updated_at,
        "how": f"failed with {shown.error_type or shown.reason}" if dead else "lost its worker",
        "rest": ", ".join(others),
    }


@dataclass
class Lane:
    """The jobs of one type, packed into lanes."""

    name: str
    note: str
    is_bad: bool
    count: int
    height: int
    bars: list[dict[str, Any]]


def _lanes(
    rows: Sequence[Any], waits: dict[str, list[tuple[datetime, datetime]]], period: Period
) -> list[Lane]:
    by_name: dict[str, list[Any]] = {}
    for row in rows:
        by_name.setdefault(row.job_type or row.actor, []).append(row)
    ordered = sorted(by_name.items(), key=lambda pair: -len(pair[1]))
    return [_lane(name, jobs, waits, period) for name, jobs in ordered[:20]]


def _lane(
    name: str,
    jobs: list[Any],
    waits: dict[str, list[tuple[datetime, datetime]]],
    period: Period,
) -> Lane:
    ends = [float("-inf")]
    bars = []
    for job in sorted(jobs, key=sent_at):
        bar = _bar(job, waits.get(job.jid, ()), period)
        begin, end = bar["from"], bar["to"]
        place = next((n for n, until in enumerate(ends) if until < begin), None)
        if place is None:
            place = len(ends) if len(ends) < MOST_LANES else MOST_LANES - 1
            if place == len(ends):
                ends.append(0.0)
        ends[place] = max(ends[place], end + 0.1)
        bars.append(bar | {"y": place * _LANE + 12})
    states = Counter(str(job.state) for job in jobs)
    note = ", ".join(f"{n} {state}" for state, n in states.items() if state != State.DEAD)
    height = max(38, len(ends) * _LANE + 20)
    dead = states.get(State.DEAD.value, 0)
    return (
        Lane(name, note, bool(dead), len(jobs), height, bars)
        if not dead
        else Lane(
            name, f"{dead} dead" + (f", {note}" if note else ""), True, len(jobs), height, bars
        )
    )


def _bar(job: Any, waited: Sequence[tuple[datetime, datetime]], period: Period) -> dict[str, Any]:
    """Draw one job: queued, waiting for its section, and from its last start."""
    sent = sent_at(job)
    if job.state in FINAL:
        end = job.finished_at or job.updated_at
    else:
        end = period.now if job.state != State.DELAYED else sent
    start = job.started_at if job.started_at is not None else end
    state = str(job.state)
    x, w = _place(start, end, period)
    queue_x, queue_w = _place(sent, start, period)
    parts = [(_place(a, b, period)) for a, b in waited]
    return {
        "jid": job.jid,
        "label": f"{job.job_type or job.actor} {job.jid[:8]}, {state}",
        "state": "retrying" if state == "retrying" else state,
        "x": x,
        "w": max(w, _LEAST),
        "qx": queue_x,
        "qw": queue_w,
        "waits": parts,
        "from": min(queue_x, x),
        "to": x + max(w, _LEAST),
        "tall": state == "dead",
    }


def _place(begin: datetime, end: datetime, period: Period) -> tuple[float, float]:
    """Return the position and width of a time on the axis, in percent."""
    length = period.length
    a = max(0.0, min(1.0, (begin - period.since) / _MS / length))
    b = max(a, min(1.0, (end - period.since) / _MS / length))
    return round(100 * a, 2), round(100 * (b - a), 2)


def _grid(period: Period, visit: Visit) -> list[tuple[float, str]]:
    """Return up to seven axis lines at round times, with their labels."""
    steps = (1, 5, 10, 30, 60, 180, 360, 720, 1440, 4320, 10_080, 20_160)
    minutes = period.length / 60_000
    step = next((s for s in steps if minutes / s <= 7), steps[-1])
    begin = period.since.astimezone(visit.zone)
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    form = "%H:%M" if minutes <= 2 * 1440 else "%d %b"
    lines, n = [], 0
    while n < 2_000:
        at = midnight + timedelta(minutes=n * step)
        n += 1
        share = (at - begin) / _MS / period.length
        if share > 0.97:
            break
        if share >= 0:
            lines.append((round(100 * share, 2), f"{at:{form}}"))
    return lines
