"""Secrets in texts: values next to the name of a secret, and values with a typical form.

It knows texts only; :mod:`.redaction` knows values.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Replaces what was removed.
REDACTED = "[redacted]"

_NO_LETTER = re.compile(r"[\W_]+")
# A password may contain characters that it should not, such as a slash; a port may not.
_IN_URL = re.compile(
    r"(://[^\s/:@?#\"']*:)(?:[^\s/?#\"']{1,300}|(?!\d+[/?#])"
    r"(?:[^\s\"']|[\"'](?![\s,:;)\]}>]|$)){1,300})(?=@)"
)
#: The same within the query of another.
_IN_QUOTED_URL = re.compile(r"(%3A%2F%2F[^\s/%&]*%3A)[^\s&/]{1,300}?(?=%40)", re.IGNORECASE)
#: A token in place of a user name, as in ``https://x1y2z3...@github.com``.
_TOKEN_IN_URL = re.compile(
    r"(https?://)(?=[^\s/:@?#\"']*\d)[^\s/:@?#\"'%]{16,300}(?=@)", re.IGNORECASE
)
_BEARER = re.compile(
    r"(^\s*bearer\s+|^\s*(?:basic|token)\s+(?=\S*[\d=])|"
    r"authorization['\"]?\s*[:=]\s*['\"]?\s*(?:bearer|basic|token)\s+)[^\s\"',]+"
    r"|(\bbearer\s+)[\w.~+/=-]{16,}",
    re.IGNORECASE,
)
_PEM = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:(?=-----END [A-Z ]*PRIVATE KEY-----)|$)", re.DOTALL
)
#: Where a value follows its name: ``password='x'``, ``"api_key": "x"``, ``?token=x``,
#: ``'pin' => 1``, ``--password x``; in a nested document its quotes are escaped.
_NAMED = re.compile(
    r"(?<![\w.-])(?P<option>--?)?(?P<name>[A-Za-z_][\w.-]{0,99})"
    r"(?:\s*:?=>?\s*|\\*['\"]\s*(?::|=>)\s*|:\s*(?=\S)|(?(option)[ \t]+(?=[^\s-])|(?!)))"
    r"(?:(?:basic|bearer|token) )?",
    re.IGNORECASE,
)
#: The beginning of a value in escaped quotes.
_ESCAPED = re.compile(r"\\+['\"]")
#: The start of an element, as in ``<password>x</password>``.
_ELEMENT = re.compile(r"<([\w:.-]{1,100})(?:\s[^<>]*)?(?<!/)>")
#: A text with this many kinds of unclosed elements is not a document.
_MANY = 100
_OPENING, _CLOSING = "([{<", ")]}>"
#: Words that an error's text may use in another sense: ``unexpected token: ')'``.
_PROSE = ("auth", "cookie", "pin", "session", "token", "tokens")


def digest_of(text: str) -> str:
    """Return a digest that replaces a secret where equal secrets must stay equal."""
    hashed = hashlib.sha256(b"dramatiq_joblog:" + text.encode(errors="surrogatepass"))
    return f"sha256:{hashed.hexdigest()[:20]}"


def scrub_key(text: str) -> str:
    """Replace passwords of URLs in a key by digests, so that equal keys stay equal."""
    if "://" not in text or "@" not in text:
        return text
    return _IN_URL.sub(lambda found: found[1] + digest_of(found[0]), text)


def fold_name(name: str) -> str:
    """Return a name in lower case, with only its letters and digits."""
    return _NO_LETTER.sub("", name).lower()


def scrub(text: str) -> str:
    """Remove passwords in URLs, bearer tokens and private keys from a text.

    Example:
      >>> scrub("postgresql://joe:hunter2@db/shop is down")
      'postgresql://joe:[redacted]@db/shop is down'

    Returns:
      The same object if there is nothing to remove.
    """
    if "://" in text and "@" in text:
        text = _changed(text, _IN_URL.sub(rf"\g<1>{REDACTED}", text))
        text = _changed(text, _TOKEN_IN_URL.sub(rf"\g<1>{REDACTED}", text))
    if "%40" in text:
        text = _changed(text, _IN_QUOTED_URL.sub(rf"\g<1>{REDACTED}", text))
    if " " in text and _may_authorize(text.lower()):
        text = _changed(text, _BEARER.sub(rf"\g<1>\g<2>{REDACTED}", text))
    if "PRIVATE KEY-----" in text:
        text = _changed(text, _PEM.sub(rf"\g<1>{REDACTED}", text))
    return text


def _may_authorize(text: str) -> bool:
    return "bearer" in text or "basic " in text or "token " in text


def scrub_named(text: str, is_secret: Callable[[str], bool], *, prose: bool = False) -> str:
    """Scrub a text, and also remove what follows the name of a secret, as in a ``repr``.

    In *prose*, a word that also has other meanings does not count as a name before a colon.
    """
    text = scrub(text)
    if "</" in text:
        text = _without(text, _elements(text, is_secret))
    if not ("=" in text or ":" in text or "--" in text or " -" in text):
        return text
    return _without(text, _values(text, is_secret, prose=prose))


def _without(text: str, places: Iterable[tuple[int, int, str]]) -> str:
    """Return *text* with some parts replaced; the same object if there are none."""
    parts: list[str] = []
    taken = 0
    for start, end, instead in places:
        if start >= taken:
            parts += text[taken:start], instead
            taken = end
    return text if not parts else "".join([*parts, text[taken:]])


def _values(
    text: str, is_secret: Callable[[str], bool], *, prose: bool
) -> Iterator[tuple[int, int, str]]:
    """Yield the places of secret values, and their replacements."""
    taken = 0
    for match in _NAMED.finditer(text):
        start, name = match.end(), match["name"]
        if match.start() < taken or not is_secret(name) or text[start : start + 2] == "//":
            continue
        if prose and text[match.end("name")] == ":" and fold_name(name) in _PROSE:
            continue
        taken, quote = _end_of_value(text, start)
        if text[start:taken].strip("'\"") not in ("", "None", "True", "False", REDACTED):
            yield start, taken, f"{quote}{REDACTED}{quote}"


def _elements(text: str, is_secret: Callable[[str], bool]) -> Iterator[tuple[int, int, str]]:
    """Yield the places of secret elements' contents in XML, and their replacements."""
    taken = 0
    # If no closing tag was found once, there is none further on: one search per name is enough.
    unclosed: set[str] = set()
    for match in _ELEMENT.finditer(text):
        name = match[1]
        if match.start() < taken or name in unclosed or not is_secret(name.rpartition(":")[2]):
            continue
        if len(unclosed) == _MANY:
            return
        end = text.find(f"</{name}", match.end())
        if end < 0:
            unclosed.add(name)
        elif end > match.end():
            taken = end
            yield match.end(), end, REDACTED


def _end_of_value(text: str, start: int) -> tuple[int, str]:
    """Return the end of the value that begins at *start*, and the quote around it.

    Quotes and brackets belong to the value.
    """
    escaped = _ESCAPED.match(text, start)
    if escaped is not None:
        end = text.find(escaped[0], escaped.end())
        return (len(text) if end < 0 else end + len(escaped[0])), escaped[0]
    return _end_of_plain_value(text, start), "'" if text[start : start + 1] in tuple("'\"") else ""


def _end_of_plain_value(text: str, start: int) -> int:
    depth, quote, at = 0, "", start
    while at < len(text):
        char = text[at]
        if quote:
            at += char == "\\"
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            if not depth:
                return at
            depth -= 1
        elif not depth and (char.isspace() or char in ",;&"):
            return at
        at += 1
    return len(text)


def _changed(text: str, new: str) -> str:
    """Return the original object if nothing changed, so that a change can be seen by identity."""
    return text if new == text else new
