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

#: A jid longer than this is folded to its digest, so that every database can index it.
MAX_JID = 255
#: Characters kept of a name, and those of the digest at the end of a longer one.
MAX_NAME, _END = 255, 16
#: Characters kept of an error's text, of a traceback and of an argument document.
MAX_MESSAGE = 10_000
MAX_TRACEBACK = 100_000
MAX_DOCUMENT = 64_000
#: A document that lies deeper in itself than this is kept as text: not every reader takes it.
MAX_DEPTH = 100
#: A number of more bits is one that Python itself does not read.
_LONG = 14_000

_NO_JSON = "arguments that JSON cannot hold are kept as text"
#: How a document begins that stands for one that was too long.
LEFT_OUT = '{"left_out": '

# No database holds NUL in text on PostgreSQL, and no driver encodes a lone surrogate.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
#: What JSON gives back as it is.
_SCALARS = (bool, float, int, str, type(None))
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str, limit: int) -> str:
    """Return *text* as it can be stored, its middle cut out if it is longer than *limit*."""
    if len(text) > limit:
        head, tail = limit // 4, limit - limit // 4
        left_out = len(text) - limit
        text = f"{text[:head]} [... {left_out} characters left out ...] {text[-tail:]}"
    return _UNSTORABLE.sub("\ufffd", text)


def clean_redacted(text: str, limit: int, redact: Callable[[str], str]) -> str:
    """Return *text* as it may be stored: redacted whole, as a secret that is cut is not seen."""
    if len(text) > 10 * limit:
        # What is next to this cut is in none of what is kept.
        text = clean(text, 10 * limit)
    return clean(redact(text), limit)


def text_of(value: Any) -> str:
    """Return the text of any value: an enum member's value, else ``str``, whatever that does."""
    if isinstance(value, Enum):
        value = value.value
    if not isinstance(value, str):
        try:
            value = str(value)
        except Exception:  # noqa: BLE001
            # Its own code is at fault, which the job must not notice.
            value = as_text(value)
    # A subclass may be anything but a text.
    return str.__str__(value)


def clean_optional(text: Any, limit: int | None = 255) -> str | None:
    """Return the text of a value as it can be stored, cut at *limit*, or None for None."""
    return None if text is None else _UNSTORABLE.sub("\ufffd", text_of(text))[:limit]


def fit_name(name: Any, limit: int = MAX_NAME) -> str | None:
    """Return a name as it can be stored, or None for None.

    Of one that is longer than *limit* the end is a digest, so that two are distinguished, and each
    is found by the whole.
    """
    text = clean_optional(name, None)
    if text is None or len(text) <= limit:
        return text
    end = hashlib.sha256(text.encode()).hexdigest()[:_END]
    return f"{text[: limit - len(end) - 1]}~{end}"


def fold_jid(jid: Any) -> str:
    """Return the text of *jid*, or the same short stand-in for the same too long one.

    Every key is made fit by this, so that what is stored is found, and two are distinguished.
    """
    text = _UNSTORABLE.sub("\ufffd", text_of(jid))
    if len(text) <= MAX_JID:
        return text
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def message_of(error: BaseException) -> str:
    """Return an error's text, whatever its own ``__str__`` does."""
    try:
        return str.__str__(str(error))
    except Exception as e:  # noqa: BLE001
        # Its name is still worth keeping.
        return f"<{type(error).__name__} whose text raised {type(e).__name__}>"


class Document(NamedTuple):
    """A value as it is stored."""

    #: JSON.
    text: str
    #: What could not be kept as it was; None if all was.
    note: str | None
    #: Whether a secret was taken out.
    redacted: bool


def document(value: Any, redactor: Redactor, names: Sequence[str] = ()) -> Document:
    """Write *value* as JSON text, without its secrets.

    What JSON has no word for is kept as its ``repr``; what is too long as a note of its size.

    Parameters:
      value: Anything.
      redactor: Takes the secrets out.
      names: For positional arguments: the names of their parameters.
    """
    try:
        kept = redactor.value(value, names)
        text, note = write_json(kept)
        redacted = kept is not value
    except Exception:  # noqa: BLE001
        # It holds itself, is as deep as if it did, or its own code is at fault.
        whole, kept = _as_last_resort(value, redactor, names)
        text, note = json.dumps(clean(as_text(kept), MAX_DOCUMENT // 2)), _NO_JSON
        redacted = kept is not whole
    if len(text) > MAX_DOCUMENT:
        note = f"arguments of {len(text)} characters are longer than {MAX_DOCUMENT} and not kept"
        text = f'{LEFT_OUT}"{len(text)} characters"}}'
    return Document(text, note, redacted)


def _as_last_resort(value: Any, redactor: Redactor, names: Sequence[str]) -> tuple[Any, Any]:
    """Return what is left of a value that cannot be written, and that without its secrets."""
    try:
        whole = without_loops(value)
        return whole, redactor.value(whole, names)
    except Exception as e:  # noqa: BLE001
        # Not even that: what it holds is not known, so that nothing of it is kept.
        whole = f"<{type(value).__name__} that raised {type(e).__name__}>"
        return whole, whole


def write_json(value: Any) -> tuple[str, str | None]:
    """Write *value* as JSON that every reader takes, and a note if it is not as it was.

    Raises:
      ValueError: If it holds itself, or is deeper than :data:`MAX_DEPTH`.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except Exception:  # noqa: BLE001
        # What JSON has no word for, or whose own code is at fault.
        text = ""
    if text and not _may_be_unfit(text):
        return text, None
    plain = _plain(value, ())
    text = json.dumps(plain, allow_nan=False)
    return text, None if is_plain(value, exactly=False) else _NO_JSON


def read_json(text: Any) -> Any:
    """Read a document of any writer; what is none is given back as its text.

    NaN and the infinities, which are no JSON, are read as texts, and half a surrogate pair as
    the sign for what cannot be shown.
    """
    if not isinstance(text, str):
        text = bytes(text).decode(errors="replace") if isinstance(text, bytes) else str(text)
    try:
        value = json.loads(text, parse_constant=str, parse_float=_finite)
        return _plain(value, ()) if _may_be_unfit(text) else value
    except (ValueError, RecursionError):
        return text


def is_plain(value: Any, *, exactly: bool = True) -> bool:
    """Return whether JSON gives a value back as it is; the value's own code is not asked.

    Parameters:
      value: Anything that JSON was made of.
      exactly: Whether the types are to be the same too: what JSON changes without a word, as a
        tuple, an enum member or a key that is a number, is not plain then.
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
    """Return whether JSON text needs a look: half a pair may be in it, or it may be too deep."""
    return "\\ud" in text or "\\uD" in text or text.count("[") + text.count("{") > MAX_DEPTH


def _plain(value: Any, inside: tuple[int, ...]) -> Any:
    """Return *value* as JSON has it; *inside* are the ids of what it lies in."""
    if not isinstance(value, (dict, list, tuple)):
        return _plain_scalar(value)
    if id(value) in inside or len(inside) >= MAX_DEPTH:
        raise ValueError("it holds itself, or is too deep")
    inside = (*inside, id(value))
    if isinstance(value, dict):
        return {_key(key): _plain(item, inside) for key, item in value.items()}
    return [_plain(item, inside) for item in value]


def _plain_scalar(value: Any) -> Any:
    """Return what holds nothing as JSON has it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        bits = int.bit_length(value)
        return int.__index__(value) if bits < _LONG else f"a number of {bits} bits"
    if isinstance(value, float):
        return _finite(float.__repr__(value))
    return _SURROGATE.sub("\ufffd", value if isinstance(value, str) else as_text(value))


def _key(key: Any) -> str:
    """Return a key of a document as JSON writes it, or as Python does."""
    if isinstance(key, str):
        return _SURROGATE.sub("\ufffd", key)
    if key is None or isinstance(key, (bool, int, float)):
        return json.dumps(_plain_scalar(key)).strip('"')
    return _SURROGATE.sub("\ufffd", as_text(key))


def _finite(text: str) -> float | str:
    """Read a number, or return the word for one that JSON has no number for."""
    number = float(text)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
