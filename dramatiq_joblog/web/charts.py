"""Charts as geometry: numbers become the attributes of SVG shapes, with labels beside them."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from datetime import timedelta, timezone
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.reading.display import number
from dramatiq_joblog.statistics.histogram import BOUNDS, Histogram

from .formats import plain_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime, tzinfo

_HOUR, _DAY = 3_600_000, 86_400_000
_WEEK = timedelta(weeks=1)
#: The lines of a log scale, in milliseconds, with their labels.
DECADES = {
    1: "1 ms",
    10: "10 ms",
    100: "100 ms",
    1_000: "1 s",
    10_000: "10 s",
    60_000: "1 min",
    600_000: "10 min",
    3_600_000: "1 h",
    36_000_000: "10 h",
    604_800_000: "7 d",
}
#: The maximum length of a mark's name beside its line.
_LONGEST = 24
#: The width of the plot, and the heights of its upper and lower part, in units.
WIDE, UP, DOWN = 960, 138, 54
#: The maximum number of bars.
_BARS = 60
#: The approximate number of bars in a sparkline, the width of each, and the maximum height.
SPARKS, _SPARK, SPARK_UP = 24, 10, 24
#: The ends of the axis of all strips in milliseconds, 10 ms and 1 h, and its width in units.
_FROM, _TO, _STRIP = 10, 3_600_000, 1000
#: The marks of that axis.
_MARKS = (10, 100, 1_000, 10_000, 60_000, 600_000, 3_600_000)
_SHOWN_MARKS = {10: "10 ms", 1_000: "1 s", 60_000: "1 min", 3_600_000: "1 h"}


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
            height = _height(value, top, UP)
            base -= height
            if height:
                up.append((kind, x, round(base, 1), w, height, part))
        base = 0.0
        for kind, value in (("retrying", bad[index]), ("dead", dead[index])):
            height = _height(value, low, DOWN)
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
        "per": _round(step),
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
    moment = _moment(at.astimezone(zone), step)
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


def strip(percentiles: Any, was: int | None = None) -> dict[str, Any] | None:
    """Draw percentiles on the common axis of all strips; *was* is the earlier p95."""
    if not percentiles.count:
        return None
    p50, p95, p99 = (percentiles.p50, percentiles.p95, percentiles.p99)
    return {
        "p50": log_x(p50),
        "p95": log_x(p95),
        "p99": log_x(p99),
        "was": None if was is None else log_x(was),
        "value": p95,
        "label": ", ".join(
            f"{name} {plain_duration(value)}"
            for name, value in (("p50", p50), ("p95", p95), ("p99", p99))
        ),
    }


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
        "label": f"most {number(top)}, {_moment(at, size * step)}",
    }


def log_x(milliseconds: float) -> int:
    """Return the position of a duration on the axis of the strips.

    Example:
      >>> [log_x(ms) for ms in (0, 10, 1000, 600_000, 10**9)]
      [0, 0, 360, 860, 1000]
    """
    inside = min(max(milliseconds, _FROM), _TO)
    return round(_STRIP * math.log(inside / _FROM) / math.log(_TO / _FROM))


def latency(
    profile: Any, was: Any, zone: tzinfo, dots: Sequence[tuple[datetime, int, bool]] = ()
) -> dict[str, Any] | None:
    """Draw how long the jobs of one type took over time, on a log scale, and how many ended.

    Parameters:
      profile: The statistics of the period.
      was: The same a week before, or None.
      zone: The zone that times are shown in.
      dots: Single jobs, if there are few: when each ended, its duration, and whether it is dead.

    Returns:
      The drawing; None if nothing ended.
    """
    size = bars_of(len(profile.times))
    step = profile.step * size
    times = profile.times[::size]
    parts = [
        _merged(profile.durations[at : at + size]) for at in range(0, len(profile.times), size)
    ]
    shares = (0.5, 0.95, 0.99)
    lines: list[list[int | None]] = [[part.percentile(s) for part in parts] for s in shares]
    before = [] if was is None else [part.percentile(0.95) for part in was.durations]
    all_values = [v for values in (*lines, before) for v in values if v is not None]
    all_values += [ms for _, ms, _ in dots]
    if not all_values or not times:
        return None
    low, high = _decades(all_values)
    scale = math.log(high / low)

    def y(value: float | None) -> float | None:
        return None if value is None else math.log(min(max(value, low), high) / low) / scale

    width = WIDE / len(times)
    xs = [(index + 0.5) * width for index in range(len(times))]
    span = (profile.until - profile.since) / timedelta(milliseconds=1)
    p50, p95, p99 = ([y(value) for value in values] for values in lines)
    if was is not None:
        length = len(was.times)
        before_xs = [(index + 0.5) * WIDE / max(1, length) for index in range(length)]
    hits = [
        hit(
            (index * width, width),
            at,
            step,
            zone=zone,
            values=[
                *(plain_duration(values[index]) for values in lines),
                number(_ended(profile, index, size, ("finished", "skipped", "dead"))),
                number(_ended(profile, index, size, ("dead",))),
            ],
            label=f"p95 {plain_duration(lines[1][index])}",
        )
        for index, at in enumerate(times)
    ]
    ended = [_ended(profile, n, size, ("finished", "skipped")) for n in range(len(times))]
    dead = [_ended(profile, n, size, ("dead",)) for n in range(len(times))]
    top = nice(max(a + b for a, b in zip(ended, dead, strict=True)))
    return {
        "band": _band(xs, p50, p95),
        "p50": line(xs, p50, 1, HIGH),
        "p95": line(xs, p95, 1, HIGH),
        "p99": line(xs, p99, 1, HIGH),
        "was": line(before_xs, [y(v) for v in before], 1, HIGH) if was is not None else "",
        "dots": [
            (
                round(WIDE * ((at - profile.since) / timedelta(milliseconds=1)) / span, 1),
                round(HIGH * (1 - (y(ms) or 0)), 1),
                is_dead,
            )
            for at, ms, is_dead in dots
        ],
        "scale": [
            (round(HIGH * (1 - (y(ms) or 0)), 1), text)
            for ms, text in DECADES.items()
            if low <= ms <= high
        ],
        "ends": _ends({"p50": p50, "p95": p95, "p99": p99}),
        "bars": _stacked(ended, dead, width, top),
        "top": top,
        "hits": hits,
        "per": _round(step),
        "axis": time_axis(times, step, zone),
    }


#: The heights of the two plots of a job type.
HIGH, LOW = 150, 44


def _merged(parts: Iterable[Histogram]) -> Histogram:
    whole = Histogram()
    for part in parts:
        whole.merge(part)
    return whole


def _decades(values: Sequence[int]) -> tuple[int, int]:
    """Return the lines of the log scale between which all values are."""
    known = list(DECADES)
    low = max((d for d in known if d <= max(1, min(values))), default=known[0])
    high = min((d for d in known if d >= max(values)), default=known[-1])
    return (low, high) if low < high else (low, known[min(len(known) - 1, known.index(low) + 1)])


def _ended(profile: Any, index: int, size: int, outcomes: Sequence[str]) -> int:
    at = index * size
    return sum(sum(profile.series[outcome][at : at + size]) for outcome in outcomes)


def _band(xs: Sequence[float], low: Sequence[float | None], high: Sequence[float | None]) -> str:
    """Draw the area between two lines, in pieces if they have gaps."""
    pieces: list[list[tuple[float, float, float]]] = [[]]
    for x, a, b in zip(xs, low, high, strict=True):
        if a is None or b is None:
            pieces.append([])
        else:
            pieces[-1].append((x, HIGH * (1 - a), HIGH * (1 - b)))
    path = []
    for piece in pieces:
        if len(piece) > 1:
            there = "L".join(f"{x:.1f} {top:.1f}" for x, _, top in piece)
            back = "L".join(f"{x:.1f} {bottom:.1f}" for x, bottom, _ in reversed(piece))
            path.append(f"M{there}L{back}z")
    return "".join(path)


def _ends(lines: dict[str, Sequence[float | None]]) -> list[tuple[float, str]]:
    """Return the labels of lines with their heights at the right end, without overlaps."""
    last = {
        name: next((v for v in reversed(values) if v is not None), None)
        for name, values in lines.items()
    }
    placed: list[tuple[float, str]] = []
    for name, value in last.items():
        if value is None:
            continue
        at = HIGH * (1 - value) + 4
        if placed and placed[-1][0] - at < 15:
            at = placed[-1][0] - 15
        placed.append((round(max(10.0, at), 1), name))
    return placed


def _stacked(
    ended: Sequence[int], dead: Sequence[int], width: float, top: int
) -> list[tuple[str, float, float, float, float, bool]]:
    gap = min(6.0, width * 0.3)
    bars = []
    for index, values in enumerate(zip(ended, dead, strict=True)):
        base = float(LOW)
        for kind, value in zip(("ink2", "dead"), values, strict=True):
            height = _height(value, top, LOW)
            base -= height
            if height:
                place = round(index * width + gap / 2, 1), round(base, 1), round(width - gap, 1)
                bars.append((kind, *place, height, index == len(ended) - 1))
    return bars


def distribution(now: Histogram, was: Histogram | None) -> dict[str, Any] | None:
    """Draw the distribution of durations on a log scale, with that of the week before.

    Returns:
      The drawing; None if there are none.
    """
    if not now:
        return None
    both = [*now, *(was or {})]
    first, last = min(both), max(both) + 1
    size = max(1, math.ceil((last - first) / 24))
    columns = list(range(first, last, size))
    counts = [sum(now.get(n, 0) for n in range(c, c + size)) for c in columns]
    earlier = Histogram() if was is None else was
    before = [sum(earlier.get(n, 0) for n in range(c, c + size)) for c in columns]
    scale = now.count / max(1, sum(before))
    usual = [value * scale for value in before]
    top = max(*counts, *usual, 1)
    width = WIDE / len(columns)
    bars = []
    for index, column in enumerate(columns):
        low, high = BOUNDS[column], BOUNDS[min(len(BOUNDS) - 1, column + size)]
        height = _height(counts[index], round(top), HIST)
        words = f"duration:{low}ms..{high - 1}ms"
        label = f"{plain_duration(low)} to {plain_duration(high)}"
        text = f"{number(counts[index])} job{'s' * (counts[index] != 1)}"
        bars.append((round(index * width, 1), round(width, 1), height, words, f"{label}: {text}"))
    outline = "".join(
        f"L{index * width:.1f} {HIST - HIST * v / top:.1f}L{(index + 1) * width:.1f} "
        f"{HIST - HIST * v / top:.1f}"
        for index, v in enumerate(usual)
    )
    marks = range(0, len(columns) + 1, max(1, len(columns) // 4))
    return {
        "bars": bars,
        "was": f"M0 {HIST}{outline}L{WIDE} {HIST}" if was else "",
        "axis": [
            (
                round(100 * n / len(columns), 2),
                plain_duration(BOUNDS[min(len(BOUNDS) - 1, first + n * size)]),
                "start" if n == 0 else "end" if n == len(columns) else "middle",
            )
            for n in marks
        ],
    }


#: The height of a distribution.
HIST = 110


#: The lines of the strips, and the texts below them, in percent.
STRIP_MARKS = [log_x(mark) for mark in _MARKS]
STRIP_AXIS = [(log_x(mark) / 10, text) for mark, text in _SHOWN_MARKS.items()]


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


def bars_of(steps: int) -> int:
    """Return the number of steps per bar, for at most the maximum number of bars."""
    size = max(1, math.ceil(steps / _BARS))
    return next((s for s in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 24, 30) if s >= size), size)


def _gathered(stats: Any) -> tuple[list[Any], int, dict[str, list[int]]]:
    """Merge steps into at most the maximum number of bars."""
    size = bars_of(len(stats.times))
    series = {
        name: [sum(values[at : at + size]) for at in range(0, len(values), size)]
        for name, values in stats.series.items()
    }
    return stats.times[::size], stats.step * size, series


def _round(step: int) -> str:
    """Format a round duration without zero parts: ``30 min``, ``2 d``."""
    return re.sub(r"(:00|\.0)(?=\u00a0)", "", plain_duration(step))


def _height(value: int, top: int, height: int) -> float:
    """Return a bar's height; nonzero values are always visible."""
    return round(max(1.0, height * value / top), 1) if value else 0.0


def _moment(at: datetime, step: int) -> str:
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
