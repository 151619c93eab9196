"""The alerts page: the state of each alert, and regular job types."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.alerts.learning import regular_in
from dramatiq_joblog.reading.display import last_notice, not_sent

from .common import COUNTED_AT_MOST
from .formats import rough
from .verdict import muted_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.responses import Response

    from dramatiq_joblog.alerts.learning import Regular

    from .context import Visit

#: The number of days shown for expected jobs, of job types, and the width of a day in units.
_DAYS, _MOST, _WIDE = 28, 40, 10


@dataclass(frozen=True)
class AlertRow:
    """An alert, as the page shows it.

    Parameters:
      state: The state of the alert.
      href: The link to its jobs, if any.
    """

    state: Any
    href: str | None

    @property
    def look(self) -> str:
        """The job state whose shape and colour it has."""
        return "dead" if self.state.is_open else "finished"

    @property
    def word(self) -> str:
        """Its state as a word."""
        return "Open" if self.state.is_open else "Well"

    @property
    def last(self) -> str:
        """What the last notice said, or that it was given up."""
        return last_notice(self.state)

    @property
    def trouble(self) -> str:
        """Why the last notice could not be sent; empty if it was sent."""
        return not_sent(self.state)


@dataclass(frozen=True)
class ExpectedRow:
    """A job type that is expected, or could be.

    Parameters:
      name: The type.
      look: The job state whose shape and colour it has; empty if no alert expects it.
      word: Whether it is missing, expected or not, as a word.
      schedule: How often and when it finishes, as far as known.
      days: Whether one finished on each of the last days, today last.
      last: The last day on which one did.
      rule: The alert rule that expects it, for copying.
    """

    name: str
    look: str
    word: str
    schedule: str
    days: tuple[bool, ...]
    last: date | None
    rule: str

    @property
    def ticks(self) -> str:
        """The days on which one finished, as an SVG path of lines."""
        return "".join(f"M{_WIDE * n + 5} 3V17" for n, ran in enumerate(self.days) if ran)

    @property
    def dots(self) -> str:
        """The days on which none did, as an SVG path of dots."""
        return "".join(f"M{_WIDE * n + 5} 10h.01" for n, ran in enumerate(self.days) if not ran)

    @property
    def label(self) -> str:
        """The same in words."""
        return f"finished on {sum(self.days)} of the last {len(self.days)} days"


def alerts(visit: Visit) -> Response:
    """Respond with all alerts, open ones first, and with suggested rules."""
    log = visit.joblog
    found = visit.rows("the alerts", lambda: log.alerts)
    muted = visit.rows("what is muted", lambda: log.mutes)
    regular = visit.site.keep(
        "regular",
        lambda: visit.rows("what is regular", lambda: regular_in(log.core)),
        times=30,
    )
    expected = {state.expects for state in found}
    offered = [each for each in regular if each.job_type not in expected]
    if visit.wants_json:
        return visit.json(
            {
                "alerts": [visit.visible.as_dict(state) for state in found],
                "muted": [visit.visible.as_dict(row) for row in muted],
                "offered": [each.as_dict() for each in offered],
            }
        )
    rows = [AlertRow(s, visit.link("jobs", q=s.search) if s.search else None) for s in found]
    count = sum(state.is_open for state in found)
    facts = {
        "rows": rows,
        "expected": _expected(visit, found, regular),
        "days": _DAYS,
        "wide": _DAYS * _WIDE,
        "muted": [_muted(visit, row) for row in muted],
        "sub": f"{count} of {len(rows)} open" if rows else "",
    }
    return visit.page("alerts.html", "Alerts", facts, live=True, section="alerts")


def _muted(visit: Visit, row: Any) -> dict[str, Any]:
    """Return the mutes, including those of problems that are gone and would be muted again."""
    which = {"kind": row.kind, "subject": row.subject, "back": visit.link.back}
    return {
        "id": row.id,
        "title": row.title,
        "said": muted_by(row, visit),
        "href": visit.link("confirm", what="unmute", **which),
    }


def _expected(visit: Visit, states: Sequence[Any], regular: Sequence[Regular]) -> list[ExpectedRow]:
    """Return the expected job types, missing ones first, then suggestions."""
    watched = {state.expects: state for state in states if state.expects}
    known = {each.job_type: each for each in regular}
    names = [*watched, *(name for name in known if name not in watched)][:_MOST]
    days = _days(visit) if names else {}
    rows = []
    for name in names:
        state, each = watched.get(name), known.get(name)
        look, word = ("", "Not expected") if state is None else ("finished", "On time")
        if state is not None and state.is_open:
            look, word = "dead", "Missing"
        ran = days.get(name, ())
        ago = next((n for n, one in enumerate(reversed(ran)) if one), None)
        last = None if ago is None else visit.local_now.date() - timedelta(days=ago)
        rows.append(
            ExpectedRow(name, look, word, _schedule(visit, each), tuple(ran), last, _rule(each))
        )
    return rows


def _days(visit: Visit) -> dict[str, list[bool]]:
    """Return whether a job of each type finished on each of the last days."""
    today = visit.local_now.date()
    first = datetime.combine(today - timedelta(days=_DAYS - 1), time(), visit.zone)
    stats = visit.part(
        "the last days",
        lambda: visit.site.keep(
            f"expected {first}",
            lambda: visit.joblog.stats(since=first, at_most=COUNTED_AT_MOST),
            times=150,
        ),
        None,
    )
    found: dict[str, list[bool]] = {}
    if stats is None:
        return found
    for group in stats.groups:
        days = found[group.name] = [False] * _DAYS
        for at, count in zip(stats.times, group.series["finished"], strict=True):
            number = _DAYS - 1 - (today - at.astimezone(visit.zone).date()).days
            if count and 0 <= number < _DAYS:
                days[number] = True
    return found


def _schedule(visit: Visit, each: Regular | None) -> str:
    if each is None:
        return ""
    text = f"about every {rough(each.every)}"
    if each.usually is None:
        return text
    midnight = datetime.combine(each.last.astimezone(timezone.utc).date(), time(), timezone.utc)
    at = midnight + timedelta(milliseconds=each.usually)
    return f"{text}, usually after {at.astimezone(visit.zone):%H:%M}"


def _rule(each: Regular | None) -> str:
    if each is None:
        return ""
    return f"Expect({each.job_type!r}, every={each.every:_}, grace={each.grace:_})"
