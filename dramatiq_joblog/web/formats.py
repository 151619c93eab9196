"""How numbers, times and texts are shown: the template filters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from dramatiq_joblog.payload.secret_texts import REDACTED
from dramatiq_joblog.reading import display
from dramatiq_joblog.reading.display import exact, number, visible
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.schema.query import word

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, tzinfo

    from dramatiq_joblog.reading.search import Term

# No line break between a number and its unit.
_NO_BREAK = str.maketrans(" ", "\u00a0")


def text(value: Any) -> Any:
    """Return a value for display, with invisible characters escaped."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def as_is(value: Any) -> Markup:
    """Return a value unescaped, because it is sent back to the server."""
    return escape(value)


def count(value: int) -> str:
    """Format a number that may be capped: ``10 000+``."""
    return number(value, capped=getattr(value, "capped", False))


def duration(milliseconds: float | None) -> Markup:
    """Format a duration so that the digits of a column are aligned."""
    if milliseconds is None:
        return Markup('<span class="dim">&ndash;</span><span class="u"></span>')
    return Markup('{}<span class="u">{}</span>').format(*display.split_duration(milliseconds))


def plain_duration(milliseconds: float | None) -> str:
    """Format a duration for running text."""
    return "\u2013" if milliseconds is None else "\u00a0".join(display.split_duration(milliseconds))


def rough(milliseconds: float) -> str:
    """Format an age as one number: ``41 s``, ``8 min``, ``30 h``, ``2 d``."""
    return display.rough(milliseconds).translate(_NO_BREAK)


def ago(instant: datetime | None, now: datetime) -> Markup:
    """Format an instant relative to *now*, with the exact one as its title."""
    if instant is None:
        return Markup('<span class="dim">&ndash;</span>')
    return Markup('<time datetime="{}" data-at="{}" title="{}">{}</time>').format(
        instant.isoformat(timespec="milliseconds"),
        to_millis(instant),
        exact(instant),
        display.relative(instant, now).translate(_NO_BREAK),
    )


def clock(instant: datetime, zone: tzinfo) -> Markup:
    """Format the time of day in a zone, with the exact instant as its title."""
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        instant.isoformat(timespec="milliseconds"),
        exact(instant),
        f"{instant.astimezone(zone):%H:%M:%S}",
    )


_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")


def brief(value: Any) -> str:
    """Return a short form of an id: eight characters of a UUID, any other unchanged.

    Example:
      >>> brief("5c78f8cd-3373-45b7-8576-3f6a5bce5af1"), brief("anna@example.org"), brief(7)
      ('5c78f8cd', 'anna@example.org', '7')
    """
    plain = str(value)
    return plain[:8] if _UUID.fullmatch(plain) else plain


def percent(share: float) -> str:
    """Format a share of 1 in percent: ``10.9 %``."""
    return display.percent(share).translate(_NO_BREAK)


def short(jid: str) -> str:
    """Return enough of a jid to distinguish it from its neighbours."""
    return jid[:8]


def spaced(span: str) -> str:
    """Format ``24h`` as ``24 h``."""
    return re.sub(r"(\d)([a-z])", "\\1\u00a0\\2", span)


def argument(value: Any) -> Markup:
    """Format an argument like Python's repr, and mark redacted values."""
    if value == REDACTED:
        return Markup('<span class="redact" title="Its value is hidden">redacted</span>')
    if isinstance(value, dict):
        inner = [Markup("{}: {}").format(repr(k), argument(v)) for k, v in value.items()]
        return Markup("{{{}}}").format(Markup(", ").join(inner))
    if isinstance(value, list):
        return Markup("[{}]").format(Markup(", ").join(argument(v) for v in value))
    return escape(visible(repr(value)))


_FRAME = re.compile(r'^(  File ".*", line \d+, in )(.+)$')
_ERROR = re.compile(r"^([\w.]+)(: .*)?$")


def traceback(whole: str) -> Markup:
    """Highlight the functions and the error in a traceback; everything is escaped."""
    lines = []
    for line in visible(whole).rstrip().splitlines():
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
    """Format the words of a search as users type them."""
    return " ".join(_spell(term) for term in terms)


def _spell(term: Term) -> str:
    minus = "-" if term.negated else ""
    if term.key is not None:
        return minus + word(term.key, term.value)
    quoted = re.search(r"[\s:]", term.value) or not term.value
    return minus + (f'"{term.value}"' if quoted else term.value)


_PLACE = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+)(?:, in (?P<where>.+))?$')
_INSTALLED = re.compile(r"(?:site|dist)-packages[/\\]([^/\\]+)")
_OF_PYTHON = re.compile(r"[/\\]lib[/\\]python[\d.]+[/\\]|^<frozen")


@dataclass
class Frame:
    """A frame of a traceback, and the source text below it."""

    file: str
    line: str
    where: str
    code: str = ""


@dataclass
class Stretch:
    """Consecutive frames of one package, shown or folded together, or the text between such."""

    #: The package of a library; empty for the application's own code.
    package: str = ""
    frames: list[Frame] = field(default_factory=list)
    #: A line that is not a frame: the class and message of the error.
    error: str = ""
    text: str = ""


def stretches(whole: str) -> list[Stretch]:
    """Split a traceback into frames of the application, frames of libraries, and errors."""
    found: list[Stretch] = []
    code: list[str] | None = None
    for line in visible(whole).rstrip().splitlines():
        if line == "Traceback (most recent call last):":
            code = None
        elif place := _PLACE.match(line):
            frame = Frame(place["file"], place["line"], place["where"] or "")
            package = _package(frame.file)
            if not found or found[-1].package != package or not found[-1].frames:
                found.append(Stretch(package))
            found[-1].frames.append(frame)
            code = []
        elif code is not None and line.startswith("    "):
            if not set(line) <= set(" ~^"):
                frame = found[-1].frames[-1]
                frame.code += ("\n" if frame.code else "") + line[4:]
        elif line.strip():
            code = None
            error = _ERROR.match(line) if not line.startswith(" ") else None
            if error is not None and (not found or not found[-1].text):
                found.append(
                    Stretch(error=error[1], text=(error[2] or "").removeprefix(":") + "\n")
                )
            elif found and not found[-1].frames:
                found[-1].text += line + "\n"
            else:
                found.append(Stretch(text=line + "\n"))
    return found


def _package(file: str) -> str:
    installed = _INSTALLED.search(file)
    if installed is not None:
        return installed[1].removesuffix(".py")
    return "Python" if _OF_PYTHON.search(file) else ""


def capitalize_first(text: str) -> str:
    """Capitalize the beginning of a sentence; names in it stay unchanged."""
    return text[:1].upper() + text[1:]


FILTERS = {
    "ago": ago,
    "argument": argument,
    "as_is": as_is,
    "brief": brief,
    "capitalize_first": capitalize_first,
    "clock": clock,
    "count": count,
    "duration": duration,
    "number": number,
    "percent": percent,
    "plain_duration": plain_duration,
    "short": short,
    "spaced": spaced,
    "stretches": stretches,
    "traceback": traceback,
}
