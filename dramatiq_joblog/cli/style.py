"""The style of the terminal output: shapes, colours, numbers and times; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from dramatiq_joblog.reading import display
from dramatiq_joblog.reading.display import number, rough
from dramatiq_joblog.reading.display import visible as safe
from dramatiq_joblog.states import Outcome, State

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "QUIET",
    "TITLE",
    "age",
    "ago",
    "aligned",
    "bar",
    "colour",
    "duration",
    "exact",
    "line",
    "mark",
    "number",
    "rough",
    "safe",
    "shape",
]

#: The style of secondary text.
QUIET = "dim"
TITLE = "bold"

#: The shape and the colour of each state.  Each colour has a contrast of more than 4 to 1 both on
#: white and on near black, because a terminal does not report its background.
STATES = {
    State.ENQUEUED: ("○", "#687b98"),
    State.DELAYED: ("◷", "#8369d3"),
    State.WAITING: ("‖", "#a07217"),
    State.STARTED: ("►", "#3876e7"),
    State.RETRYING: ("↻", "#be6124"),
    State.LOST: ("◌", "#be52a2"),
    State.FINISHED: ("✓", "#408861"),
    State.DEAD: ("■", "#d44956"),
    State.SKIPPED: ("»", "#767b81"),
}

#: A run that failed looks like the state that it left its job in.
OUTCOMES = {
    Outcome.FINISHED: State.FINISHED,
    Outcome.RETRIED: State.RETRYING,
    Outcome.DEAD: State.DEAD,
    Outcome.INTERRUPTED: State.LOST,
    Outcome.SKIPPED: State.SKIPPED,
    Outcome.WAITED: State.WAITING,
}


def line(text: Any) -> str:
    """Return *text* on one line, made :func:`safe`."""
    return " ".join(safe(text).split())


def colour(state: str | None) -> str:
    """Return the style of a state, or of the outcome of a run."""
    return _of(state)[1]


def shape(state: str | None) -> Text:
    """Return the shape of a state, or of the outcome of a run."""
    glyph, style = _of(state)
    return Text(glyph, style)


def mark(state: str | None) -> Text:
    """Return the shape and word of a state, or of the outcome of a run."""
    glyph, style = _of(state)
    return Text(f"{glyph} {line(state)}", style)


def _of(state: str | None) -> tuple[str, str]:
    for known in (STATES, OUTCOMES):
        if state in known:
            found: Any = known[state]  # type: ignore[index]
            return found if isinstance(found, tuple) else STATES[found]
    return "?", ""


def duration(milliseconds: float | None) -> str:
    """Return ``840 ms``, ``38.2 s``, ``1:04 min``, ``2:04 h``, ``9.5 d``; empty for None."""
    return "" if milliseconds is None else " ".join(display.split_duration(milliseconds))


def aligned(milliseconds: float | None) -> Text:
    """Return a duration padded so that its digits align with those above."""
    if milliseconds is None:
        return Text()
    figures, unit = display.split_duration(milliseconds)
    return Text.assemble(figures, (f" {unit:<3}", QUIET))


def ago(instant: datetime | None, now: datetime) -> str:
    """Return ``41 s ago`` or ``in 14 s``; empty for None."""
    return "" if instant is None else display.relative(instant, now)


def age(instant: datetime | None, now: datetime) -> str:
    """Return how long ago something was, for a column that says so; empty for None."""
    return "" if instant is None else rough((now - instant).total_seconds() * 1000)


def exact(instant: datetime | None) -> str:
    """Return ``2026-11-24 07:08:12.123 UTC``; empty for None."""
    return "" if instant is None else display.exact(instant)


def bar(share: float, width: int, style: str) -> Text:
    """Return a bar of *width* cells, *share* of it full."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return Text.assemble(("━" * full, style), ("─" * (width - full), QUIET))
