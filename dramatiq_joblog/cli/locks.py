"""``locks``: who holds which key, for how long, and who waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from dramatiq_joblog.database.checkout import checked_out
from dramatiq_joblog.locking.limits import said_of
from dramatiq_joblog.locking.locks import fold_key
from dramatiq_joblog.states import State

from .app import NOTHING, Refusal, Session, command
from .cells import SHORT_JID, kind
from .style import QUIET, age, aligned, bar, colour, line, mark, number, safe, shape
from .table import Column

if TYPE_CHECKING:
    from datetime import datetime

    from dramatiq_joblog import JobLog
    from dramatiq_joblog.locking.rates import Used
    from dramatiq_joblog.locking.waiters import Line


@dataclass(frozen=True)
class Held:
    """A key that is held, its holder if that is a job, and those that wait for it, in order."""

    row: Any
    holder: Any
    waiters: list[Any]


@command(
    "locks",
    "Show who holds which key, and who waits.",
    examples=[
        ("locks", "all keys that are held now"),
        ("locks finance:42", "one key, with those that wait for it, in order"),
        ("locks --json", "the same for programs"),
    ],
)
@click.argument("key", required=False)
def locks(session: Session, *, key: str | None) -> None:
    """Show the keys that are held: holder, lease, fence, and who waits.

    Below them are the keys that jobs wait for, and since when, how much of each rate is
    used, and the limits that were set.  With KEY only that one, and those that wait for
    it in the order in which they will get it.
    """
    joblog = session.joblog
    now = joblog.now()
    found = held(joblog, key)
    if session.json:
        session.screen.json([_document(h) for h in found])
    else:
        if found or not session.screen.live:
            session.screen.table(_columns(now), found)
        more = session.screen.live and any(
            [
                _write_waiters(session, key, now),
                _write_rates(session, key, now),
                _write_limits(session, key),
            ]
        )
        if more:
            return
    if not found:
        raise Refusal("no key is held" if key is None else f"nobody holds {key!r}", NOTHING)


def held(joblog: JobLog, key: str | None = None) -> list[Held]:
    """Return the keys that are held, longest first."""
    query = joblog.locks
    rows = list(query if key is None else query.where(joblog.Lock.key == key))
    owners = [row.owner for row in rows if row.owner is not None]
    jobs = {job.jid: job for job in joblog.jobs.where(joblog.Job.jid.in_(owners))}
    waiters = {row.key: list(joblog.waiters(row.key)) for row in rows}
    return [Held(row, jobs.get(row.owner or ""), waiters[row.key]) for row in rows]


def _document(h: Held) -> dict[str, Any]:
    row: dict[str, Any] = h.row.as_dict()
    return row | {
        "holder": None if h.holder is None else {"jid": h.holder.jid, "state": h.holder.state},
        "waiters": [job.jid for job in h.waiters],
    }


def _columns(now: datetime) -> list[Column[Held]]:
    return [
        Column("Key", lambda h: h.row.key, keep=10, least=16),
        Column("Held by", _holder, lambda h: h.row.owner, keep=9, least=18),
        Column(
            "For",
            lambda h: aligned(_milliseconds(h.row.acquired_at, now)),
            lambda h: h.row.as_dict()["acquired_at"],
            keep=6,
            right=True,
        ),
        Column(
            "Lease left",
            lambda h: _lease(h, now),
            lambda h: h.row.as_dict()["expires_at"],
            keep=8,
            right=True,
        ),
        Column("Fence", lambda h: number(h.row.fence), lambda h: h.row.fence, keep=5, right=True),
        Column(
            "Waiting",
            lambda h: number(len(h.waiters)) if h.waiters else "",
            lambda h: len(h.waiters),
            keep=7,
            right=True,
        ),
        Column("Slot", lambda h: str(h.row.slot) if h.row.slot else "", keep=1, right=True),
    ]


def _holder(h: Held) -> Text:
    if h.holder is None:
        return Text.assemble(line(h.row.owner), ("  by hand", QUIET))
    jid = (h.row.owner[:SHORT_JID], QUIET)
    return Text.assemble(shape(h.holder.state), " ", jid, f" {line(kind(h.holder))}")


def _lease(h: Held, now: datetime) -> Text:
    left = max(0, -_milliseconds(h.row.expires_at, now))
    state = State.STARTED if h.holder is None else h.holder.state
    share = left / h.row.ttl if h.row.ttl else 0.0
    return Text.assemble(bar(share, 6, colour(state)), " ", aligned(left))


def _milliseconds(instant: datetime, now: datetime) -> int:
    return round((now - instant).total_seconds() * 1000)


def _write_limits(session: Session, key: str | None) -> bool:
    """Write the limits that people have set, and return whether there are any."""
    limits = [each for each in session.joblog.limits if key in (None, each.key)]
    if limits:
        session.screen.title("Limits that were set")
    for each in limits:
        session.screen.fit(Text(f"{line(each.key)}  {said_of(each)}, by {line(each.who)}"))
    return bool(limits)


def _write_rates(session: Session, key: str | None, now: datetime) -> bool:
    """Write how much of each rate is used, and return whether there are any."""
    joblog = session.joblog
    with checked_out(joblog.database):
        rates = joblog.transitions.locks.rates.used(None if key is None else fold_key(key))
    if rates:
        session.screen.title("Starts by rates")
        columns: list[Column[Used]] = [
            Column("Key", lambda used: used.key, keep=10, least=16),
            Column("Started", lambda used: number(used.started), keep=7, right=True),
            Column("Within", lambda used: aligned(used.per), keep=6, right=True),
            Column("The last", lambda used: f"{age(used.last, now)} ago", keep=8, right=True),
        ]
        session.screen.table(columns, rates)
    return bool(rates)


def _write_waiters(session: Session, key: str | None, now: datetime) -> bool:
    """Write who waits: for one key each job, else each key; return whether anybody does."""
    if key is not None:
        return _write_line(session, key, now)
    joblog = session.joblog
    with checked_out(joblog.database):
        lines = joblog.transitions.locks.waiters.lines()
    if lines:
        session.screen.title("Waiting")
        columns: list[Column[Line]] = [
            Column("Key", lambda waiting: waiting.key, keep=10, least=16),
            Column("Jobs", lambda waiting: number(waiting.jobs), keep=5, right=True),
            Column("The first for", lambda waiting: age(waiting.since, now), keep=8, right=True),
        ]
        session.screen.table(columns, lines)
    return bool(lines)


def _write_line(session: Session, key: str, now: datetime) -> bool:
    waiters = list(session.joblog.waiters(key))
    if waiters:
        session.screen.title("Waiting, in order")
    for place, job in enumerate(waiters, 1):
        session.screen.fit(
            Text.assemble(
                (f"{place:>3}  ", QUIET),
                mark(job.state),
                (f"  {safe(job.jid[:SHORT_JID])}  ", QUIET),
                f"{line(kind(job))}  for {age(job.waiting_since, now)}",
            )
        )
    return bool(waiters)
