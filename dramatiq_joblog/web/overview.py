"""The overview: the present state, and charts of a period."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.admin.audit import retries_lost
from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.reading.story import sent_at
from dramatiq_joblog.schema.query import word
from dramatiq_joblog.states import FINAL, State

from . import axes, charts, duration_charts
from .common import marks_in
from .formats import percent, plain_duration
from .periods import RANGES, period_of
from .presenters import JobRow
from .unusual import last_week, past, type_rows
from .verdict import flags_of, summary
from .waiting import waiting_now

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from starlette.responses import Response

    from .context import Visit
    from .periods import Period
    from .unusual import Past

#: The maximum number of job types shown here; all are on their own page.
MOST_TYPES = 8
#: The maximum number of jobs that are scanned for a fact about them.
FEW = 5_000

#: What the states mean, for new users.
MEANINGS = (
    ("enqueued", "the broker has it, nothing has run"),
    ("delayed", "the broker holds it back until its time"),
    ("waiting", "its critical section is taken"),
    ("started", "a run is in progress"),
    ("retrying", "the last run failed, the next is due"),
    ("lost", "the worker that ran it is gone"),
    ("finished", "done"),
    ("dead", "will not run again by itself"),
    ("skipped", "dropped on purpose before it ran"),
)


def overview(visit: Visit) -> Response:
    """Respond with the current state, and with charts of a period."""
    period = period_of(visit)
    log = visit.joblog
    found = past(visit, period)
    stats = None if found is None else found.now
    oldest = visit.rows("the oldest", lambda: log.oldest(limit=5))
    changes = marks_in(visit, period)
    if visit.wants_json:
        return visit.json(
            {
                "range": period.name,
                "states": visit.figures.counts(),
                "marks": [mark.as_dict() for mark in changes],
                "problems": [problem.as_dict() for problem in visit.figures.problems()],
                "oldest": [visit.visible.as_dict(job) for job in oldest],
                "stats": None if stats is None else charts.plain(stats),
            }
        )
    types = [] if found is None else type_rows(found)
    facts = {
        "period": period,
        "ranges": list(RANGES),
        "cells": _cells(visit, oldest, stats, period),
        "waiting": waiting_now(visit),
        "chart": None
        if found is None
        else charts.throughput(found.now, visit.zone, found.before[0] if found.before else None),
        "types": types[:MOST_TYPES],
        "more_types": max(0, len(types) - MOST_TYPES),
        "compared": found is not None and bool(found.before),
        "was_text": last_week(period, visit.zone),
        "deploys": [] if stats is None else axes.deploys(changes, stats, visit.zone),
        "axis": duration_charts.STRIP_AXIS,
        "marks": duration_charts.STRIP_MARKS,
        "errors": [] if found is None else _errors(visit, found, period),
        "summary": summary(stats, period.text),
        "empty": _is_empty(visit),
        "place": log.name,
        "listening": "No worker has reported in so far.",
        "meanings": MEANINGS,
    }
    return visit.page("overview.html", "Overview", facts, live=True, section="overview")


def _errors(visit: Visit, found: Past, period: Period) -> list[dict[str, Any]]:
    flags = {
        f"{change.name} in {change.actor}": "new" if change.factor is None else "rising"
        for change in found.changes
        if change.kind == "error"
    } | flags_of(visit.figures.problems())
    rows = charts.errors(found.now, 6)
    for row in rows:
        row["flag"] = flags.get(f"{row['error_type']} in {row['actor']}", "")
        row["words"] = f"{word('error', row['error'])} {word('actor', row['actor'])} {period.words}"
    return rows


def _is_empty(visit: Visit) -> bool:
    counts = visit.figures.counts()
    return bool(counts) and not any(counts.values())


def _cells(visit: Visit, oldest: Sequence[Any], stats: Any, period: Period) -> list[dict[str, Any]]:
    counts = visit.figures.counts()
    notes = _notes(visit, oldest, counts)
    ended = {} if stats is None else stats.counts
    total = sum(ended.get(str(state), 0) for state in FINAL)
    cells = []
    for state in State:
        name = str(state)
        words = word("state", name)
        value: Any = counts.get(state)
        note = ""
        if state in FINAL:
            value = None if stats is None else ended.get(name, 0)
            note = percent(value / total) if value is not None and total else ""
            note = notes.get(state, note)
            words += f" {period.words}"
        else:
            note = notes.get(state, "")
        cells.append(
            {
                "state": name,
                "value": value,
                "note": note,
                "split": state == State.FINISHED,
                "href": visit.link("jobs", q=words),
            }
        )
    return cells


def _notes(visit: Visit, oldest: Sequence[Any], counts: dict[Any, Any]) -> dict[Any, str]:
    """Return a useful fact about each state that jobs are in."""
    log = visit.joblog
    notes = {}
    first = next((job for job in oldest if job.state == State.ENQUEUED), None)
    if first is not None:
        notes[State.ENQUEUED] = f"oldest {_age(first, visit.now)}"
    for state in (State.DELAYED, State.RETRYING):
        # There is no index on the due time, so only if there are few jobs.
        if 0 < counts.get(state, 0) < FEW:
            due = log.jobs.in_state(state).order_by(log.Job.eta).limit(1)
            following = visit.rows(None, due.iterator)
            if following and (due_text := JobRow(following[0], visit.now).due):
                is_late = due_text.startswith("overdue")
                notes[state] = due_text if is_late else f"next {due_text}"
    if 0 < counts.get(State.WAITING, 0) < FEW:
        keys = log.jobs.waiting().select(log.Job.section).distinct().order_by().tuples()
        some = len(visit.rows(None, lambda: keys))
        notes[State.WAITING] = f"on {some} section{'s' * (some != 1)}"
    if counts.get(State.STARTED):
        alive = log.workers.where(log.Worker.ended_at.is_null(), log.Worker.swept_at.is_null())
        threads = sum(worker.threads for worker in visit.rows(None, lambda: alive.limit(1000)))
        notes[State.STARTED] = f"of {threads} thread{'s' * (threads != 1)}" if threads else ""
    if counts.get(State.LOST):
        notes[State.LOST] = "worker gone"
    lost = visit.part("the lost retries", lambda: retries_lost(log.Job, host_now())[0], 0)
    if lost:
        notes[State.DEAD] = f"{lost} lost {'a retry' if lost == 1 else 'their retry'}"
    return notes


def _age(job: Any, now: datetime) -> str:
    return plain_duration((now - sent_at(job)) / timedelta(milliseconds=1))
