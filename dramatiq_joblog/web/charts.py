"""Charts of how many jobs ended, as geometry: numbers become the attributes of SVG shapes."""

from __future__ import annotations

import math
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.reading.display import number

from .axes import (
    DOWN,
    UP,
    WIDE,
    bars_of,
    height_of,
    hit,
    line,
    moment_text,
    nice,
    step_text,
    time_axis,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, tzinfo

_WEEK = timedelta(weeks=1)
#: The approximate number of bars in a sparkline, the width of each, and the maximum height.
SPARKS, _SPARK, SPARK_UP = 24, 10, 24


def throughput(stats: Any, zone: tzinfo, before: Any = None) -> dict[str, Any]:
    """Draw jobs by outcome over time: successes above, failures below on a separate scale.

    Parameters:
      stats: The statistics of the jobs.
      zone: The zone that times are shown in.
      before: The same statistics a week before, or None.
    """
    times, step, series = _gathered(stats)
    usual = [] if before is None else _went_well(before, times, step)
    good, skipped = series["finished"], series["skipped"]
    bad, dead = series["retried"], series["dead"]
    top = nice(max([*usual, *(a + b for a, b in zip(good, skipped, strict=True))], default=0))
    low = nice(max((a + b for a, b in zip(bad, dead, strict=True)), default=0))
    width = WIDE / max(1, len(times))
    gap = min(6.0, width * 0.3)
    up: list[tuple[str, float, float, float, float, bool]] = []
    down: list[tuple[str, float, float, float, float, bool]] = []
    hits = []
    for index, at in enumerate(times):
        x, w = round(index * width + gap / 2, 1), round(width - gap, 1)
        base, part = float(UP), at + timedelta(milliseconds=step) > stats.until
        part = part or (index == len(times) - 1 and getattr(stats, "goes_on", True))
        for kind, value in (("finished", good[index]), ("skipped", skipped[index])):
            height = height_of(value, top, UP)
            base -= height
            if height:
                up.append((kind, x, round(base, 1), w, height, part))
        base = 0.0
        for kind, value in (("retrying", bad[index]), ("dead", dead[index])):
            height = height_of(value, low, DOWN)
            if height:
                down.append((kind, x, round(base, 1), w, height, part))
            base += height
        figures = [number(values[index]) for values in (good, skipped, bad, dead)]
        names = ("finished", "skipped", "retried", "dead")
        label = ", ".join(f"{text} {name}" for text, name in zip(figures, names, strict=True))
        figures += [number(round(value)) for value in usual[index : index + 1]]
        place = index * width, width
        hits.append(hit(place, at, step, zone=zone, values=figures, label=label))
    return {
        "up": up,
        "down": down,
        "hits": hits,
        "top": top,
        "low": low,
        "per": step_text(step),
        "axis": time_axis(times, step, zone),
        "counts": stats.counts,
        "usual": line([(index + 0.5) * width for index in range(len(usual))], usual, top, UP),
        "usually": round(sum(usual)),
    }


def _went_well(before: Any, times: Sequence[datetime], step: int) -> list[float]:
    """Return the number of jobs finished or skipped a week before each bar.

    Only hourly totals are kept that long, so each bar has its share of an hour.
    """
    series = zip(before.series["finished"], before.series["skipped"], strict=True)
    numbers = [sum(each) for each in series]
    found = []
    for at in times:
        first = (at - _WEEK - before.since) / timedelta(milliseconds=before.step)
        last = first + step / before.step
        inside = range(max(0, math.floor(first)), min(len(numbers), math.ceil(last)))
        found.append(sum(numbers[n] * (min(n + 1, last) - max(n, first)) for n in inside))
    return found


def errors(stats: Any, limit: int) -> list[dict[str, Any]]:
    """Draw the times of the most frequent errors."""
    return [
        {
            "error": error.error_type or "no error",
            "error_type": error.error_type,
            "actor": error.actor,
            "count": error.count,
            "spark": spark(error.series, stats.until, stats.step),
        }
        for error in stats.errors[:limit]
    ]


def spark(numbers: Sequence[int], until: datetime, step: int) -> dict[str, Any] | None:
    """Draw numbers over time as a sparkline, scaled to the greatest; None if all are zero.

    Parameters:
      numbers: The number of each step.
      until: The end of the last step.
      step: Milliseconds per step.
    """
    size = max(1, round(len(numbers) / SPARKS))
    # Bars are complete up to now; the oldest may lack steps.
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
        "label": f"most {number(top)}, {moment_text(at, size * step)}",
    }


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


def flow_top(numbers: Sequence[int]) -> int:
    """Return the end of the scale for small bars of *numbers*."""
    return max(_fives(numbers), default=0)


def flow_path(numbers: Sequence[int], top: int) -> str:
    """Draw numbers as small bars, five numbers each, on a common scale."""
    path = []
    for index, value in enumerate(_fives(numbers)):
        if value:
            height = max(1.5, round(20 * value / max(1, top), 1))
            path.append(f"M{index * 8} 21v-{height:g}h6v{height:g}z")
    return "".join(path)


def _fives(numbers: Sequence[int]) -> list[int]:
    return [sum(numbers[at : at + 5]) for at in range(0, len(numbers), 5)]


def name_of(text: str) -> str:
    """Return a short name that is valid as the id of an element."""
    return f"{zlib.crc32(text.encode()):08x}"


def _gathered(stats: Any) -> tuple[list[Any], int, dict[str, list[int]]]:
    """Merge steps into at most the maximum number of bars."""
    size = bars_of(len(stats.times))
    series = {
        name: [sum(values[at : at + size]) for at in range(0, len(values), size)]
        for name, values in stats.series.items()
    }
    return stats.times[::size], stats.step * size, series
