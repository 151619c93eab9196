"""A family of jobs as one waterfall, on one time axis."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.reading.story import sent_at
from dramatiq_joblog.schema.query import word
from dramatiq_joblog.states import ACTIVE, FINAL, State

from .formats import plain_duration
from .presenters import JobRow
from .timeline_svg import STEPS, tick

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

#: The maximum number of jobs of a family, and of those that an expanded group shows.
MOST, _SHOWN = 500, 8
#: The maximum number of lanes of a group, and the height of each.
_MOST_LANES, _LANE = 14, 8
#: The minimum width of a bar, in percent of the axis.
_LEAST = 0.35
_MS = timedelta(milliseconds=1)
#: The order of states: those that need attention first.
_ORDER = (
    *(State.DEAD, State.LOST, State.RETRYING, State.STARTED, State.WAITING),
    *(State.ENQUEUED, State.DELAYED, State.SKIPPED, State.FINISHED),
)


@dataclass
class Row:
    """One job, or a group of jobs with the same name, on the axis."""

    name: str
    note: str
    is_bad: bool
    height: int
    bars: list[dict[str, Any]]
    duration: float
    #: The number of jobs; 0 for a single job.
    count: int = 0
    jid: str = ""
    state: str = ""
    is_here: bool = False
    #: The important single jobs in it, and the number of others.
    leaves: list[Row] = field(default_factory=list)
    more: int = 0
    words: str = ""


class Family:
    """The relatives of a job, as its page draws them.

    Parameters:
      found: The job of the page.
      rows: The job and its relatives, oldest first.
      now: The end of unfinished jobs on the axis.
    """

    def __init__(self, found: Any, rows: Sequence[Any], now: datetime) -> None:
        self._found = found
        self._now = now
        # A job run again is a different family, linked in the history.
        root_jid = found.root_jid or found.jid
        self._rows = [r for r in rows if root_jid in {r.jid, r.root_jid}]
        self._by_jid = {row.jid: row for row in self._rows}
        self._children: dict[str, list[Any]] = {}
        for row in self._rows:
            if row.parent_jid is not None and row.parent_jid != row.jid:
                self._children.setdefault(row.parent_jid, []).append(row)
        self.size = len(self._rows)
        self.capped = len(rows) >= MOST
        self.root = self._by_jid.get(root_jid, found)
        self._begin = min((sent_at(row) for row in self._rows), default=sent_at(found))
        self._end = max((self._ended(row) for row in self._rows), default=now)
        self._length = max(1.0, (self._end - self._begin) / _MS)
        self.path = self._path()

    def descendants(self) -> list[Any]:
        """Return all jobs sent from the job of the page, directly or indirectly."""
        found, todo = [], [self._found.jid]
        seen = set(todo)
        while todo:
            for child in self._children.get(todo.pop(), ()):
                if child.jid not in seen:
                    seen.add(child.jid)
                    found.append(child)
                    todo.append(child.jid)
        return found

    def dead(self) -> list[Any]:
        """Return the dead jobs among them that were neither run again nor dismissed."""
        return [
            row
            for row in self.descendants()
            if row.state == State.DEAD and row.replayed_by is None and row.dismissed_at is None
        ]

    def drawn(self) -> dict[str, Any] | None:
        """Return the drawing, or None if the job has no relatives."""
        if self.size < 2:
            return None
        others = [row for row in self._rows if row.jid != self.root.jid]
        states = Counter(row.state for row in others)
        done = sum(states[state] for state in FINAL if state != State.DEAD)
        return {
            "text": f"{done} of {len(others)}{'+' * self.capped} done",
            "cells": self._cells(states),
            "rows": [self._single(self.root), *self._groups(others)],
            "grid": self._grid(),
            "from": self._begin,
            "total": self._length,
            "path": [(row.job_type or row.actor, row.jid, self._lasted(row)) for row in self.path],
            "ended": all(row.state in FINAL for row in self._rows),
        }

    def _ended(self, row: Any) -> datetime:
        at: datetime = self._now
        if row.state in FINAL:
            at = row.finished_at or row.updated_at
        elif row.state == State.LOST:
            at = row.updated_at
        return at

    def _lasted(self, row: Any) -> str:
        spent = plain_duration((self._ended(row) - sent_at(row)) / _MS)
        return f"for {spent} so far" if row.state in ACTIVE else spent

    def _path(self) -> list[Any]:
        """Return the longest path: from the job that ended last back to the first."""
        last = max(self._rows, key=self._ended, default=None)
        path: list[Any] = []
        while last is not None and last not in path:
            path.append(last)
            last = self._by_jid.get(last.parent_jid) if last.parent_jid else None
        return path[::-1]

    def _cells(self, states: Counter[Any]) -> list[tuple[str, float, float, int]]:
        """Return the shares of states: state, position and width in percent, and number."""
        total, at, cells = max(1, sum(states.values())), 0.0, []
        for state in reversed(_ORDER):
            if states[state]:
                width = 100 * states[state] / total
                cells.append(
                    (str(state), round(at, 2), round(max(0.4, width - 0.3), 2), states[state])
                )
                at += width
        return cells

    def _groups(self, others: Sequence[Any]) -> list[Row]:
        by_name: dict[str, list[Any]] = {}
        for row in others:
            by_name.setdefault(row.job_type or row.actor, []).append(row)
        groups = [self._group(name, rows) for name, rows in by_name.items()]
        return [
            self._single(rows[0]) if g.count == 1 else g
            for g, rows in zip(groups, by_name.values(), strict=True)
        ]

    def _group(self, name: str, rows: list[Any]) -> Row:
        states = Counter(row.state for row in rows)
        note = ", ".join(f"{states[state]} {state}" for state in _ORDER if states[state])
        bars, height = self._packed(rows)
        on_path = [row for row in rows if row in self.path]
        bad = [row for row in rows if row.state in {State.DEAD, State.LOST}]
        here = [row for row in rows if row.jid == self._found.jid]
        chosen = list(dict.fromkeys([*bad, *on_path, *here]))[:_SHOWN]
        first = rows[0]
        words = f"family:{self.root.jid} "
        words += word("type" if first.job_type else "actor", name)
        begin = min(sent_at(row) for row in rows)
        return Row(
            *(name, note, bool(bad), height, bars),
            (max(self._ended(row) for row in rows) - begin) / _MS,
            count=len(rows),
            leaves=[self._single(row) for row in chosen],
            more=len(rows) - len(chosen),
            words=words,
        )

    def _single(self, row: Any) -> Row:
        shown = JobRow(row, self._now)
        bars, height = self._packed([row])
        strong, rest = shown.said
        return Row(
            *(shown.name, f"{strong} {rest}".strip() or str(row.state), row.state == State.DEAD),
            *(height, bars, (self._ended(row) - sent_at(row)) / _MS),
            jid=row.jid,
            state=str(row.state),
            is_here=row.jid == self._found.jid,
        )

    def _packed(self, rows: Iterable[Any]) -> tuple[list[dict[str, Any]], int]:
        """Draw jobs in lanes, each in the first free lane."""
        ends: list[float] = []
        bars = []
        rows = sorted(rows, key=sent_at)
        single = len(rows) == 1
        for row in rows:
            bar = self._bar(row)
            place = next((n for n, end in enumerate(ends) if end < bar["from"]), None)
            if place is None:
                place = len(ends) if len(ends) < _MOST_LANES else _MOST_LANES - 1
                if place == len(ends):
                    ends.append(0.0)
            ends[place] = max(ends[place], bar["to"] + 0.1)
            bars.append(bar | {"y": 12 if single else place * _LANE + 8, "h": 11 if single else 5})
        return bars, 36 if single else max(36, len(ends) * _LANE + 14)

    def _bar(self, row: Any) -> dict[str, Any]:
        sent, end = sent_at(row), self._ended(row)
        start = row.started_at if row.started_at is not None else end
        waits = row.state in {State.ENQUEUED, State.DELAYED, State.WAITING}
        x, width = self._place(sent if waits else start, end)
        queue_x, queue_width = self._place(sent, start)
        return {
            "jid": row.jid,
            "label": f"{row.job_type or row.actor} {row.jid[:8]}, {row.state}",
            "state": str(row.state),
            "x": x,
            "w": max(width, _LEAST),
            "qx": queue_x,
            "qw": 0 if waits else queue_width,
            "path": row in self.path,
            "from": queue_x,
            "to": x + max(width, _LEAST),
        }

    def _place(self, begin: datetime, end: datetime) -> tuple[float, float]:
        a = max(0.0, min(1.0, (begin - self._begin) / _MS / self._length))
        b = max(a, min(1.0, (end - self._begin) / _MS / self._length))
        return round(100 * a, 2), round(100 * (b - a), 2)

    def _grid(self) -> list[tuple[float, str]]:
        step = next((s for s in STEPS if self._length / s <= 8), self._length / 4)
        marks = [n * step for n in range(int(self._length / step) + 1)]
        return [(round(100 * at / self._length, 2), tick(at, step)) for at in marks]
