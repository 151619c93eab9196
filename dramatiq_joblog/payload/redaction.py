"""What must not be kept: passwords, tokens and the like, in values of any shape.

The name of a value says more than its form, so names decide.  From texts, only parts with an
unmistakable form are removed.
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

#: A name marks a secret if it contains one of these; case and non-letters are ignored.
#: An IBAN and the like are not credentials: they are the data of such jobs.
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
#: Or if it ends with one of these, as ``csrf_token`` does and ``max_tokens`` does not.
_AT_THE_END = (
    *("auth", "bearer", "jwt", "pwd", "session", "token"),
    # "pass" alone may be a boarding pass, or a mountain pass.
    *("adminpass", "authpass", "databasepass", "dbpass", "ftppass", "hostpass", "httppass"),
    *("imappass", "ldappass", "loginpass", "mailpass", "mqpass", "mypass", "pgpass", "proxypass"),
    *("redispass", "rootpass", "smtppass", "sqlpass", "sshpass", "userpass", "vpnpass"),
)
#: Or if it is one of these.
_WHOLE = (
    *("accesstokens", "apitokens", "cvc", "otp", "pass", "pin", "pw", "refreshtokens", "sig"),
    *("tokens", "totp"),
)
#: Keys under which a mapping gives the name of its value, as for a header or a variable.
_NAMES = ("field", "header", "key", "name", "parameterkey", "variable")
_VALUES = ("parametervalue", "value")
#: An option of a command line, whose value is the next word.
_OPTION = re.compile(r"--?([A-Za-z][\w-]{0,99})\Z")


#: A frame of a traceback, with its line of code, which assigns to names and shows no values.
_FRAME = re.compile(r"^([ |+-]*File \"[^\n]*\", line \d+, in [^\n]*\n[^\n]*\n?)", re.MULTILINE)
#: The depth of nesting from which a value may be too deep to be read.
_DEEPEST = 50
#: The least length of a secret that is recognised in a text that does not name it.
MIN_RECOGNISED = 6


class Redactor:
    """Takes secrets out of what is about to be stored.

    Parameters:
      redact: Additional names to redact; or a callable that receives a name and its value, and
        returns the value to store; or False to redact nothing.

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
        #: Whether a name marks a secret.
        self.is_secret = lru_cache(maxsize=4096)(self._is_secret)
        self._parameters: Callable[[str], Sequence[str]] = _unknown
        self._instead: Callable[[Any], Any] = _redacted
        #: Known secrets in each form in which a text may contain them, the longest first.
        self._recognised: tuple[str, ...] = ()

    @property
    def goes_by_names(self) -> bool:
        """Whether names decide, and not a callable of the user."""
        return self._hook is None

    def knowing(self, parameters: Callable[[str], Sequence[str]]) -> Redactor:
        """Return a redactor that recognises messages anywhere within a value.

        Parameters:
          parameters: Returns the names of the positional parameters of the actor with a given
            name; nothing if it is unknown.
        """
        other = copy.copy(self)
        other._parameters = parameters
        return other

    def recognising(self, secrets: Iterable[Any]) -> Redactor:
        """Return a redactor that also removes these secrets from texts that do not name them.

        Secrets shorter than :data:`MIN_RECOGNISED` are left in: they may be a part of anything.
        """
        forms = {form for secret in secrets for text in texts_in(secret) for form in _forms(text)}
        if not forms or not self.on:
            return self
        other = copy.copy(self)
        other._recognised = tuple(sorted(forms.union(self._recognised), key=len, reverse=True))
        return other

    def secrets(self, value: Any, names: Sequence[str] = ()) -> list[Any]:
        """Return the values that :meth:`value` would remove because of their names."""
        found: list[Any] = []
        other = copy.copy(self)
        other._instead, other._hook = found.append, None
        try:
            other.value(value, names)
        except RecursionError:
            other.value(without_loops(value), names)
        return found

    def disguised(self, value: Any, names: Sequence[str] = ()) -> Any:
        """Return *value* with a digest in place of each secret, equal for equal secrets."""
        other = copy.copy(self)
        other._instead, other._hook = digest, None
        return other.value(value, names)

    def value(self, value: Any, names: Sequence[str] = ()) -> Any:
        """Return *value* without its secrets; itself if it has none.

        Parameters:
          value: Anything.
          names: For a list or a tuple: the names of its items; the last name is used for all
            further items.
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
        """Return a value that JSON cannot express, without its secrets."""
        if isinstance(value, (set, frozenset)):
            items = list(value)
            kept_items = self._sequence(items, ())
            return value if kept_items is items else kept_items
        fields = _fields_of_message(value)
        if fields is not None:
            kept = self._mapping(fields)
            return value if kept is fields else kept
        # It is stored as its text, which may show what it contains.
        text = as_text(value)
        scrubbed = self.text(text)
        return value if scrubbed is text else scrubbed

    def text(self, text: str) -> str:
        """Return a text without its secrets; itself if it has none."""
        return self._scrubbed(text, prose=False) if self.on else text

    def error(self, text: str) -> str:
        """Return the text of an error without its secrets.

        Fewer values after a colon are removed than from other texts, because errors are prose.
        """
        return self._scrubbed(text, prose=True) if self.on else text

    def traceback(self, text: str) -> str:
        """Return a traceback without secrets, but with its lines of code."""
        if not self.on:
            return text
        parts = _FRAME.split(text)
        parts[::2] = map(self.error, parts[::2])
        parts[1::2] = [scrub(self._without_recognised(part)) for part in parts[1::2]]
        return "".join(parts)

    def _scrubbed(self, text: str, *, prose: bool) -> str:
        # This comes first: a known secret may go on where the value of a name seems to end.
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
            # An item may be the value of the option before it, as in a command line.
            options = [None, *map(_option, values)]
            kept = [self._item(option, item) for option, item in zip(options, values, strict=False)]
        return values if all(map(is_, kept, values)) else kept

    def _item(self, option: str | None, item: Any) -> Any:
        return self.value(item) if option is None else self._named(option, item)

    def _pair(self, pair: Sequence[Any]) -> Sequence[Any]:
        """Return a pair of a name and its value, as in a form or a header, without a secret."""
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
            # An empty value is not a secret.
            nothing = value is None or type(value) is bool or (type(value) is str and not value)
            return value if nothing else self._instead(value)
        if self._hook is not None:
            try:
                return self.value(self._hook(name, value))
            except Exception:  # noqa: BLE001
                # If the callable fails, the value must be neither stored nor logged.
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
    """A placeholder where a value contains itself, as in Python's own ``repr``."""

    def __repr__(self) -> str:
        return "[...]"


_ELIDED = _Elided()


def without_loops(value: Any, around: tuple[int, ...] = ()) -> Any:
    """Return a copy of *value* in which nothing contains itself or is too deep to be read."""
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) in around or len(around) > _DEEPEST:
        return _ELIDED
    inside = (*around, id(value))
    if isinstance(value, dict):
        return {name: without_loops(item, inside) for name, item in value.items()}
    return [without_loops(item, inside) for item in value]


def as_text(value: Any) -> str:
    """Return the ``repr`` of a value, or a text that says that it raised."""
    try:
        return repr(value)
    except Exception as e:  # noqa: BLE001
        # A user's ``repr`` may raise anything, and the job must not notice.
        return f"<{type(value).__name__} whose repr raised {type(e).__name__}>"


def _name_of_pair(pair: Any) -> str:
    """Return the name of a pair of a name and a value; nothing if it is not such a pair."""
    if type(pair) not in (list, tuple) or len(pair) != 2:
        return ""
    name = pair[0]
    if isinstance(name, bytes):
        return name.decode("latin-1")
    return name if isinstance(name, str) else ""


def _named_value(values: dict[Any, Any]) -> tuple[str, str] | None:
    """Return the key of a value whose name is in the same mapping, and that name."""
    if not any(isinstance(key, str) and key.lower().endswith("value") for key in values):
        return None
    keys = {fold_name(key): key for key in values if isinstance(key, str)}
    name = next((values[keys[each]] for each in _NAMES if each in keys), None)
    value = next((keys[each] for each in _VALUES if each in keys), None)
    return (value, name) if value is not None and isinstance(name, str) else None


def _option(item: Any) -> str | None:
    """Return the option's name if a word of a command line is an option."""
    match = _OPTION.match(item) if isinstance(item, str) and item[:1] == "-" else None
    return None if match is None else match[1]


def _unknown(actor_name: str) -> Sequence[str]:  # noqa: ARG001 - nothing is known of any actor
    return ()


def digest(secret: Any) -> str:
    """Return a digest that replaces a secret where equal secrets must stay equal."""
    return digest_of(secret if isinstance(secret, str) else as_text(secret))


def _redacted(secret: Any) -> str:  # noqa: ARG001 - whatever it is
    return REDACTED


def _fields_of_message(value: Any) -> dict[str, Any] | None:
    """Return the fields of a message, or None if the value is not a message."""
    try:
        if isinstance(value.actor_name, str):
            fields = value.asdict()
            return fields if isinstance(fields, dict) else None
    except Exception:  # noqa: BLE001
        # A user's objects may raise anything, or lack these attributes.
        return None
    return None


def texts_in(secret: Any) -> Iterator[str]:
    """Yield the texts within a secret, which may have many parts."""
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
    """Return the forms in which one text may contain another: as it is, or quoted."""
    if len(text) < MIN_RECOGNISED or text == REDACTED:
        return set()
    return {
        text,
        repr(text)[1:-1],
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        quote(text, safe="", errors="replace"),
    }
