"""The form for choosing a time zone."""

from __future__ import annotations

from datetime import timezone
from typing import TYPE_CHECKING
from zoneinfo import available_timezones

from starlette.responses import RedirectResponse, Response

from .access import CSRF_FIELD, check_csrf
from .zones import COOKIE, zone_of

if TYPE_CHECKING:
    from starlette.datastructures import FormData

    from .context import Visit

#: Seconds that the choice is stored: a year.
_KEPT = 31_536_000


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
