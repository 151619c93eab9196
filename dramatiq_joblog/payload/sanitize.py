"""Text and arguments that every database can hold."""

from __future__ import annotations

import hashlib
import json
import math
import re
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from .redaction import as_text, without_loops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .redaction import Redactor

#: A longer jid is replaced by its digest, so that every database can index it.
MAX_JID = 255
#: Characters kept of a name, and those of the digest at the end of a longer one.
MAX_NAME, _END = 255, 16
#: Characters kept of an error's text, of a traceback and of an argument document.
MAX_MESSAGE = 10_000
MAX_TRACEBACK = 100_000
MAX_DOCUMENT = 64_000
#: A document nested deeper than this is stored as text, because not every reader accepts it.
MAX_DEPTH = 100
#: A number with more bits is one that Python itself refuses to read.
_LONG = 14_000

_NO_JSON = "arguments that JSON cannot hold are kept as text"
#: The beginning of a document that replaces one that was too long.
LEFT_OUT = '{"left_out": '

# No database holds NUL in text on PostgreSQL, and no driver encodes a lone surrogate.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
#: Types that JSON returns unchanged.
_SCALARS = (bool, float, int, str, type(None))
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str, limit: int) -> str:
    """Return *text* as it can be stored, without its middle if it is longer than *limit*."""
    if len(text) > limit:
        head, tail = limit // 4, limit - limit // 4
        left_out = len(text) - limit
        text = f"{text[:head]} [... {left_out} characters left out ...] {text[-tail:]}"
    return _UNSTORABLE.sub("\ufffd", text)


def clean_redacted(text: str, limit: int, redact: Callable[[str], str]) -> str:
    """Return *text* redacted, then cut: a secret that is cut first would not be recognised."""
    if len(text) > 10 * limit:
        # This limit is so generous that nothing near its cut is stored.
        text = clean(text, 10 * limit)
    return clean(redact(text), limit)


def text_of(value: Any) -> str:
    """Return the text of any value: an enum member's value, otherwise ``str``; never raises."""
    if isinstance(value, Enum):
        value = value.value
    if not isinstance(value, str):
        try:
            value = str(value)
        except Exception:  # noqa: BLE001
            # The value's own code failed, which the job must not notice.
            value = as_text(value)
    # A subclass may override anything.
    return str.__str__(value)


def clean_optional(text: Any, limit: int | None = 255) -> str | None:
    """Return the text of a value as it can be stored, cut at *limit*, or None for None."""
    return None if text is None else _UNSTORABLE.sub("\ufffd", text_of(text))[:limit]


def fit_name(name: Any, limit: int = MAX_NAME) -> str | None:
    """Return a name as it can be stored, or None for None.

    A name longer than *limit* ends in a digest of the whole, so that different names stay
    different, and each is found by its full text.
    """
    text = clean_optional(name, None)
    if text is None or len(text) <= limit:
        return text
    end = hashlib.sha256(text.encode()).hexdigest()[:_END]
    return f"{text[: limit - len(end) - 1]}~{end}"


def fold_jid(jid: Any) -> str:
    """Return the text of *jid*, or a digest of it if it is too long.

    Every key goes through this, so that stored keys are found, and different keys stay different.
    """
    text = _UNSTORABLE.sub("\ufffd", text_of(jid))
    if len(text) <= MAX_JID:
        return text
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def message_of(error: BaseException) -> str:
    """Return an error's text, even if its own ``__str__`` raises."""
    try:
        return str.__str__(str(error))
    except Exception as e:  # noqa: BLE001
        # The name of its class is still worth storing.
        return f"<{type(error).__name__} whose text raised {type(e).__name__}>"


class Document(NamedTuple):
    """A value as it is stored."""

    #: JSON.
    text: str
    #: What could not be stored as it was; None if everything was.
    note: str | None
    #: Whether a secret was removed.
    redacted: bool


def document(value: Any, redactor: Redactor, names: Sequence[str] = ()) -> Document:
    """Write *value* as JSON text, without its secrets.

    A value that JSON cannot express is stored as its ``repr``, a too long one as its size.

    Parameters:
      value: Anything.
      redactor: Removes the secrets.
      names: For positional arguments: the names of their parameters.
    """
    try:
        kept = redactor.value(value, names)
        text, note = write_json(kept)
        redacted = kept is not value
    except Exception:  # noqa: BLE001
        # It contains itself, is nested too deeply, or its own code failed.
        whole, kept = _as_last_resort(value, redactor, names)
        text, note = json.dumps(clean(as_text(kept), MAX_DOCUMENT // 2)), _NO_JSON
        redacted = kept is not whole
    if len(text) > MAX_DOCUMENT:
        note = f"arguments of {len(text)} characters are longer than {MAX_DOCUMENT} and not kept"
        text = f'{LEFT_OUT}"{len(text)} characters"}}'
    return Document(text, note, redacted)


def _as_last_resort(value: Any, redactor: Redactor, names: Sequence[str]) -> tuple[Any, Any]:
    """Return the text of a value that cannot be written as JSON, whole and without secrets."""
    try:
        whole = without_loops(value)
        return whole, redactor.value(whole, names)
    except Exception as e:  # noqa: BLE001
        # Not even that worked: its contents are unknown, so nothing of it is stored.
        whole = f"<{type(value).__name__} that raised {type(e).__name__}>"
        return whole, whole


def write_json(value: Any) -> tuple[str, str | None]:
    """Write *value* as JSON that every reader accepts, with a note if it had to be changed.

    Raises:
      ValueError: If it contains itself, or is nested deeper than :data:`MAX_DEPTH`.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except Exception:  # noqa: BLE001
        # JSON cannot express it, or its own code failed.
        text = ""
    if text and not _may_be_unfit(text):
        return text, None
    plain = _plain(value, ())
    text = json.dumps(plain, allow_nan=False)
    return text, None if is_plain(value, exactly=False) else _NO_JSON


def read_json(text: Any) -> Any:
    """Read a document from any writer; text that is not JSON is returned as it is.

    NaN and the infinities, which JSON does not allow, are read as texts, and a lone surrogate
    as the replacement character.
    """
    if not isinstance(text, str):
        text = bytes(text).decode(errors="replace") if isinstance(text, bytes) else str(text)
    try:
        value = json.loads(text, parse_constant=str, parse_float=_finite)
        return _plain(value, ()) if _may_be_unfit(text) else value
    except (ValueError, RecursionError):
        return text


def is_plain(value: Any, *, exactly: bool = True) -> bool:
    """Return whether JSON returns a value unchanged; none of the value's own code is run.

    Parameters:
      value: Anything that was written as JSON.
      exactly: Whether types must be the same too.  JSON silently changes a tuple, an enum
        member, or a key that is a number: then these are not plain.
    """
    if isinstance(value, dict) and (not exactly or type(value) is dict):
        return all(
            isinstance(key, str if exactly else _SCALARS)
            and is_plain(key, exactly=exactly)
            and is_plain(item, exactly=exactly)
            for key, item in value.items()
        )
    if isinstance(value, (list, tuple)) and (not exactly or type(value) is list):
        return all(is_plain(item, exactly=exactly) for item in value)
    if exactly and type(value) not in _SCALARS:
        return False
    if isinstance(value, str):
        return _SURROGATE.search(value) is None
    if isinstance(value, int):
        return int.bit_length(value) < _LONG
    return value is None or (isinstance(value, float) and math.isfinite(value))


def _may_be_unfit(text: str) -> bool:
    """Return whether JSON text must be checked for lone surrogates, or for its depth."""
    return "\\ud" in text or "\\uD" in text or text.count("[") + text.count("{") > MAX_DEPTH


def _plain(value: Any, inside: tuple[int, ...]) -> Any:
    """Return *value* in the form that JSON has; *inside* has the ids of its containers."""
    if not isinstance(value, (dict, list, tuple)):
        return _plain_scalar(value)
    if id(value) in inside or len(inside) >= MAX_DEPTH:
        raise ValueError("it holds itself, or is too deep")
    inside = (*inside, id(value))
    if isinstance(value, dict):
        return {_key(key): _plain(item, inside) for key, item in value.items()}
    return [_plain(item, inside) for item in value]


def _plain_scalar(value: Any) -> Any:
    """Return a scalar in the form that JSON has."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        bits = int.bit_length(value)
        return int.__index__(value) if bits < _LONG else f"a number of {bits} bits"
    if isinstance(value, float):
        return _finite(float.__repr__(value))
    return _SURROGATE.sub("\ufffd", value if isinstance(value, str) else as_text(value))


def _key(key: Any) -> str:
    """Return a key of a document in JSON's form, or in Python's."""
    if isinstance(key, str):
        return _SURROGATE.sub("\ufffd", key)
    if key is None or isinstance(key, (bool, int, float)):
        return json.dumps(_plain_scalar(key)).strip('"')
    return _SURROGATE.sub("\ufffd", as_text(key))


def _finite(text: str) -> float | str:
    """Read a number; return NaN and the infinities as text."""
    number = float(text)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
