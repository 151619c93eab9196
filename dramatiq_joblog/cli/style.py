"""How the log looks in a terminal: shapes, colours, numbers and times, without any I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.text import Text

from dramatiq_joblog.states import Outcome, State

if TYPE_CHECKING:
    from datetime import datetime

#: What is not the reader's first concern.
QUIET = "dim"
TITLE = "bold"

#: The shape and the colour of each state.  Each colour has a contrast of more than 4 to 1 on
#: white and on near black alike: a terminal does not say which of them it is.
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
    Outcome.RETRIED: State.RETRYING,
    Outcome.DEAD: State.DEAD,
    Outcome.INTERRUPTED: State.LOST,
    Outcome.SKIPPED: State.SKIPPED,
    Outcome.WAITED: State.WAITING,
}

_NARROW_SPACE = "\u202f"
_SECOND, _MINUTE, _HOUR, _DAY = 1000, 60_000, 3_600_000, 86_400_000

# What could move the cursor, ring, or turn the direction of writing.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def safe(text: Any) -> str:
    """Return what a job or a person wrote so that a terminal takes it as text; lines stay."""
    return _UNSAFE.sub(lambda m: m[0].encode("unicode_escape").decode(), str(text))


def line(text: Any) -> str:
    """Return *text* on one line, as :func:`safe` besides."""
    return " ".join(safe(text).split())


def colour(state: str | None) -> str:
    """Return the style of a state, or of the outcome of a run."""
    return _of(state)[1]


def shape(state: str | None) -> Text:
    """Return the shape of a state, or of the outcome of a run."""
    glyph, style = _of(state)
    return Text(glyph, style)


def mark(state: str | None) -> Text:
    """Return shape and word of a state, or of the outcome of a run."""
    glyph, style = _of(state)
    return Text(f"{glyph} {line(state)}", style)


def _of(state: str | None) -> tuple[str, str]:
    for known in (STATES, OUTCOMES):
        if state in known:
            found: Any = known[state]  # type: ignore[index]
            return found if isinstance(found, tuple) else STATES[found]
    return "?", ""


def number(count: int, *, capped: bool = False) -> str:
    """Return ``10 000``, or ``10 000+`` for at least so many."""
    return f"{count:,}".replace(",", _NARROW_SPACE) + ("+" if capped else "")


def duration(milliseconds: float | None) -> str:
    """Return ``840 ms``, ``38.2 s``, ``1:04 min``, ``2:04 h``, ``12.5 d``; empty for None."""
    return " ".join(_figure(milliseconds))


def aligned(milliseconds: float | None) -> Text:
    """Return a duration whose digits end where those of the line above end."""
    figure, unit = _figure(milliseconds) or ("", "")
    return Text.assemble(figure, (f" {unit:<3}", QUIET)) if figure else Text()


def _figure(milliseconds: float | None) -> tuple[str, ...]:
    if milliseconds is None:
        return ()
    value = max(0, round(milliseconds))
    if value < _SECOND:
        return str(value), "ms"
    if round(value, -2) < _MINUTE:
        return f"{value / _SECOND:.1f}", "s"
    if (seconds := round(value / _SECOND)) < _HOUR // _SECOND:
        return f"{seconds // 60}:{seconds % 60:02}", "min"
    if (minutes := round(value / _MINUTE)) < 2 * _DAY // _MINUTE:
        return f"{minutes // 60}:{minutes % 60:02}", "h"
    return f"{value / _DAY:.1f}", "d"


def ago(instant: datetime | None, now: datetime) -> str:
    """Return ``41 s ago`` or ``in 14 s``; empty for None."""
    if instant is None:
        return ""
    milliseconds = (now - instant).total_seconds() * 1000
    span = rough(abs(milliseconds))
    return f"{span} ago" if milliseconds > -500 else f"in {span}"


def age(instant: datetime | None, now: datetime) -> str:
    """Return how long ago something was, for a column that says so; empty for None."""
    return "" if instant is None else rough(max(0.0, (now - instant).total_seconds() * 1000))


def rough(milliseconds: float) -> str:
    """Return ``41 s``, ``8 min``, ``3 h``, ``2 d``."""
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if milliseconds >= size:
            return f"{int(milliseconds // size)} {unit}"
    return f"{int(milliseconds // _SECOND)} s"


def exact(instant: datetime | None) -> str:
    """Return ``2026-11-24 07:08:12.123 UTC``; empty for None."""
    if instant is None:
        return ""
    return f"{instant:%Y-%m-%d %H:%M:%S}.{instant.microsecond // 1000:03} UTC"


def bar(share: float, width: int, style: str) -> Text:
    """Return a bar of *width* cells, *share* of it full."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return Text.assemble(("━" * full, style), ("─" * (width - full), QUIET))
