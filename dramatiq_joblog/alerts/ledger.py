"""The state of each alert, in a table that survives restarts and killed senders.

Each step is one guarded statement.  A notice is stored before it is sent, and each try before it
is made.  If a process dies between two steps, the notice is sent again, with growing delays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.schema.models import to_millis

from .notice import Notice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog.schema.models import AlertState

    from .rules import Sight

#: Milliseconds until an alert that stays open is repeated.
REPEAT_EVERY = 3_600_000
#: Milliseconds until a notice that failed is tried again: at first, and at most.
AGAIN, AGAIN_AT_MOST = 15_000, 900_000
#: How often a notice is tried.
MOST_TRIES = 8
#: The most notices of one alert within :data:`REPEAT_EVERY`, however often it opens.
MOST_NOTICES = 6

OPENED, REPEATED, RESOLVED = "opened", "repeated", "resolved"


@dataclass(frozen=True)
class Known:
    """The facts that decide about the next notice of an alert."""

    is_open: bool = False
    pending: str | None = None
    tries: int = 0
    sent_at: int | None = None
    #: Whether it concerns something without a notice so far.
    has_news: bool = False


def next_notice(known: Known, *, is_open: bool, now: int) -> str | None:
    """Return the notice to send, by the known state and by what is found now."""
    if is_open:
        if known.pending == RESOLVED:
            # If "resolved" was never tried, no one was notified, and the alert just stays open.
            return OPENED if known.tries else None
        if not known.is_open:
            return OPENED
        late = known.sent_at is not None and abs(now - known.sent_at) >= REPEAT_EVERY
        if known.pending is None and (late or known.has_news):
            return REPEATED
        return known.pending
    if known.is_open:
        # If "opened" was never tried, no one was notified, and nothing needs to be resolved.
        return RESOLVED if known.pending != OPENED or known.tries else None
    return known.pending


class Ledger:
    """The table of the state of alerts.

    Parameters:
      model: The bound model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def rows(self) -> dict[str, AlertState]:
        """Return the rows, by key."""
        return {row.key: row for row in self._model.select()}

    def note(self, sight: Sight, row: AlertState | None, now: int) -> None:
        """Store what was found, and the notice that is due."""
        known = Known() if row is None else known_of(row, sight)
        pending = next_notice(known, is_open=sight.is_open, now=now)
        if sight.is_muted and known.pending != RESOLVED:
            pending = None
        values: dict[str, Any] = {
            "is_open": sight.is_open,
            "pending": pending,
            "seen_at": now,
            "expects": sight.expects,
        }
        if sight.is_open:
            since = sight.since or now
            values |= {
                "name": sight.name,
                "count": sight.count,
                "summary": sight.summary,
                "jids": list(sight.jids),
                "search": sight.search or None,
                "subjects": sorted(sight.subjects),
                "since": to_millis(row.since) if row and row.is_open and row.since else since,
            }
        if pending != known.pending:
            at = now if row is None else _at(row, now)
            values |= {"tries": 0, "error": None, "next_try_at": None if pending is None else at}
        if row is None:
            self._insert(sight, values, now)
            return
        same = self._model.id == row.id, self._model.tries == row.tries
        self._model.update(values).where(*same).execute()

    def forget(self, rows: Sequence[AlertState]) -> None:
        """Delete alerts whose rules are gone."""
        if rows:
            self._model.delete().where(self._model.id.in_([row.id for row in rows])).execute()

    def due(self, now: int) -> list[AlertState]:
        """Return the alerts with a notice due now, the longest due first."""
        model = self._model
        # If it is further in the future than any delay, the clock went back.
        at = (model.next_try_at <= now) | (model.next_try_at > now + REPEAT_EVERY)
        due = model.select().where(model.pending.is_null(False), at)
        return list(due.order_by(model.next_try_at, model.id))

    def begin_try(self, row: AlertState, now: int) -> bool:
        """Store a try before it is made; return False if it is not due, or another made it."""
        again = min(AGAIN << min(row.tries, 20), AGAIN_AT_MOST)
        model, tries = self._model, row.tries + 1
        mine = model.id == row.id, model.pending == row.pending, model.tries == row.tries
        taken = model.update(tries=tries, next_try_at=now + again).where(*mine).execute()
        row.tries = tries
        return bool(taken)

    def sent(self, row: AlertState, now: int) -> None:
        """Store that a notice was sent."""
        values = {"sent": row.pending, "sent_at": now, "error": None, **_counted(row, now)}
        self._end(row, values)

    def failed(self, row: AlertState, now: int, error: str) -> bool:
        """Store that a try failed; return whether the notice is given up."""
        model = self._model
        if row.tries >= MOST_TRIES:
            # Treat it as sent: the next one comes at the earliest in an hour.
            self._end(row, {"sent_at": now, "error": error, **_counted(row, now)})
            return True
        model.update(error=error).where(model.id == row.id, model.tries == row.tries).execute()
        return False

    def _end(self, row: AlertState, values: dict[str, Any]) -> None:
        model = self._model
        values |= {"pending": None, "tries": 0, "next_try_at": None}
        # The state may have changed meanwhile: then the new notice is still due.
        mine = model.id == row.id, model.pending == row.pending, model.tries == row.tries
        model.update(values).where(*mine).execute()

    def _insert(self, sight: Sight, values: dict[str, Any], now: int) -> None:
        model = self._model
        row = {"key": sight.key, "name": sight.name, "first_seen_at": now, "tries": 0} | values
        defaults = {"count": 0, "notices": 0}
        model.insert(defaults | row).execute()


def key_of(text: str) -> str:
    """Return a key in the form of the table."""
    return fold_jid(text)


def known_of(row: AlertState, sight: Sight) -> Known:
    """Return the facts of a row that decide about the next notice."""
    return Known(
        is_open=bool(row.is_open),
        pending=row.pending,
        tries=row.tries,
        sent_at=None if row.sent_at is None else to_millis(row.sent_at),
        has_news=not sight.subjects <= {*(row.subjects or ())},
    )


def notice_of(row: AlertState, page: str | None) -> Notice:
    """Return the notice that is due according to a row."""
    pending: Any = row.pending
    return Notice(
        name=row.name,
        event=pending,
        summary=row.summary or "",
        count=row.count,
        since=row.since or row.seen_at,
        jids=list(row.jids or ()),
        search=row.search or "",
        page=page,
    )


def _at(row: AlertState, now: int) -> int:
    """Return when a new notice may be sent; later, if there were many within the hour."""
    if row.counted_since is None or row.notices < MOST_NOTICES:
        return now
    # If the clock went back, it is in the future.
    return max(now, min(now, to_millis(row.counted_since)) + REPEAT_EVERY)


def _counted(row: AlertState, now: int) -> dict[str, Any]:
    """Return the number of notices within the hour, plus one."""
    if row.counted_since is None or now - to_millis(row.counted_since) >= REPEAT_EVERY:
        return {"counted_since": now, "notices": 1}
    return {"notices": row.notices + 1}
