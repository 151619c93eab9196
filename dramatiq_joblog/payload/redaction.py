"""What must not be kept: passwords, tokens and the like, in arguments and in texts.

What a value is called tells more than what it looks like, so names decide; of texts, only what
has a form that nothing else has is taken out.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import traceback
from functools import lru_cache
from operator import is_
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dramatiq.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

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
#: What an error's text may say of something else: ``unexpected token: ')'``.
_PROSE = ("auth", "cookie", "pin", "session", "token", "tokens")
#: A place in a traceback, with its line of code: that assigns to names, and shows no values.
_FRAME = re.compile(r"^([ |+-]*File \"[^\n]*\", line \d+, in [^\n]*\n[^\n]*\n?)", re.MULTILINE)
#: Containers within containers, where one may be too deep to be read.
_DEEPEST = 50
#: Characters of a secret from which on it is recognised in a text that does not name it.
MIN_RECOGNISED = 6


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
        #: Whether anything is taken out.
        self.on = redact is not False
        self._hook = redact if callable(redact) else None
        more: list[str] = []
        if not callable(redact) and redact not in (None, True, False):
            more = [redact] if isinstance(redact, str) else list(redact)
            if not all(isinstance(name, str) and fold_name(name) for name in more):
                raise TypeError(f"redact={redact!r}: names, a callable, or False are needed")
        self._more = tuple(fold_name(name) for name in more)
        #: Whether a name is a secret's.
        self.is_secret = lru_cache(maxsize=4096)(self._is_secret)
        self._parameters: Callable[[str], Sequence[str]] = _unknown
        self._instead: Callable[[Any], Any] = _redacted
        #: Secrets that are known, as they may stand in a text; the longest first.
        self._recognised: tuple[str, ...] = ()

    @property
    def goes_by_names(self) -> bool:
        """Whether the names of values decide, and no callable of the user's own."""
        return self._hook is None

    def knowing(self, parameters: Callable[[str], Sequence[str]]) -> Redactor:
        """Return one that knows messages for what they are, wherever they stand in a value.

        Parameters:
          parameters: Given an actor's name, returns the names of its positional parameters;
            nothing if it is not known.
        """
        other = copy.copy(self)
        other._parameters = parameters
        return other

    def recognising(self, secrets: Iterable[Any]) -> Redactor:
        """Return one that takes these secrets out of texts too, where nothing names them.

        Those of less than :data:`MIN_RECOGNISED` characters are left: they may be a part of
        anything.
        """
        forms = {form for secret in secrets for text in texts_in(secret) for form in _forms(text)}
        if not forms or not self.on:
            return self
        other = copy.copy(self)
        other._recognised = tuple(sorted(forms.union(self._recognised), key=len, reverse=True))
        return other

    def secrets(self, value: Any, names: Sequence[str] = ()) -> list[Any]:
        """Return what :meth:`value` would take out by its name."""
        found: list[Any] = []
        other = copy.copy(self)
        other._instead, other._hook = found.append, None
        try:
            other.value(value, names)
        except RecursionError:
            other.value(without_loops(value), names)
        return found

    def disguised(self, value: Any, names: Sequence[str] = ()) -> Any:
        """Return *value* with a digest in place of each secret: the same for the same secret."""
        other = copy.copy(self)
        other._instead, other._hook = digest, None
        return other.value(value, names)

    def value(self, value: Any, names: Sequence[str] = ()) -> Any:
        """Return *value* as it may be kept; itself if there is nothing to take out.

        Parameters:
          value: Anything.
          names: Of a list or a tuple: the names of its items; those after the last are of the
            last.
        """
        if not self.on or value is None or isinstance(value, (int, float)):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return self._mapping(value)
        if isinstance(value, (list, tuple)):
            return self._sequence(value, names or getattr(value, "_fields", ()))
        fields = _fields_of_message(value)
        if fields is not None:
            kept = self._mapping(fields)
            return value if kept is fields else kept
        # It is kept as its text, that may tell what it holds.
        text = as_text(value)
        scrubbed = self.text(text)
        return value if scrubbed is text else scrubbed

    def text(self, text: str) -> str:
        """Return a text as it may be kept; itself if there is nothing to take out."""
        return self._scrubbed(text, prose=False) if self.on else text

    def error(self, text: str) -> str:
        """Return the text of an error as it may be kept.

        Of what stands behind a colon less is taken out than in other texts: errors are prose.
        """
        return self._scrubbed(text, prose=True) if self.on else text

    def traceback(self, text: str) -> str:
        """Return a traceback as it may be kept, with its lines of code."""
        if not self.on:
            return text
        parts = _FRAME.split(text)
        parts[::2] = map(self.error, parts[::2])
        parts[1::2] = [scrub(self._without_recognised(part)) for part in parts[1::2]]
        return "".join(parts)

    def _scrubbed(self, text: str, *, prose: bool) -> str:
        # Before the names are looked at: a value may go on where a name's value seems to end.
        return scrub_named(self._without_recognised(text), self.is_secret, prose=prose)

    def _without_recognised(self, text: str) -> str:
        for secret in self._recognised:
            if secret in text:
                text = text.replace(secret, REDACTED)
        return text

    def _sequence(self, values: Sequence[Any], names: Sequence[str]) -> Sequence[Any]:
        if names:
            last = len(names) - 1
            kept = [self._named(names[min(at, last)], item) for at, item in enumerate(values)]
        else:
            kept = [self.value(item) for item in values]
        return values if all(map(is_, kept, values)) else kept

    def _mapping(self, values: dict[Any, Any]) -> dict[Any, Any]:
        names = self._names_in(values)
        kept = {}
        for name, item in values.items():
            if not isinstance(name, str):
                kept[name] = self.value(item)
            elif name == "args" and names and isinstance(item, (list, tuple)):
                kept[name] = self._sequence(item, names)
            else:
                kept[self.text(name)] = self._named(name, item)
        same = all(map(is_, kept.values(), values.values())) and all(map(is_, kept, values))
        return values if same and len(kept) == len(values) else kept

    def _names_in(self, values: dict[Any, Any]) -> Sequence[str]:
        """Return the names of the arguments if *values* is a message as a dictionary."""
        name = values.get("actor_name")
        return self._parameters(name) if isinstance(name, str) and "args" in values else ()

    def _named(self, name: str, value: Any) -> Any:
        if self.is_secret(name):
            # That there is none is no secret.
            nothing = value is None or type(value) is bool or (type(value) is str and not value)
            return value if nothing else self._instead(value)
        if self._hook is not None:
            try:
                return self.value(self._hook(name, value))
            except Exception:  # noqa: BLE001
                # Whatever it was to take out must not be kept for its fault, nor logged.
                error = self.recognising([value]).traceback(traceback.format_exc())
                self._logger.error(  # noqa: TRY400 - its text may hold what it was given
                    "redact=%r failed for %r.\n%s", self._hook, name, error
                )
                return REDACTED
        return self.value(value)

    def _is_secret(self, name: str) -> bool:
        folded = fold_name(name)
        return self.on and (
            folded in _WHOLE
            or folded.endswith(_AT_THE_END)
            or any(part in folded for part in _ANYWHERE)
            or any(part in folded for part in self._more)
        )


def digest(secret: Any) -> str:
    """Return what stands for a secret where equal ones must be told from others."""
    text = secret if isinstance(secret, str) else as_text(secret)
    hashed = hashlib.sha256(b"dramatiq_joblog:" + text.encode(errors="surrogatepass"))
    return f"sha256:{hashed.hexdigest()[:20]}"


def scrub_key(text: str) -> str:
    """Put digests in place of the passwords of URLs in a key, so that it still is that key."""
    if "://" not in text or "@" not in text:
        return text
    return _IN_URL.sub(lambda found: found[1] + digest(found[0]), text)


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


def scrub_named(text: str, is_secret: Callable[[str], bool], *, prose: bool = False) -> str:
    """Scrub a text, and take out what follows the name of a secret in it, as in a ``repr``.

    Of *prose* a word that also means other things is no name before a colon.
    """
    text = scrub(text)
    if "=" not in text and ":" not in text:
        return text
    parts: list[str] = []
    taken = 0
    for match in _NAMED.finditer(text):
        start = match.end()
        if match.start() < taken or not is_secret(match[1]) or text[start : start + 2] == "//":
            continue
        if prose and text[match.end(1)] == ":" and fold_name(match[1]) in _PROSE:
            continue
        end = _end_of_value(text, start)
        if end > start and text[start:end].strip("'\"") not in ("None", "True", "False", REDACTED):
            parts += (text[taken:start], f"'{REDACTED}'" if text[start] in "'\"" else REDACTED)
            taken = end
    return text if not parts else "".join([*parts, text[taken:]])


class _Elided:
    """Stands where a value holds itself, as in Python's own ``repr``."""

    def __repr__(self) -> str:
        return "[...]"


_ELIDED = _Elided()


def without_loops(value: Any, around: tuple[int, ...] = ()) -> Any:
    """Return a copy of *value* in which nothing holds itself, or is too deep to be read."""
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) in around or len(around) > _DEEPEST:
        return _ELIDED
    inside = (*around, id(value))
    if isinstance(value, dict):
        return {name: without_loops(item, inside) for name, item in value.items()}
    return [without_loops(item, inside) for item in value]


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


def _unknown(actor_name: str) -> Sequence[str]:  # noqa: ARG001 - nothing is known of any actor
    return ()


def _redacted(secret: Any) -> str:  # noqa: ARG001 - whatever it is
    return REDACTED


def _fields_of_message(value: Any) -> dict[str, Any] | None:
    """Return what a message holds, or None if it is none."""
    try:
        if isinstance(value.actor_name, str):
            fields = value.asdict()
            return fields if isinstance(fields, dict) else None
    except Exception:  # noqa: BLE001
        # Objects of the user's own may raise anything, or have no such attributes.
        return None
    return None


def texts_in(secret: Any) -> Iterator[str]:
    """Yield the texts of a secret, which may be of many parts."""
    if isinstance(secret, dict):
        for item in secret.values():
            yield from texts_in(item)
    elif isinstance(secret, (list, tuple, set, frozenset)):
        for item in secret:
            yield from texts_in(item)
    elif isinstance(secret, bytes):
        yield secret.decode(errors="backslashreplace")
    elif isinstance(secret, (str, int)):
        yield str(secret)


def _forms(text: str) -> set[str]:
    """Return how a text may stand in another one: as it is, or as it is quoted."""
    if len(text) < MIN_RECOGNISED or text == REDACTED:
        return set()
    return {
        text,
        repr(text)[1:-1],
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        quote(text, safe="", errors="replace"),
    }


def _changed(text: str, new: str) -> str:
    """Return the text itself if it is the same, so that a change can be told by identity."""
    return text if new == text else new
