"""Display of numbers, durations, instants and invisible characters, on pages and in terminals."""

from __future__ import annotations

import re
import shlex
from datetime import timedelta, timezone
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.payload.durations import split_duration

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "escaped_json",
    "exact",
    "number",
    "percent",
    "relative",
    "rough",
    "shell_word",
    "split_duration",
    "spreadsheet_cell",
    "visible",
]

_SECOND, _MINUTE, _HOUR, _DAY = 1000, 60_000, 3_600_000, 86_400_000

_NARROW_SPACE = "\u202f"

# Letters of scripts in which joiners are significant, and emoji that joiners combine.
_JOINING = (
    "\u0620-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ua8e0-\ua8ff\ufb50-\ufdff\ufe70-\ufefc"
)
_PICTURES = "\u2190-\u2bff\ufe0f\U0001f000-\U0001faff"
# Characters that could move the cursor, ring the bell or change the writing direction; joiners are
# legitimate only within the scripts above.
_INVISIBLE = re.compile(
    f"(?!(?<=[{_JOINING}])[\u200c\u200d](?=[{_JOINING}])|(?<=[{_PICTURES}])\u200d(?=[{_PICTURES}]))"
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
#: Spreadsheets execute cells that begin with one of these.
_FORMULA = (*"=+-@\uff1d\uff0b\uff0d\uff20", "\t", "\r", "\n")


def number(value: int, *, capped: bool = False) -> str:
    """Format a number: ``10 000``, or ``10 000+`` if it is capped."""
    return f"{value:,}".replace(",", _NARROW_SPACE) + ("+" if capped else "")


def percent(share: float) -> str:
    """Format a share of 1 in percent, with one decimal if useful.

    Example:
      >>> percent(0.0), percent(0.109), percent(1.0), percent(0.0004)
      ('0 %', '10.9 %', '100 %', '<0.1 %')
    """
    if 0 < share < 0.001:
        return "<0.1 %"
    plain = f"{100 * share:.1f}".removesuffix(".0")
    return f"{plain} %"


def rough(milliseconds: float) -> str:
    """Format an age as one number: ``41 s``, ``8 min``, ``30 h``, ``2 d``."""
    value = max(0, milliseconds)
    for unit, size, until in (("s", _SECOND, 60), ("min", _MINUTE, 60), ("h", _HOUR, 48)):
        if value // size < until:
            return f"{int(value // size)} {unit}"
    return f"{int(value // _DAY)} d"


def relative(instant: datetime, now: datetime) -> str:
    """Format an instant relative to *now*: ``41 s ago``, ``in 14 s``."""
    passed = (now - instant) / timedelta(milliseconds=1)
    return f"in {rough(-passed)}" if passed < 0 else f"{rough(passed)} ago"


def exact(instant: datetime) -> str:
    """Format an instant: ``2026-11-24 07:08:12.123 UTC``."""
    utc = instant.astimezone(timezone.utc)
    return f"{utc:%Y-%m-%d %H:%M:%S}.{utc.microsecond // 1000:03} UTC"


def visible(text: Any) -> str:
    r"""Return text with invisible characters escaped; newlines and tabs stay.

    Example:
      >>> visible("a\x1b[2Jb")
      'a\\x1b[2Jb'
    """
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


#: Text that a shell does not interpret.
_PLAIN = re.compile(r"[\w@%+=:,./ -]+", re.ASCII)


def shell_word(text: Any, *, spaces: bool = False) -> str:
    """Quote a text for a shell, which might otherwise execute parts of it.

    Parameters:
      text: The text.
      spaces: Whether plain words stay separate words, such as those of a search.

    Example:
      >>> shell_word("a b"), shell_word("state:dead type:import", spaces=True)
      ("'a b'", 'state:dead type:import')
    """
    plain = " ".join(visible(text).split())
    return plain if spaces and _PLAIN.fullmatch(plain) else shlex.quote(plain)


def last_notice(state: Any) -> str:
    """Return which notice of an alert was sent last, or that the last one was given up."""
    return "given up" if state.error and not state.pending else state.sent or ""


def not_sent(state: Any) -> str:
    """Return why the last notice of an alert was not sent; empty if it was."""
    return f"{state.pending or 'the notice'} was not sent: {state.error}" if state.error else ""


def escaped_json(document: str) -> str:
    r"""Return an equivalent JSON document with invisible characters escaped.

    Example:
      >>> escaped_json('"\u202egpj"') == r'"\u202egpj"'
      True
    """
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def spreadsheet_cell(value: Any) -> Any:
    """Return a value for a CSV cell; a text that a spreadsheet would execute begins with ``'``."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if value.startswith(_FORMULA) else text
