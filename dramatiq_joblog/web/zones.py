"""The time zone of a visitor: UTC, unless a cookie names another."""

from __future__ import annotations

from datetime import timezone, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from starlette.responses import RedirectResponse, Response

from .access import CSRF_FIELD, check_csrf

if TYPE_CHECKING:
    from datetime import datetime

    from starlette.datastructures import FormData

    from .context import Visit

COOKIE = "joblog_zone"
#: Seconds that the choice is stored: a year.
_KEPT = 31_536_000


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


def show(visit: Visit) -> Response:
    """Respond with the form for choosing a time zone."""
    facts = {
        "next": visit.query.get("next", ""),
        "zones": sorted(available_timezones()),
        "zone_name": getattr(visit.zone, "key", "UTC"),
    }
    return visit.page("zone.html", "Time zone", facts, section="zone")


def choose(visit: Visit, form: FormData) -> Response:
    """Store the zone that a form names."""
    if problem := check_csrf(visit.request, form.get(CSRF_FIELD)):
        return visit.sorry(403, "Not done", problem)
    name = str(form.get("zone", "")).strip()
    if name != "UTC" and zone_of(name) is timezone.utc:
        return visit.sorry(400, "No such zone", f"There is no time zone called {name[:64]!r}.")
    response = RedirectResponse(visit.link.local(str(form.get("next", ""))), 303)
    response.set_cookie(
        COOKIE,
        name,
        max_age=_KEPT,
        path=visit.link.root or "/",
        secure=visit.request.scope.get("scheme") == "https",
        httponly=True,
        samesite="lax",
    )
    return response
