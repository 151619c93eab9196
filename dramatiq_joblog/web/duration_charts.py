"""Charts of how long jobs take, on a log scale."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.reading.display import number
from dramatiq_joblog.statistics.histogram import BOUNDS, Histogram

from .axes import WIDE, bars_of, height_of, hit, line, nice, step_text, time_axis
from .formats import plain_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime, tzinfo

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
#: The ends of the axis of all strips in milliseconds, 10 ms and 1 h, and its width in units.
_FROM, _TO, _STRIP = 10, 3_600_000, 1000
#: The marks of that axis.
_MARKS = (10, 100, 1_000, 10_000, 60_000, 600_000, 3_600_000)
_SHOWN_MARKS = {10: "10 ms", 1_000: "1 s", 60_000: "1 min", 3_600_000: "1 h"}
#: The heights of the two plots of a job type.
HIGH, LOW = 150, 44
#: The height of a distribution.
HIST = 110


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
    scale = _LogScale(all_values)
    width = WIDE / len(times)
    xs = [(index + 0.5) * width for index in range(len(times))]
    span = (profile.until - profile.since) / timedelta(milliseconds=1)
    p50, p95, p99 = (scale.shares(values) for values in lines)
    before_xs = [(index + 0.5) * WIDE / len(before) for index in range(len(before))]
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
        "was": line(before_xs, scale.shares(before), 1, HIGH) if before else "",
        "dots": [
            (
                round(WIDE * ((at - profile.since) / timedelta(milliseconds=1)) / span, 1),
                scale.y(ms),
                is_dead,
            )
            for at, ms, is_dead in dots
        ],
        "scale": scale.lines,
        "ends": _ends({"p50": p50, "p95": p95, "p99": p99}),
        "bars": _stacked(ended, dead, width, top),
        "top": top,
        "hits": hits,
        "per": step_text(step),
        "axis": time_axis(times, step, zone),
    }


def _merged(parts: Iterable[Histogram]) -> Histogram:
    whole = Histogram()
    for part in parts:
        whole.merge(part)
    return whole


class _LogScale:
    """A vertical log scale, between the lines around some durations."""

    def __init__(self, values: Sequence[int]) -> None:
        known = list(DECADES)
        low = max((d for d in known if d <= max(1, min(values))), default=known[0])
        high = min((d for d in known if d >= max(values)), default=known[-1])
        if low >= high:
            high = known[min(len(known) - 1, known.index(low) + 1)]
        self._low, self._high = low, high

    def share(self, value: float) -> float:
        """Return the position of a duration, from 0 at the bottom to 1."""
        inside = min(max(value, self._low), self._high)
        return math.log(inside / self._low) / math.log(self._high / self._low)

    def shares(self, values: Iterable[int | None]) -> list[float | None]:
        """Return the positions of durations; None where there is none."""
        return [None if value is None else self.share(value) for value in values]

    def y(self, value: float) -> float:
        """Return the position of a duration in units from the top."""
        return round(HIGH * (1 - self.share(value)), 1)

    @property
    def lines(self) -> list[tuple[float, str]]:
        """The lines of the scale, with their labels."""
        return [(self.y(ms), text) for ms, text in DECADES.items() if self._low <= ms <= self._high]


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
            height = height_of(value, top, LOW)
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
        height = height_of(counts[index], round(top), HIST)
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


#: The lines of the strips, and the texts below them, in percent.
STRIP_MARKS = [log_x(mark) for mark in _MARKS]
STRIP_AXIS = [(log_x(mark) / 10, text) for mark, text in _SHOWN_MARKS.items()]
