"""Changes in words: the current figure, and the earlier one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dramatiq_joblog.payload.durations import plain

from .display import number, percent

if TYPE_CHECKING:
    from dramatiq_joblog.statistics.changes import Change


#: The figure of a job type that each kind of change is about.
WHAT = {
    "duration": "p95",
    "queue_time": "in its queue, p95",
    "failed": "failed runs",
    "jobs": "jobs",
    "error": "runs",
    "new": "jobs",
    "silent": "jobs",
}


def amount(change: Change, value: float) -> str:
    """Format a figure of a change: a duration, a share or a count."""
    if change.kind in {"duration", "queue_time"}:
        return plain(value)
    if change.kind == "failed":
        return percent(value)
    return number(round(value)) if value >= 10 else f"{value:.2g}"


def in_words(change: Change) -> tuple[str, str]:
    """Format a change: the current figure, and the earlier one."""
    factor = change.factor or 0.0
    if change.kind == "silent":
        return "silent", f"usually {round(change.before)} in this time"
    if change.kind == "new":
        return "new", "no jobs in the weeks before"
    if change.kind == "queue_time":
        waits = f"waits {plain(change.now)}" if factor > 1 else "waits less"
        return waits, f"in its queue, usually {plain(change.before)}"
    if change.kind == "failed":
        return f"{percent(change.now)} fail", f"usually {percent(change.before)}"
    if change.kind == "jobs":
        how = f"{times(factor)} as many" if factor > 1 else f"{times(1 / factor)} fewer"
        return "", f"{how} jobs"
    how = f"{times(factor)} slower" if factor > 1 else f"{times(1 / factor)} faster"
    return how, f"usually {plain(change.before)}"


def times(factor: float) -> str:
    """Format a factor."""
    return f"{factor:.1f} \u00d7" if factor < 10 else f"{factor:.0f} \u00d7"
