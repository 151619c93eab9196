"""Text and arguments that every database can hold."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from .redaction import as_text, without_loops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .redaction import Redactor

#: A jid longer than this is folded to its digest, so that every database can index it.
MAX_JID = 255
#: Characters kept of an error's text, of a traceback and of an argument document.
MAX_MESSAGE = 10_000
MAX_TRACEBACK = 100_000
MAX_DOCUMENT = 64_000

_NO_JSON = "arguments that JSON cannot hold are kept as text"
#: How a document begins that stands for one that was too long.
LEFT_OUT = '{"left_out": '

# No database holds NUL in text on PostgreSQL, and no driver encodes a lone surrogate.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


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


def clean_optional(text: Any, limit: int = 255) -> str | None:
    """Return ``str(text)`` as it can be stored, cut at *limit*, or None for None."""
    if text is None:
        return None
    return _UNSTORABLE.sub("\ufffd", str(getattr(text, "value", text)))[:limit]


def fold_jid(jid: str) -> str:
    """Return *jid*, or the same short stand-in for the same too long one."""
    jid = _UNSTORABLE.sub("\ufffd", str(jid))
    if len(jid) <= MAX_JID:
        return jid
    return f"sha256:{hashlib.sha256(jid.encode()).hexdigest()}"


def message_of(error: BaseException) -> str:
    """Return an error's text, whatever its own ``__str__`` does."""
    try:
        return str(error)
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
        text, note = _dumps(kept)
        redacted = kept is not value
    except (TypeError, ValueError, RecursionError):
        # It holds itself, or is as deep as if it did.
        whole = without_loops(value)
        kept = redactor.value(whole, names)
        text, note = json.dumps(clean(as_text(kept), MAX_DOCUMENT // 2)), _NO_JSON
        redacted = kept is not whole
    if len(text) > MAX_DOCUMENT:
        note = f"arguments of {len(text)} characters are longer than {MAX_DOCUMENT} and not kept"
        text = f'{LEFT_OUT}"{len(text)} characters"}}'
    return Document(text, note, redacted)


def _dumps(value: Any) -> tuple[str, str | None]:
    try:
        return json.dumps(value), None
    except (TypeError, ValueError):
        return json.dumps(value, default=as_text, skipkeys=True), _NO_JSON
