"""What must not be kept: passwords, tokens and the like, in values of any shape.

The name of a value says more than its form, so names decide; of texts, only what
has a form that nothing else has is taken out.
"""

from __future__ import annotations

import copy
import json
import re
import traceback
from collections.abc import Iterable
from functools import lru_cache
from operator import is_
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dramatiq.logging import get_logger

from .secret_texts import REDACTED, digest_of, fold_name, scrub, scrub_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: A name is a secret's if it contains one of these, its case and what is not a letter left aside.
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
    "hmackey",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "secret",
    "securitycode",
    "sessionid",
    "sessionkey",
    "signingkey",
    "sshkey",
    "xamzsignature",
    "xgoogsignature",
)
#: Or if it ends with one of these, as ``csrf_token``; ``max_tokens`` does not.
_AT_THE_END = (
    *("auth", "bearer", "jwt", "pwd", "session", "token"),
    # A pass by itself may be one on board, or on a mountain.
    *("adminpass", "authpass", "databasepass", "dbpass", "ftppass", "hostpass", "httppass"),
    *("imappass", "ldappass", "loginpass", "mailpass", "mqpass", "mypass", "pgpass", "proxypass"),
    *("redispass", "rootpass", "smtppass", "sqlpass", "sshpass", "userpass", "vpnpass"),
)
#: Or if it is one of these.
_WHOLE = (
    *("accesstokens", "apitokens", "cvc", "otp", "pass", "pin", "pw", "refreshtokens", "sig"),
    *("tokens", "totp"),
)
#: What a mapping calls the name of what it calls the value, as of a header or a variable.
_NAMES = ("field", "header", "key", "name", "parameterkey", "variable")
_VALUES = ("parametervalue", "value")
#: An option of a command whose value comes next.
_OPTION = re.compile(r"--?([A-Za-z][\w-]{0,99})\Z")


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
            more = [redact] if isinstance(redact, str) else []
            if isinstance(redact, Iterable) and not isinstance(redact, (str, bytes)):
                more = list(redact)
            elif not more:
                more = [redact]
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
        return self._other(value)

    def _other(self, value: Any) -> Any:
        """Return what JSON has no word for as it may be kept."""
        if isinstance(value, (set, frozenset)):
            items = list(value)
            kept_items = self._sequence(items, ())
            return value if kept_items is items else kept_items
        fields = _fields_of_message(value)
        if fields is not None:
            kept = self._mapping(fields)
            return value if kept is fields else kept
        # It is kept as its text, which may show what it holds.
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
        elif values and all(map(_name_of_pair, values)):
            kept = [self._pair(pair) for pair in values]
        else:
            # An item may be the value of an option before it, as in the words of a command.
            options = [None, *map(_option, values)]
            kept = [self._item(option, item) for option, item in zip(options, values, strict=False)]
        return values if all(map(is_, kept, values)) else kept

    def _item(self, option: str | None, item: Any) -> Any:
        return self.value(item) if option is None else self._named(option, item)

    def _pair(self, pair: Sequence[Any]) -> Sequence[Any]:
        """Return a name and its value, as of a form or a header, as they may be kept."""
        name, item = pair
        kept = [self.value(name), self._named(_name_of_pair(pair), item)]
        return pair if all(map(is_, kept, pair)) else kept

    def _mapping(self, values: dict[Any, Any]) -> dict[Any, Any]:
        names, value_of = self._names_in(values), _named_value(values)
        kept = {}
        for name, item in values.items():
            if not isinstance(name, str):
                kept[name] = self.value(item)
            elif name == "args" and names and isinstance(item, (list, tuple)):
                kept[name] = self._sequence(item, names)
            elif value_of is not None and name == value_of[0]:
                kept[name] = self._named(value_of[1], item)
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
            # That there is none is not a secret.
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


def _name_of_pair(pair: Any) -> str:
    """Return the name that stands in a pair with its value; nothing for what is no such pair."""
    if type(pair) not in (list, tuple) or len(pair) != 2:
        return ""
    name = pair[0]
    if isinstance(name, bytes):
        return name.decode("latin-1")
    return name if isinstance(name, str) else ""


def _named_value(values: dict[Any, Any]) -> tuple[str, str] | None:
    """Return the key of the value whose name the same mapping says, and that name."""
    if not any(isinstance(key, str) and key.lower().endswith("value") for key in values):
        return None
    keys = {fold_name(key): key for key in values if isinstance(key, str)}
    name = next((values[keys[each]] for each in _NAMES if each in keys), None)
    value = next((keys[each] for each in _VALUES if each in keys), None)
    return (value, name) if value is not None and isinstance(name, str) else None


def _option(item: Any) -> str | None:
    """Return the name of the option that a word of a command is, if it is one."""
    match = _OPTION.match(item) if isinstance(item, str) and item[:1] == "-" else None
    return None if match is None else match[1]


def _unknown(actor_name: str) -> Sequence[str]:  # noqa: ARG001 - nothing is known of any actor
    return ()


def digest(secret: Any) -> str:
    """Return what stands for a secret where equal ones must be distinguished from others."""
    return digest_of(secret if isinstance(secret, str) else as_text(secret))


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
