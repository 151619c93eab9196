"""The parts that charts share: time axes, lines, marks and hover areas."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import timedelta, timezone
from typing import TYPE_CHECKING, Any

from .formats import plain_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime, tzinfo

_HOUR, _DAY = 3_600_000, 86_400_000
#: The maximum length of a mark's name beside its line.
_LONGEST = 24
#: The width of the plot, and the heights of its upper and lower part, in units.
WIDE, UP, DOWN = 960, 138, 54
#: The maximum number of bars.
_BARS = 60


@dataclass(frozen=True)
class Hit:
    """The hover area of a bar: a link to its jobs, and its values."""

    x: float
    width: float
    #: The time, as text.
    at: str
    #: Its beginning and end, as in URLs.
    since: str
    until: str
    #: The search for the jobs that ended in it.
    words: str
    #: Its values, in the order of the legend.
    values: list[str]
    label: str


def deploys(marks: Iterable[Any], period: Any, zone: tzinfo) -> list[dict[str, Any]]:
    """Place marks on a time axis, oldest first.

    A name that would overlap another is shown only in the title of its line.

    Parameters:
      marks: The marks.
      period: An object with ``since`` and ``until`` of the axis.
      zone: The zone that times are shown in.
    """
    whole = (period.until - period.since) / timedelta(milliseconds=1)
    placed: list[dict[str, Any]] = []
    free_from = 0.0
    for mark in sorted(marks, key=lambda mark: (mark.at, mark.id)):
        share = (mark.at - period.since) / timedelta(milliseconds=1) / whole
        if not 0 <= share <= 1:
            continue
        before, at = share > 0.5, mark.at.astimezone(zone)
        room = 1.1 * (len(mark.name[:_LONGEST]) + 8)
        begin = 100 * share - (room if before else 0)
        named = begin >= free_from
        free_from = max(free_from, begin + room) if named else free_from
        placed.append(
            {
                "at": round(100 * share, 2),
                "x": round(WIDE * share, 1),
                "name": mark.name,
                "text": f"{mark.name[:_LONGEST]}, {at:%H:%M}" if named else "",
                "anchor": "end" if before else "start",
                "label": f"{mark.name}, {at:%d %b %H:%M}, by {mark.who}",
            }
        )
    return placed


def hit(
    place: tuple[float, float],
    at: datetime,
    step: int,
    *,
    zone: tzinfo,
    values: list[str],
    label: str,
) -> Hit:
    """Make the hover area of the bar at one time."""
    until = at + timedelta(milliseconds=step)
    moment = moment_text(at.astimezone(zone), step)
    return Hit(
        *(round(place[0], 1), round(place[1], 1), moment, iso(at), iso(until)),
        *(f"ended:{iso(at)}..{iso(until)}", values, f"{moment}: {label}"),
    )


def iso(instant: datetime) -> str:
    """Format an instant for URLs and searches."""
    utc = instant.astimezone(timezone.utc)
    return f"{utc:%Y-%m-%dT%H:%MZ}" if not utc.second else f"{utc:%Y-%m-%dT%H:%M:%SZ}"


def line(xs: Sequence[float], values: Sequence[float | None], top: float, height: float) -> str:
    """Draw numbers as a line, with gaps where there are none."""
    path, pen = [], "M"
    for x, value in zip(xs, values, strict=True):
        if value is None:
            pen = "M"
            continue
        y = height - height * min(1.0, value / top)
        path.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(path)


def nice(value: float) -> int:
    """Return the end of a scale for *value*; half of it is a round number too.

    Example:
      >>> [nice(v) for v in (0, 3, 7, 23, 187, 2665)]
      [2, 4, 10, 30, 200, 3000]
    """
    if value <= 2:
        return 2
    size = 10 ** math.floor(math.log10(value))
    for step in (1, 2, 3, 4, 6, 8, 10):
        if value <= step * size and (step * size) % 2 == 0:
            return int(step * size)
    return int(10 * size)


def bars_of(steps: int) -> int:
    """Return the number of steps per bar, for at most the maximum number of bars."""
    size = max(1, math.ceil(steps / _BARS))
    return next((s for s in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 24, 30) if s >= size), size)


def step_text(step: int) -> str:
    """Format a round duration without zero parts: ``30 min``, ``2 d``."""
    return re.sub(r"(:00|\.0)(?=\u00a0)", "", plain_duration(step))


def height_of(value: int, top: int, height: int) -> float:
    """Return a bar's height; nonzero values are always visible."""
    return round(max(1.0, height * value / top), 1) if value else 0.0


def moment_text(at: datetime, step: int) -> str:
    """Format the time of a bar, as exactly as its length needs."""
    day = f"{at:%d %b} " if step >= _HOUR else ""
    until = at + timedelta(milliseconds=step)
    if step < _DAY:
        return f"{day}{at:%H:%M} to {until:%H:%M}"
    last = until - timedelta(days=1)
    return f"{at:%d %b}" + (f" to {last:%d %b}" if last > at else "")


def time_axis(
    times: Sequence[datetime], step: int, zone: tzinfo, end: str = "now"
) -> list[tuple[float, str, str]]:
    """Return up to seven labels with their position in percent and their anchor."""
    if not times:
        return []
    every = max(1, math.ceil(len(times) / 6))
    form = "%d %b" if step * len(times) > 2 * _DAY else "%H:%M"
    marks = []
    for index in range(0, len(times), every):
        share = round(100 * index / len(times), 2)
        if share > 92:
            break
        anchor = "start" if index == 0 else "middle"
        marks.append((share, f"{times[index].astimezone(zone):{form}}", anchor))
    return [*marks, (100.0, end, "end")]
