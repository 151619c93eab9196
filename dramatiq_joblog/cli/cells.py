"""The cells of one row: for people as text, for programs as a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from dramatiq_joblog.states import DeadReason, State

from .style import QUIET, bar, colour, duration, line, number, rough

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

#: Characters of a jid that are shown if there is no room for all; commands accept them.
SHORT_JID = 8

_BAR = 8


def kind(job: Any) -> str:
    """Return the name of a job for people: its type, otherwise its actor."""
    return str(job.job_type or job.actor)


def since(job: Any) -> Any:
    """Return the instant since which a job is in its state."""
    if job.state == State.STARTED:
        return job.started_at
    return job.finished_at or job.waiting_since or job.updated_at


def took(job: Any, now: datetime) -> Any:
    """Return the milliseconds of the last or current run; None before the first."""
    if job.state == State.STARTED and job.started_at is not None:
        return max(0, round((now - job.started_at).total_seconds() * 1000))
    return job.duration


def attempts(job: Any) -> Text:
    """Return the attempt and the number of allowed ones, such as ``2/6``."""
    text = Text(str(job.attempt))
    if job.max_retries is not None:
        text.append(f"/{job.max_retries + 1}", QUIET)
    return text


def why(job: Any, now: datetime) -> Text:
    """Return the reason for a job's state; nothing for a finished job."""
    reasons: dict[str, Callable[[], Text]] = {
        State.ENQUEUED: lambda: Text(f"queue {line(job.queue)}", QUIET),
        State.DELAYED: lambda: Text(due(job.eta, now)),
        State.WAITING: lambda: Text(f"for {line(job.section)}"),
        State.STARTED: lambda: progress(job.progress),
        State.RETRYING: lambda: Text(
            ", ".join(filter(None, [due(job.eta, now), line(job.error_type or "")]))
        ),
        State.LOST: lambda: Text("its worker is gone"),
        State.DEAD: lambda: _died_of(job),
        State.SKIPPED: lambda: Text(line(job.skip_reason or ""), QUIET),
    }
    return reasons.get(job.state, Text)()


def _died_of(job: Any) -> Text:
    reason = Text(line(job.dead_reason or ""))
    if job.dead_reason == DeadReason.CANCELLED and job.error_type:
        # The reason is not its last error.
        return Text.assemble(reason, ", ", error(job))
    return error(job) or reason


def due(eta: datetime | None, now: datetime) -> str:
    """Return when a job is due to run next."""
    if eta is None:
        return ""
    left = (eta - now).total_seconds() * 1000
    if left <= 0:
        return "due now"
    return f"in {duration(left) if left < 1000 else rough(left)}"


def error(row: Any, style: str = QUIET) -> Text:
    """Return the class and text of a job's or a run's error, on one line."""
    if not row.error_type:
        return Text()
    text = Text(line(row.error_type))
    if row.error_message:
        text.append(f": {line(row.error_message)}", style)
    return text


def progress(reported: Mapping[str, Any] | None, width: int = _BAR) -> Text:
    """Return a job's progress: a bar with a percentage, or the amount done."""
    if not reported or not isinstance(reported, dict):
        return Text()
    done, total, text = (
        reported.get("done"),
        reported.get("total"),
        line(reported.get("text") or ""),
    )
    parts = Text()
    if isinstance(done, int | float) and isinstance(total, int | float) and total > 0:
        parts.append_text(bar(done / total, width, colour(State.STARTED)))
        parts.append(f" {min(done / total, 1):.0%}".replace("%", "\u202f%"))
    elif isinstance(done, int | float):
        parts.append(number(int(done)))
    if text:
        parts.append(f" {text}" if parts else text, QUIET)
    return parts
