"""The time zone of a visitor: UTC, unless a cookie names another."""

from __future__ import annotations

from datetime import timezone, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if TYPE_CHECKING:
    from datetime import datetime

COOKIE = "joblog_zone"


def zone_of(name: str | None) -> tzinfo:
    """Return a time zone by name; UTC if the name is unknown."""
    if not name or len(name) > 64 or not name.isascii():
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return timezone.utc


def zone_text(now: datetime) -> str:
    """Format the zone of an instant: ``UTC``, ``CET (UTC+1)``."""
    offset = now.utcoffset()
    minutes = 0 if offset is None else round(offset.total_seconds() / 60)
    if not minutes:
        return "UTC"
    sign, minutes = ("+" if minutes > 0 else "\u2212"), abs(minutes)
    plain = f"UTC{sign}{minutes // 60}" + (f":{minutes % 60:02}" if minutes % 60 else "")
    name = now.tzname() or ""
    return f"{name} ({plain})" if name.isalpha() else plain
