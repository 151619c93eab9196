"""Ticket links: one user's jobs in a period, for a week, for everyone who has the URL.

They show no arguments and nothing that may repeat them, and no links.  The URL contains the user
and the period; it only works if the audit log has its digest.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.schema.models import instant_of, to_millis

from .access import TICKETS
from .periods import Period, moment, period_in
from .users import cells_of, drawing_of, jobs_of, rows_of, verdict_of, waits_of

if TYPE_CHECKING:
    from datetime import datetime

    from starlette.datastructures import FormData
    from starlette.responses import Response

    from .context import Visit

#: The name of the action that creates one.
WHAT = "ticket"
#: How long a link is valid.
LASTS = timedelta(days=7)
_TOKEN = re.compile(r"(\d{1,18})-([A-Za-z0-9_-]{20,2000})")
_GONE = "This link is invalid or has expired. Ask for a new one."


@dataclass(frozen=True)
class Ticket:
    """The content of a ticket link."""

    user: str
    since: datetime
    until: datetime
    #: When it expires.
    ends: datetime


def make(visit: Visit, form: FormData) -> Response:
    """Create the link requested by a form, record it, and respond with it."""
    user, period = str(form.get("user", "")), period_in(visit, form)
    if not user:
        return visit.sorry(400, "No link", "A link is for a user, and for a time.")
    since, until = to_millis(period.since), to_millis(period.end)
    said = json.dumps([user, since, until, secrets.token_urlsafe(16)]).encode()
    text = base64.urlsafe_b64encode(said).rstrip(b"=").decode()
    time = moment(period.since, period.end, visit.zone)
    row = visit.joblog.record(WHAT, who=visit.who, key=_digest(text), detail=f"user {user}, {time}")
    facts = {
        "user": user,
        "time": time,
        "href": f"{visit.link.root}{TICKETS}{row.id}-{text}",
        "back": visit.link.local(str(form.get("back", ""))),
        "ends": row.at + LASTS,
    }
    return visit.page("ticket_made.html", "Link for a ticket", facts, section="jobs")


def show(visit: Visit) -> Response:
    """Respond with the jobs of a link."""
    ticket = _find(visit, visit.request.path_params["token"])
    if ticket is None:
        return visit.sorry(404, "No such link", _GONE)
    period = Period("", ticket.since, ticket.until, visit.now, "")
    rows, capped = jobs_of(visit, ticket.user, period)
    waits = waits_of(visit, rows)
    facts: dict[str, Any] = {
        "user": ticket.user,
        "time": moment(ticket.since, ticket.until, visit.zone),
        "ends": ticket.ends,
        "cells": cells_of(visit, ticket.user, period, rows, waits, capped=capped) if rows else [],
        "verdict": verdict_of(rows, visit.now),
        "rows": rows_of(visit, rows),
        "total": len(rows),
        "capped": capped,
        **drawing_of(visit, rows, waits, period),
    }
    return visit.page("ticket.html", f"User {ticket.user}", facts)


def _find(visit: Visit, token: str) -> Ticket | None:
    """Return the content of a link, if it was created here and is still valid."""
    found = _TOKEN.fullmatch(token)
    if found is None:
        return None
    row = visit.joblog.Action.get_or_none(id=int(found[1]), what=WHAT)
    if row is None or row.key is None or row.at + LASTS < visit.now:
        return None
    if not hmac.compare_digest(row.key.encode(), _digest(found[2]).encode()):
        return None
    # The digest proves that it was created here.
    said = base64.urlsafe_b64decode(found[2] + "=" * (-len(found[2]) % 4))
    user, since, until, _ = json.loads(said)
    return Ticket(user, instant_of(since), instant_of(until), row.at + LASTS)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
