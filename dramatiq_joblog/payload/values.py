"""Numbers and instants of any kind, made fit to be stored.

A message may contain anything that its sender's encoder accepts.  Each function takes any object
and never raises, and the same function serves writing, searching and reading.
"""

from __future__ import annotations

import math
import operator
import time
from datetime import date, datetime, timezone
from typing import Any

from .redaction import as_text

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_DAY = 86_400_000
#: The first and the last instant that are stored, in milliseconds since 1970: a day inside the
#: range of ``datetime``, so that they exist in every time zone.
MIN_MILLIS = -62_135_596_800_000 + _DAY
MAX_MILLIS = 253_402_300_799_999 - _DAY
#: The greatest value of an integer column on every database.
MAX_INT = 2**31 - 1
#: The greatest value of a big integer column, such as a primary key.
MAX_BIGINT = 2**63 - 1
#: How many characters of a number in text form are read.
_LONGEST = 40


def to_millis(instant: datetime, name: str = "") -> int:
    """Return *instant* in milliseconds since 1970.

    Parameters:
      instant: An aware datetime.
      name: The parameter that it was given as, for the error.

    Raises:
      ValueError: If *instant* has no time zone.
    """
    if instant.tzinfo is None:
        raise ValueError(
            f"{name and name + '='}{instant!r} has no time zone: use an aware datetime, such as "
            "datetime.now(timezone.utc)"
        )
    since = instant - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def host_now() -> int:
    """Return this host's time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def iso_text(instant: datetime) -> str:
    """Return the JSON form of an instant: in UTC, with milliseconds.

    An instant without a time zone, which a custom column may have, stays without one.
    """
    utc = instant if instant.tzinfo is None else instant.astimezone(timezone.utc)
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def start_of(day: date) -> datetime:
    """Return midnight UTC of a day."""
    return datetime(day.year, day.month, day.day, tzinfo=timezone.utc)


def as_millis(value: Any) -> int | None:
    """Return milliseconds since 1970, within :data:`MIN_MILLIS` and :data:`MAX_MILLIS`.

    A fraction is cut off, and a number written as text is read.

    Returns:
      None for what is not a number.
    """
    number = _whole(value)
    return None if number is None else int(min(max(number, MIN_MILLIS), MAX_MILLIS))


def as_int(value: Any, *, least: int = 0, most: int = MAX_INT) -> int | None:
    """Return a whole number, the nearest from *least* to *most*; None for what is not a number."""
    number = _whole(value)
    return None if number is None else int(min(max(number, least), most))


def as_number(value: Any) -> float | None:
    """Return a number as JSON has it, or None; NumPy's numbers, for example, are converted."""
    try:
        if hasattr(type(value), "__index__"):
            whole = operator.index(value)
            # Nobody reads the digits of a longer number.
            return whole if whole.bit_length() <= 1024 else None
        number = float(value)
    except Exception:  # noqa: BLE001
        # An actor may pass anything, and nothing may make its job fail.
        return None
    return number if math.isfinite(number) else None


def shown(value: Any, limit: int = 60) -> str:
    """Return the ``repr`` of a value for a note, cut."""
    text = as_text(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def is_same(value: Any, kept: object) -> bool:
    """Return whether a value was stored unchanged; its own ``==`` is not called."""
    return value is kept or (type(value) is type(kept) and bool(value == kept))


def _whole(value: Any) -> float | None:
    """Return a whole number, or an infinity; None for what is not a number."""
    if type(value) is int:
        return value
    try:
        number = None if isinstance(value, bool) else _read(value)
        return number if number is None or math.isinf(number) else int(number)
    except OverflowError:
        # A Decimal or a Fraction beyond the range of floats.
        return math.inf if value > 0 else -math.inf
    except Exception:  # noqa: BLE001
        # Not a number, or its own code failed.
        return None


def _read(value: Any) -> float | None:
    if hasattr(type(value), "__index__"):
        return operator.index(value)
    if not isinstance(value, str):
        return float(value)
    text = str.__str__(value).strip()
    if len(text) > _LONGEST:
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)
