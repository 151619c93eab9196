"""Charts as geometry: numbers become the attributes of SVG shapes, whose labels stand beside."""

from __future__ import annotations

import math
import re
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.reading.display import number

from .formats import plain_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

_HOUR, _DAY = 3_600_000, 86_400_000
#: Units that the plot is wide, and the heights of its upper and its lower part.
WIDE, UP, DOWN = 960, 138, 54
#: So many bars at most.
_BARS = 60
#: About so many bars of a spark, the units that each is wide, and how high they can be.
SPARKS, _SPARK, SPARK_UP = 24, 10, 24
#: Milliseconds at both ends of the axis of all strips, 10 ms and 10 min, and its width in units.
_FROM, _TO, _STRIP = 10, 600_000, 1000
#: Its marks.
_MARKS = (10, 100, 1_000, 10_000, 60_000, 600_000)
_SHOWN_MARKS = {10: "10 ms", 1_000: "1 s", 600_000: "10 min"}


def throughput(stats: Any) -> dict[str, Any]:
    """Draw jobs by outcome over time: what went well above, what failed below on its own scale."""
    times, step, series = _gathered(stats)
    good, skipped = series["finished"], series["skipped"]
    bad, dead = series["retried"], series["dead"]
    top = nice(max((a + b for a, b in zip(good, skipped, strict=True)), default=0))
    low = nice(max((a + b for a, b in zip(bad, dead, strict=True)), default=0))
    width = WIDE / max(1, len(times))
    gap = min(6.0, width * 0.3)
    up: list[tuple[str, float, float, float, float]] = []
    down: list[tuple[str, float, float, float, float]] = []
    hits = []
    for index, at in enumerate(times):
        x, w = round(index * width + gap / 2, 1), round(width - gap, 1)
        base = float(UP)
        for kind, value in (("finished", good[index]), ("skipped", skipped[index])):
            height = _height(value, top, UP)
            base -= height
            if height:
                up.append((kind, x, round(base, 1), w, height))
        base = 0.0
        for kind, value in (("retrying", bad[index]), ("dead", dead[index])):
            height = _height(value, low, DOWN)
            if height:
                down.append((kind, x, round(base, 1), w, height))
            base += height
        told = (
            f"{_moment(at, step)}: {number(good[index])} finished, {number(skipped[index])} "
            f"skipped, {number(bad[index])} retried, {number(dead[index])} dead"
        )
        hits.append((round(index * width, 1), round(width, 1), told))
    return {
        "up": up,
        "down": down,
        "hits": hits,
        "top": top,
        "low": low,
        "per": _round(step),
        "axis": _time_axis(times, step),
        "counts": stats.counts,
    }


def strips(groups: Iterable[Any]) -> list[dict[str, Any]]:
    """Draw the percentiles of job types on one axis, so that they can be compared."""
    return [
        {
            "name": group.name,
            "ended": group.durations.count,
            "queue": _strip(group.queue_time),
            "duration": _strip(group.duration),
        }
        for group in groups
    ]


def _strip(percentiles: Any) -> dict[str, Any] | None:
    if not percentiles.count:
        return None
    p50, p95, p99 = (percentiles.p50, percentiles.p95, percentiles.p99)
    return {
        "p50": log_x(p50),
        "p95": log_x(p95),
        "p99": log_x(p99),
        "value": p95,
        "label": ", ".join(
            f"{name} {plain_duration(value)}"
            for name, value in (("p50", p50), ("p95", p95), ("p99", p99))
        ),
    }


def errors(stats: Any, limit: int) -> list[dict[str, Any]]:
    """Draw when the most frequent errors were."""
    return [
        {
            "error": error.error_type or "no error",
            "actor": error.actor,
            "count": error.count,
            "spark": spark(error.series, stats.until, stats.step),
        }
        for error in stats.errors[:limit]
    ]


def spark(numbers: Sequence[int], until: datetime, step: int) -> dict[str, Any] | None:
    """Draw numbers over time, small, each at its share of the greatest; None if all are zero.

    Parameters:
      numbers: How many in each step.
      until: The end of the last step.
      step: Milliseconds of each.
    """
    size = max(1, round(len(numbers) / SPARKS))
    # Whole bars up to now: it is the oldest that may lack steps.
    lead = -len(numbers) % size
    padded = [*[0] * lead, *numbers]
    bars = [sum(padded[at : at + size]) for at in range(0, len(padded), size)]
    top = max(bars, default=0)
    if not top:
        return None
    path = []
    for index, value in enumerate(bars):
        if value:
            height = max(2.5, round(SPARK_UP * value / top, 1))
            path.append(f"M{_SPARK * index + 1} {SPARK_UP}v-{height:g}h8V{SPARK_UP}z")
    length = timedelta(milliseconds=size * step)
    at = until - (len(bars) - bars.index(top)) * length
    return {
        "wide": _SPARK * len(bars),
        "path": "".join(path),
        "told": f"most {number(top)}, {_moment(at, size * step)}",
    }


def log_x(milliseconds: float) -> int:
    """Return where a duration stands on the axis of the strips.

    Example:
      >>> [log_x(ms) for ms in (0, 10, 1000, 600_000, 10**9)]
      [0, 0, 419, 1000, 1000]
    """
    inside = min(max(milliseconds, _FROM), _TO)
    return round(_STRIP * math.log(inside / _FROM) / math.log(_TO / _FROM))


#: The lines of the strips, and the texts below them, in percent.
STRIP_MARKS = [log_x(mark) for mark in _MARKS]
STRIP_AXIS = [(log_x(mark) / 10, text) for mark, text in _SHOWN_MARKS.items()]


def nice(value: float) -> int:
    """Return the end of a scale for *value* whose half is a round number too.

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


def plain(stats: Any) -> dict[str, Any]:
    """Return the figures of the charts as data."""
    return {
        "since": stats.since.isoformat(),
        "until": stats.until.isoformat(),
        "step": stats.step,
        "times": [at.isoformat() for at in stats.times],
        "series": stats.series,
        "counts": stats.counts,
        "groups": [
            {
                "name": group.name,
                "counts": group.counts,
                "duration": vars(group.duration),
                "queue_time": vars(group.queue_time),
            }
            for group in stats.groups
        ],
        "errors": [vars(error) for error in stats.errors],
    }


def name_of(text: str) -> str:
    """Return a short name that an element may have as its id."""
    return f"{zlib.crc32(text.encode()):08x}"


def _gathered(stats: Any) -> tuple[list[Any], int, dict[str, list[int]]]:
    """Add up steps until there are few enough to be seen."""
    size = max(1, math.ceil(len(stats.times) / _BARS))
    size = next((s for s in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 24, 30) if s >= size), size)
    series = {
        name: [sum(values[at : at + size]) for at in range(0, len(values), size)]
        for name, values in stats.series.items()
    }
    return stats.times[::size], stats.step * size, series


def _round(step: int) -> str:
    """Write a round duration without what is zero in it: ``30 min``, ``2 d``."""
    return re.sub(r"(:00|\.0)(?=\u00a0)", "", plain_duration(step))


def _height(value: int, top: int, height: int) -> float:
    """Return a bar's height: one that is there is seen."""
    return round(max(1.0, height * value / top), 1) if value else 0.0


def _moment(at: Any, step: int) -> str:
    day = f"{at:%d %b} " if step >= _HOUR else ""
    until = at + timedelta(milliseconds=step)
    if step < _DAY:
        return f"{day}{at:%H:%M} to {until:%H:%M}"
    last = until - timedelta(days=1)
    return f"{at:%d %b}" + (f" to {last:%d %b}" if last > at else "")


def _time_axis(times: Sequence[Any], step: int) -> list[tuple[float, str, str]]:
    """Return up to seven texts with their place in percent and how they are anchored there."""
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
        marks.append((share, f"{times[index]:{form}}", anchor))
    return [*marks, (100.0, "now", "end")]
