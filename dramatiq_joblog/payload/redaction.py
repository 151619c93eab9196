"""What must not be kept: passwords, tokens and the like, in arguments and in texts.

What a value is called tells more than what it looks like, so names decide; of texts, only what
has a form that nothing else has is taken out.
"""

from __future__ import annotations

import re
from functools import lru_cache
from operator import is_
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Stands where something was taken out.
REDACTED = "[redacted]"

#: A name is a secret's if it contains one of these, its case and what is no letter left aside.
#: An IBAN and the like are no credentials: they are what such jobs are about.
_ANYWHERE = (
    "accesskey",
    "apikey",
    "authorization",
    "cardnumber",
    "cookie",
    "creditcard",
    "credential",
    "cvv",
    "encryptionkey",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "secret",
    "securitycode",
    "sessionid",
    "sessionkey",
    "signingkey",
)
#: Or if it ends with one of these, as ``csrf_token``; ``max_tokens`` does not.
_AT_THE_END = ("auth", "jwt", "pwd", "session", "token")
#: Or if it is one of these.
_WHOLE = ("accesstokens", "apitokens", "cvc", "pin", "refreshtokens", "tokens")

_NO_LETTER = re.compile(r"[\W_]+")
# A password may hold what it should not, as a slash; a port may not.
_IN_URL = re.compile(r"(://[^\s/:@?#\"']*:)(?:[^\s/?#\"']{1,300}|(?!\d+[/?#])[^\s\"']{1,300})(?=@)")
_BEARER = re.compile(
    r"(^\s*bearer\s+|^\s*(?:basic|token)\s+(?=\S*[\d=])|"
    r"authorization['\"]?\s*[:=]\s*['\"]?\s*(?:bearer|basic|token)\s+)[^\s\"',]+"
    r"|(\bbearer\s+)[\w.~+/=-]{16,}",
    re.IGNORECASE,
)
_PEM = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:(?=-----END [A-Z ]*PRIVATE KEY-----)|$)", re.DOTALL
)
#: Where a value follows its name: ``password='x'``, ``"api_key": "x"``, ``?token=x``.
_NAMED = re.compile(
    r"(?<![\w.-])([A-Za-z_][\w.-]{0,99})(?:\s*=\s*|['\"]\s*:\s*|:\s*(?=\S))"
    r"(?:(?:basic|bearer|token) )?",
    re.IGNORECASE,
)
_OPENING, _CLOSING = "([{<", ")]}>"


class Redactor:
    """Takes secrets out of what is about to be stored.

    Parameters:
      redact: More names, that are redacted like the known ones; or a callable that is given a
        name and its value, and returns what to keep of it; or False to redact nothing.

    Raises:
      TypeError: If it is none of these.
    """

    def __init__(self, redact: Any = None) -> None:
        self._logger = get_logger(__name__, type(self))
        self._on = redact is not False
        self._hook = redact if callable(redact) else None
        more: list[str] = []
        if not callable(redact) and redact not in (None, True, False):
            more = [redact] if isinstance(redact, str) else list(redact)
            if not all(isinstance(name, str) and fold_name(name) for name in more):
                raise TypeError(f"redact={redact!r}: names, a callable, or False are needed")
        self._more = tuple(fold_name(name) for name in more)
        #: Whether a name is a secret's.
        self.is_secret = lru_cache(maxsize=4096)(self._is_secret)

    def value(self, value: Any, names: Sequence[str] = ()) -> Any:
        """Return *value* as it may be kept; itself if there is nothing to take out.

        Parameters:
          value: Anything.
          names: Of a list or a tuple: the names of its items; those after the last are of the
            last.
        """
        kind = type(value)
        if not self._on or value is None or kind is int or kind is float or kind is bool:
            return value
        if isinstance(value, str):
            return scrub_named(value, self.is_secret)
        if isinstance(value, dict):
            return self._mapping(value)
        if isinstance(value, (list, tuple)):
            return self._sequence(value, names or getattr(value, "_fields", ()))
        if isinstance(value, (int, float)):
            return value
        # It is kept as its text, that may tell what it holds.
        text = as_text(value)
        scrubbed = scrub_named(text, self.is_secret)
        return value if scrubbed is text else scrubbed

    def _sequence(self, values: Sequence[Any], names: Sequence[str]) -> Sequence[Any]:
        if names:
            last = len(names) - 1
            kept = [self._named(names[min(at, last)], item) for at, item in enumerate(values)]
        else:
            kept = [self.value(item) for item in values]
        return values if all(map(is_, kept, values)) else kept

    def _mapping(self, values: dict[Any, Any]) -> dict[Any, Any]:
        kept = {
            name: self._named(name, item) if isinstance(name, str) else self.value(item)
            for name, item in values.items()
        }
        return values if all(map(is_, kept.values(), values.values())) else kept

    def _named(self, name: str, value: Any) -> Any:
        if self.is_secret(name):
            # That there is none is no secret.
            return value if value is None or type(value) is bool or value == "" else REDACTED
        if self._hook is not None:
            try:
                return self.value(self._hook(name, value))
            except Exception:
                # Whatever it was to take out must not be kept for its fault.
                self._logger.exception("redact=%r failed for %r.", self._hook, name)
                return REDACTED
        return self.value(value)

    def _is_secret(self, name: str) -> bool:
        folded = fold_name(name)
        return self._on and (
            folded in _WHOLE
            or folded.endswith(_AT_THE_END)
            or any(part in folded for part in _ANYWHERE)
            or any(part in folded for part in self._more)
        )


def fold_name(name: str) -> str:
    """Return a name without its case and all that is no letter or digit."""
    return _NO_LETTER.sub("", name).lower()


def scrub(text: str) -> str:
    """Take passwords out of URLs, and bearer tokens and private keys out of a text.

    Example:
      >>> scrub("postgresql://joe:hunter2@db/shop is away")
      'postgresql://joe:[redacted]@db/shop is away'

    Returns:
      The text itself if there is nothing to take out.
    """
    if "://" in text and "@" in text:
        text = _changed(text, _IN_URL.sub(rf"\g<1>{REDACTED}", text))
    if " " in text and any(word in text.lower() for word in ("bearer", "basic ", "token ")):
        text = _changed(text, _BEARER.sub(rf"\g<1>\g<2>{REDACTED}", text))
    if "PRIVATE KEY-----" in text:
        text = _changed(text, _PEM.sub(rf"\g<1>{REDACTED}", text))
    return text


def scrub_named(text: str, is_secret: Any) -> str:
    """Scrub a text, and take out what follows the name of a secret in it, as in a ``repr``."""
    text = scrub(text)
    if "=" not in text and ":" not in text:
        return text
    parts: list[str] = []
    taken = 0
    for match in _NAMED.finditer(text):
        start = match.end()
        if match.start() < taken or not is_secret(match[1]) or text[start : start + 2] == "//":
            continue
        end = _end_of_value(text, start)
        if end > start and text[start:end].strip("'\"") not in ("None", "True", "False", REDACTED):
            parts += (text[taken:start], f"'{REDACTED}'" if text[start] in "'\"" else REDACTED)
            taken = end
    return text if not parts else "".join([*parts, text[taken:]])


def as_text(value: Any) -> str:
    """Return the ``repr`` of a value, whatever its own does."""
    try:
        return repr(value)
    except Exception as e:  # noqa: BLE001
        # A repr of the user's own may raise anything; the job must not notice.
        return f"<{type(value).__name__} whose repr raised {type(e).__name__}>"


def _end_of_value(text: str, start: int) -> int:
    """Return where a value ends that begins at *start*: quotes and brackets are one with it."""
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
    """Return the text itself if it is the same, so that a change can be told by identity."""
    return text if new == text else new
