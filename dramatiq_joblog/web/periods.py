"""The period of a page: a range up to now, or one selected on a chart."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.errors import SearchError
from dramatiq_joblog.reading import search
from dramatiq_joblog.schema.models import to_millis

from .formats import spaced

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .context import Visit

#: The periods of the overview and the dead jobs, in milliseconds.
RANGES = {
    "1h": 3_600_000,
    "3h": 10_800_000,
    "24h": 86_400_000,
    "3d": 259_200_000,
    "7d": 604_800_000,
    "30d": 2_592_000_000,
    "90d": 7_776_000_000,
}
DEFAULT_RANGE = "24h"
#: How long the chart of a range may be cached, in units of two seconds.
KEPT = {"1h": 1, "3h": 3, "24h": 10}
#: The maximum length of a selected period, in days.
LONGEST = 400
#: Milliseconds of a week; everything is compared with a week before.
WEEK = 604_800_000
_MS = timedelta(milliseconds=1)


@dataclass(frozen=True)
class Period:
    """A period of a page."""

    #: The name of a range; empty for a selected period.
    name: str
    since: datetime
    #: Its end; None for now.
    until: datetime | None
    #: The current time, which is the end if *until* is None.
    now: datetime
    #: Its name in a sentence.
    text: str

    @property
    def end(self) -> datetime:
        """Its end, or now."""
        return self.until or self.now

    @property
    def length(self) -> int:
        """Its length, in milliseconds."""
        return round((self.end - self.since) / _MS)

    @property
    def key(self) -> str:
        """Its key in the cache."""
        if self.name:
            return self.name
        end = "" if self.until is None else to_millis(self.until)
        return f"{to_millis(self.since)}-{end}"

    @property
    def times(self) -> int:
        """How long its chart may be cached, in units of two seconds."""
        return KEPT.get(self.name, 30)

    @property
    def words(self) -> str:
        """The search for the jobs that ended in it."""
        return f"ended:{self.name}" if self.name else within(self.since, self.until)

    def ago(self, milliseconds: int) -> tuple[datetime, datetime]:
        """Return the same period, shifted back by *milliseconds*."""
        back = milliseconds * _MS
        return self.since - back, self.end - back

    def query(self, *, whole: bool = False) -> dict[str, Any]:
        """Return its URL query; empty for the default range, unless *whole*."""
        if self.name:
            return {"range": None if self.name == DEFAULT_RANGE and not whole else self.name}
        until = None if self.until is None else _iso(self.until)
        return {"since": _iso(self.since), "until": until}


def chosen(fields: Mapping[str, Any], name: str, options: dict[str, int]) -> str:
    """Return the range that a URL or a form names.

    Raises:
      SearchError: If it is none of them.
    """
    given = str(fields.get(name, DEFAULT_RANGE))
    if given not in options:
        raise SearchError(f"{name}={given!r} is not offered: use one of {', '.join(options)}")
    return given


def period_of(visit: Visit) -> Period:
    """Return the requested period: ``since`` and ``until``, or a range.

    Raises:
      SearchError: If it is invalid.
    """
    return period_in(visit, visit.query)


def period_in(visit: Visit, given: Mapping[str, Any]) -> Period:
    """Return the period that a URL or a form names.

    Raises:
      SearchError: If it is invalid.
    """
    since, until = str(given.get("since", "")), str(given.get("until", ""))
    if not since and not until:
        name = chosen(given, "range", RANGES)
        begin = visit.now - RANGES[name] * _MS
        return Period(name, begin, None, visit.now, f"the last {spaced(name)}")
    if not since:
        raise SearchError("until= needs since=: give both ends of the time")
    begin = search.instant(since, visit.local_now)
    end = search.instant(until, visit.local_now) if until else None
    last = end or visit.now
    if not timedelta(0) < last - begin <= timedelta(days=LONGEST):
        raise SearchError(f"since={since!r} must be before until, and at most {LONGEST} days")
    return Period("", begin, end, visit.now, moment(begin, last, visit.zone))


def moment(begin: datetime, end: datetime, zone: Any) -> str:
    """Format a period from one instant to another, in a zone."""
    begin, end = begin.astimezone(zone), end.astimezone(zone)
    if begin.date() == end.date():
        return f"{begin:%d %b %H:%M} to {end:%H:%M}"
    return f"{begin:%d %b %H:%M} to {end:%d %b %H:%M}"


def within(begin: datetime, end: datetime | None) -> str:
    """Return the search for jobs that ended between two instants."""
    return f"ended:{_iso(begin)}..{'' if end is None else _iso(end)}"


def _iso(instant: datetime) -> str:
    utc = instant.astimezone(timezone.utc)
    form = "%Y-%m-%dT%H:%MZ" if not (utc.second or utc.microsecond) else "%Y-%m-%dT%H:%M:%SZ"
    return f"{utc:{form}}"
