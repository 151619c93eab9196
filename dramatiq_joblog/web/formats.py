"""How numbers, times and texts are shown: the filters of the templates."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from dramatiq_joblog.payload.redaction import REDACTED
from dramatiq_joblog.schema.models import to_millis

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dramatiq_joblog.reading.search import Term

_SECOND, _MINUTE, _HOUR, _DAY = 1000, 60_000, 3_600_000, 86_400_000


def number(value: int) -> str:
    """Group the digits of *value* by narrow spaces."""
    return f"{value:,}".replace(",", "\u202f")


def count(value: int) -> str:
    """Write a number that may be capped: ``10 000+``."""
    return number(value) + ("+" if getattr(value, "capped", False) else "")


def split_duration(milliseconds: float | None) -> tuple[str, str]:
    """Return the figures and the unit of a duration: three figures, or a clock.

    Example:
      >>> split_duration(840), split_duration(38_240), split_duration(64_000)
      (('840', 'ms'), ('38.2', 's'), ('1:04', 'min'))
    """
    if milliseconds is None:
        return "\u2013", ""
    value = max(0, round(milliseconds))
    if value < _SECOND:
        return str(value), "ms"
    if value < _MINUTE - 50:
        return f"{value / _SECOND:.1f}", "s"
    if value < _HOUR - 500:
        minutes, seconds = divmod(round(value / _SECOND), 60)
        return f"{minutes}:{seconds:02}", "min"
    if value < 2 * _DAY:
        hours, minutes = divmod(round(value / _MINUTE), 60)
        return f"{hours}:{minutes:02}", "h"
    days = value / _DAY
    return (f"{days:.1f}" if days < 10 else f"{days:.0f}"), "d"


def duration(milliseconds: float | None) -> Markup:
    """Write a duration so that the digits of a column end on one line."""
    figures, unit = split_duration(milliseconds)
    if not unit:
        return Markup('<span class="dim">&ndash;</span><span class="u"></span>')
    return Markup('{}<span class="u">{}</span>').format(figures, unit)


def plain_duration(milliseconds: float | None) -> str:
    """Write a duration in running text."""
    return "\u00a0".join(split_duration(milliseconds)).strip()


def rough(milliseconds: float) -> str:
    """Write an age in one figure: ``41 s``, ``8 min``, ``3 h``, ``2 d``."""
    value = max(0, milliseconds)
    for unit, size, until in (("s", _SECOND, 60), ("min", _MINUTE, 60), ("h", _HOUR, 48)):
        if value // size < until:
            return f"{int(value // size)}\u00a0{unit}"
    return f"{int(value // _DAY)}\u00a0d"


def exact(instant: datetime) -> str:
    """Write an instant in full."""
    utc = instant.astimezone(timezone.utc)
    return f"{utc:%Y-%m-%d %H:%M:%S}.{utc.microsecond // 1000:03} UTC"


def relative(instant: datetime, now: datetime) -> str:
    """Write an instant as people say it: ``41 s ago``, ``in 14 s``."""
    passed = (now - instant) / timedelta(milliseconds=1)
    return f"in {rough(-passed)}" if passed < 0 else f"{rough(passed)} ago"


def ago(instant: datetime | None, now: datetime) -> Markup:
    """Write an instant relative to *now*, with the exact one beside it."""
    if instant is None:
        return Markup('<span class="dim">&ndash;</span>')
    return Markup('<time datetime="{}" data-at="{}" title="{}">{}</time>').format(
        instant.isoformat(timespec="milliseconds"),
        to_millis(instant),
        exact(instant),
        relative(instant, now),
    )


def clock(instant: datetime) -> Markup:
    """Write the time of the day, with the exact instant beside it."""
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        instant.isoformat(timespec="milliseconds"), exact(instant), f"{instant:%H:%M:%S}"
    )


def short(jid: str) -> str:
    """Return enough of a jid to tell it from its neighbours."""
    return jid[:8]


def spaced(span: str) -> str:
    """Write ``24h`` as ``24 h``."""
    return re.sub(r"(\d)([a-z])", "\\1\u00a0\\2", span)


def argument(value: Any) -> Markup:
    """Write an argument as Python would, and mark what was redacted."""
    if value == REDACTED:
        return Markup('<span class="redact" title="It is kept from view">redacted</span>')
    if isinstance(value, dict):
        inner = [Markup("{}: {}").format(repr(k), argument(v)) for k, v in value.items()]
        return Markup("{{{}}}").format(Markup(", ").join(inner))
    if isinstance(value, list):
        return Markup("[{}]").format(Markup(", ").join(argument(v) for v in value))
    return escape(repr(value))


_FRAME = re.compile(r'^(  File ".*", line \d+, in )(.+)$')
_ERROR = re.compile(r"^([\w.]+)(: .*)?$")


def traceback(text: str) -> Markup:
    """Mark the functions and the error in a traceback; all of it is text."""
    lines = []
    for line in text.rstrip().splitlines():
        if line == "Traceback (most recent call last):":
            continue
        if frame := _FRAME.match(line):
            lines.append(Markup("{}<b>{}</b>").format(frame[1], frame[2]))
        elif (error := _ERROR.match(line)) and not line.startswith(" "):
            lines.append(Markup("<em>{}</em>{}").format(error[1], error[2] or ""))
        else:
            lines.append(escape(line))
    return Markup("\n").join(lines)


def spell(terms: Iterable[Term]) -> str:
    """Write the words of a search as people type them."""
    return " ".join(_spell(term) for term in terms)


def word(key: str, value: Any) -> str:
    """Write one word of a search; a quote, which no word can hold, is any text there."""
    text = str(value).replace('"', "*")
    return f'{key}:"{text}"' if re.search(r"\s", text) or not text else f"{key}:{text}"


def _spell(term: Term) -> str:
    minus = "-" if term.negated else ""
    if term.key is not None:
        return minus + word(term.key, term.value)
    quoted = re.search(r"[\s:]", term.value) or not term.value
    return minus + (f'"{term.value}"' if quoted else term.value)


FILTERS = {
    "ago": ago,
    "argument": argument,
    "clock": clock,
    "count": count,
    "duration": duration,
    "number": number,
    "plain_duration": plain_duration,
    "short": short,
    "spaced": spaced,
    "traceback": traceback,
}
