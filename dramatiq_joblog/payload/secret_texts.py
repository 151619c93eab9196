"""What must not be kept of a text: what stands beside a secret's name, and what shows its form.

It knows texts only; :mod:`.redaction` knows values.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Stands where something was taken out.
REDACTED = "[redacted]"

_NO_LETTER = re.compile(r"[\W_]+")
# A password may hold what it should not, as a slash or a quote; a port may not.
_IN_URL = re.compile(
    r"(://[^\s/:@?#\"']*:)(?:[^\s/?#\"']{1,300}|(?!\d+[/?#])"
    r"(?:[^\s\"']|[\"'](?![\s,:;)\]}>]|$)){1,300})(?=@)"
)
#: The same within the query of another.
_IN_QUOTED_URL = re.compile(r"(%3A%2F%2F[^\s/%&]*%3A)[^\s&/]{1,300}?(?=%40)", re.IGNORECASE)
#: A token in place of a user's name, as in ``https://x1y2z3...@github.com``.
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
#: ``'pin' => 1``, ``--password x``; in a document within a document its quotes are escaped.
_NAMED = re.compile(
    r"(?<![\w.-])(?P<option>--?)?(?P<name>[A-Za-z_][\w.-]{0,99})"
    r"(?:\s*:?=>?\s*|\\*['\"]\s*(?::|=>)\s*|:\s*(?=\S)|(?(option)[ \t]+(?=[^\s-])|(?!)))"
    r"(?:(?:basic|bearer|token) )?",
    re.IGNORECASE,
)
#: How a value begins that stands in quotes which are escaped.
_ESCAPED = re.compile(r"\\+['\"]")
#: Where an element begins, as in ``<password>x</password>``.
_ELEMENT = re.compile(r"<([\w:.-]{1,100})(?:\s[^<>]*)?(?<!/)>")
#: So many kinds of elements that are not closed are no document.
_MANY = 100
_OPENING, _CLOSING = "([{<", ")]}>"
#: What an error's text may say of something else: ``unexpected token: ')'``.
_PROSE = ("auth", "cookie", "pin", "session", "token", "tokens")


def digest_of(text: str) -> str:
    """Return what stands for a secret where equal ones must be distinguished from others."""
    hashed = hashlib.sha256(b"dramatiq_joblog:" + text.encode(errors="surrogatepass"))
    return f"sha256:{hashed.hexdigest()[:20]}"


def scrub_key(text: str) -> str:
    """Put digests in place of the passwords of URLs in a key, so that it still is that key."""
    if "://" not in text or "@" not in text:
        return text
    return _IN_URL.sub(lambda found: found[1] + digest_of(found[0]), text)


def fold_name(name: str) -> str:
    """Return a name without its case and all that is not a letter or digit."""
    return _NO_LETTER.sub("", name).lower()


def scrub(text: str) -> str:
    """Take passwords out of URLs, and bearer tokens and private keys out of a text.

    Example:
      >>> scrub("postgresql://joe:hunter2@db/shop is down")
      'postgresql://joe:[redacted]@db/shop is down'

    Returns:
      The text itself if there is nothing to take out.
    """
    if "://" in text and "@" in text:
        text = _changed(text, _IN_URL.sub(rf"\g<1>{REDACTED}", text))
        text = _changed(text, _TOKEN_IN_URL.sub(rf"\g<1>{REDACTED}", text))
    if "%40" in text:
        text = _changed(text, _IN_QUOTED_URL.sub(rf"\g<1>{REDACTED}", text))
    if " " in text and any(word in text.lower() for word in ("bearer", "basic ", "token ")):
        text = _changed(text, _BEARER.sub(rf"\g<1>\g<2>{REDACTED}", text))
    if "PRIVATE KEY-----" in text:
        text = _changed(text, _PEM.sub(rf"\g<1>{REDACTED}", text))
    return text


def scrub_named(text: str, is_secret: Callable[[str], bool], *, prose: bool = False) -> str:
    """Scrub a text, and take out what follows the name of a secret in it, as in a ``repr``.

    Of *prose* a word that also means other things is not a name before a colon.
    """
    text = scrub(text)
    if "</" in text:
        text = _without(text, _elements(text, is_secret))
    if not any(sign in text for sign in ("=", ":", "--", " -")):
        return text
    return _without(text, _values(text, is_secret, prose=prose))


def _without(text: str, places: Iterable[tuple[int, int, str]]) -> str:
    """Return *text* with others in place of some of its parts; itself if there are none."""
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
    """Yield where the values of secrets stand, and what is to stand there."""
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
    """Yield where what is in the elements of secrets stands in XML, and what is to stand there."""
    taken = 0
    # What is not closed once is not closed further on either: one look for each name is enough.
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
    """Return where a value ends that begins at *start*, and the quote that it stands in.

    Quotes and brackets are one with it.
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
    """Return the text itself if it is the same, so that a change can be seen by identity."""
    return text if new == text else new
