"""Amounts in a search: ``>10s``, ``<=500ms``, ``2..4``."""

from __future__ import annotations

import re
from typing import Any

from dramatiq_joblog.errors import SearchError
from dramatiq_joblog.payload.values import MAX_BIGINT

_COMPARED = re.compile(r"(>=|<=|>|<|=)?\s*(.+)")
_LASTS = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(ms|s|m|min|h|d|w)?")
#: Milliseconds of each unit; a number without a unit is in milliseconds.
_UNITS = {
    "": 1,
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "min": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}
_COUNTED = re.compile(r"\d{1,9}")


def milliseconds(text: str) -> int | None:
    """Parse a duration, such as ``10s`` or ``1.5m``, to milliseconds; None if it is invalid.

    Example:
      >>> milliseconds("1.5m"), milliseconds("500"), milliseconds("soon")
      (90000, 500, None)
    """
    found = _LASTS.fullmatch(text.strip())
    if found is None:
        return None
    amount = round(float(found[1]) * _UNITS[found[2] or ""])
    return amount if amount <= MAX_BIGINT else None


def lasts(key: str, field: Any, text: str) -> Any:
    """Return the condition on a duration that *text* describes: a comparison or inclusive range.

    Raises:
      SearchError: If it says nothing of the kind.
    """
    found = None
    if ".." in text or text.strip()[:1] in {">", "<", "="}:
        found = _compared(field, text, milliseconds)
    if found is None:
        raise SearchError(
            f"{key}:{text} is not a duration to compare with: use >10s, <500ms or 1s..5s"
        )
    return found


def counts(key: str, field: Any, text: str) -> Any:
    """Return the condition on a number that *text* describes: a value, comparison or range.

    Raises:
      SearchError: If it says nothing of the kind.
    """
    found = _compared(field, text, _number)
    if found is None:
        raise SearchError(f"{key}:{text} is not a number: use 3, >2 or 2..4")
    return found


def _number(text: str) -> int | None:
    return int(text) if _COUNTED.fullmatch(text.strip()) and text.strip().isascii() else None


def _compared(field: Any, text: str, read: Any) -> Any:
    first, dots, last = text.partition("..")
    if dots:
        low, high = (read(part) if part.strip() else "open" for part in (first, last))
        if low is None or high is None or (low == "open" and high == "open"):
            return None
        if low == "open":
            return field <= high
        if high == "open":
            return field >= low
        return (field >= low) & (field <= high) if low <= high else None
    found = _COMPARED.fullmatch(text.strip())
    amount = read(found[2]) if found is not None else None
    if found is None or amount is None:
        return None
    return {
        ">": field > amount,
        ">=": field >= amount,
        "<": field < amount,
        "<=": field <= amount,
    }.get(found[1] or "=", field == amount)
