"""``locks``: the holder, lease and waiting jobs of each key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from dramatiq_joblog.database.checkout import checked_out
from dramatiq_joblog.locking.limits import LIMIT, said_of
from dramatiq_joblog.locking.locks import fold_key
from dramatiq_joblog.locking.needs import RATE
from dramatiq_joblog.payload.values import iso_text
from dramatiq_joblog.states import State

from .app import NOTHING, Refusal, Session, command
from .cells import SHORT_JID, kind
from .style import QUIET, age, aligned, bar, colour, line, mark, number, safe, shape
from .table import Column

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from dramatiq_joblog import JobLog
    from dramatiq_joblog.locking.limits import LimitSet
    from dramatiq_joblog.locking.rates import Used
    from dramatiq_joblog.locking.waiters import Line


#: The kind of a key that jobs wait for, in addition to the kinds of rows.
WAITING = "waiting"


@dataclass(frozen=True)
class Held:
    """A held key, its holder if that is a job, and the jobs that wait for it, in order."""

    row: Any
    holder: Any
    waiters: list[Any]


@dataclass(frozen=True)
class _Known:
    """Everything known about all keys, or about one."""

    held: list[Held]
    lines: list[Line]
    rates: list[Used]
    limits: list[LimitSet]


@command(
    "locks",
    "Show who holds each key, and which jobs wait.",
    examples=[
        ("locks", "all keys that are held now"),
        ("locks finance:42", "one key, with the jobs that wait for it, in order"),
        ("locks --json", "for programs"),
    ],
)
@click.argument("key", required=False)
def locks(session: Session, *, key: str | None) -> None:
    """Show the keys that are held: holder, lease, fence, and waiting jobs.

    Below these are the keys that jobs wait for, the use of each rate, and the limits that were
    set. With KEY, show only that key, and the jobs that wait for it in order.
    """
    now = session.joblog.now()
    known = _look(session.joblog, key)
    if session.json:
        session.screen.json(list(_documents(session.joblog, known)))
    elif session.screen.live:
        _show(session, known, key, now)
    else:
        _write(session, known)
    if not any((known.held, known.lines, known.rates, known.limits)):
        raise Refusal("no key is held" if key is None else f"{key!r} is not held", NOTHING)


def _look(joblog: JobLog, key: str | None) -> _Known:
    key = None if key is None else fold_key(key)
    with checked_out(joblog.database):
        lines = joblog.core.locks.waiters.lines()
        rates = joblog.core.locks.rates.used(key)
    return _Known(
        held(joblog, key),
        [each for each in lines if key in (None, each.key)],
        rates,
        [each for each in joblog.limits if key in (None, each.key)],
    )


def held(joblog: JobLog, key: str | None = None) -> list[Held]:
    """Return the keys that are held, the longest held first."""
    query = joblog.locks
    rows = list(query if key is None else query.where(joblog.Lock.key == key))
    owners = [row.owner for row in rows if row.owner is not None]
    jobs = {job.jid: job for job in joblog.jobs.where(joblog.Job.jid.in_(owners))}
    waiters = {row.key: list(joblog.waiters(row.key)) for row in rows}
    return [Held(row, jobs.get(row.owner or ""), waiters[row.key]) for row in rows]


def _documents(joblog: JobLog, known: _Known) -> Iterator[dict[str, Any]]:
    """Yield the documents for programs; ``kind`` says what each is about."""
    for h in known.held:
        row: dict[str, Any] = h.row.as_dict()
        yield row | {
            "holder": None if h.holder is None else {"jid": h.holder.jid, "state": h.holder.state},
            "waiters": [job.jid for job in h.waiters],
        }
    for each in known.lines:
        jids = [job.jid for job in joblog.waiters(each.key)]
        yield {"kind": WAITING, "key": each.key, "since": iso_text(each.since), "waiters": jids}
    for used in known.rates:
        starts = {"started": used.started, "per": used.per, "last": iso_text(used.last)}
        yield {"kind": RATE, "key": used.key, **starts}
    for limit in known.limits:
        yield {"kind": LIMIT, **limit.as_dict()}


def _piped(document: dict[str, Any]) -> tuple[Any, ...]:
    """Return the columns of a document for a pipe, the same for all kinds."""
    get = document.get
    numbers = {RATE: get("started"), LIMIT: get("limit")}
    return (
        document["key"],
        get("owner", get("who")),
        get("acquired_at") or get("since") or get("last"),
        get("expires_at", get("until")),
        get("fence"),
        numbers.get(document["kind"], len(get("waiters", ()))),
        get("slot"),
        document["kind"],
        get("per"),
    )


def _write(session: Session, known: _Known) -> None:
    """Write the output for a pipe."""
    for document in _documents(session.joblog, known):
        session.screen.fields(_piped(document))


def _show(session: Session, known: _Known, key: str | None, now: datetime) -> None:
    if known.held:
        session.screen.table(_columns(now), known.held)
    if key is not None:
        _show_line(session, key, now)
    else:
        _show_lines(session, known.lines, now)
    _show_rates(session, known.rates, now)
    _show_limits(session, known.limits)


def _columns(now: datetime) -> list[Column[Held]]:
    return [
        Column("Key", lambda h: h.row.key, keep=10, least=16),
        Column("Held by", _holder, keep=9, least=18),
        Column(
            "For",
            lambda h: aligned(_milliseconds(h.row.acquired_at, now)),
            keep=6,
            right=True,
        ),
        Column(
            "Lease left",
            lambda h: _lease(h, now),
            keep=8,
            right=True,
        ),
        Column("Fence", lambda h: number(h.row.fence), keep=5, right=True),
        Column(
            "Waiting",
            lambda h: number(len(h.waiters)) if h.waiters else "",
            keep=7,
            right=True,
        ),
        Column("Slot", lambda h: str(h.row.slot) if h.row.slot else "", keep=1, right=True),
    ]


def _holder(h: Held) -> Text:
    if h.holder is None:
        return Text.assemble(line(h.row.owner), ("  manual", QUIET))
    jid = (h.row.owner[:SHORT_JID], QUIET)
    return Text.assemble(shape(h.holder.state), " ", jid, f" {line(kind(h.holder))}")


def _lease(h: Held, now: datetime) -> Text:
    left = max(0, -_milliseconds(h.row.expires_at, now))
    state = State.STARTED if h.holder is None else h.holder.state
    share = left / h.row.ttl if h.row.ttl else 0.0
    return Text.assemble(bar(share, 6, colour(state)), " ", aligned(left))


def _milliseconds(instant: datetime, now: datetime) -> int:
    return round((now - instant).total_seconds() * 1000)


def _show_limits(session: Session, limits: list[LimitSet]) -> None:
    """Show the limits that people have set."""
    if limits:
        session.screen.title("Limits that were set")
        columns: list[Column[LimitSet]] = [
            Column("Key", lambda limit: limit.key, keep=10, least=16),
            Column("Limit", said_of, keep=9),
            Column("Set by", lambda limit: line(limit.who), keep=8, least=12),
        ]
        session.screen.table(columns, limits)


def _show_rates(session: Session, rates: list[Used], now: datetime) -> None:
    """Show how much of each rate is used."""
    if rates:
        session.screen.title("Starts by rates")
        columns: list[Column[Used]] = [
            Column("Key", lambda used: used.key, keep=10, least=16),
            Column("Started", lambda used: number(used.started), keep=7, right=True),
            Column("Within", lambda used: aligned(used.per), keep=6, right=True),
            Column("The last", lambda used: f"{age(used.last, now)} ago", keep=8, right=True),
        ]
        session.screen.table(columns, rates)


def _show_lines(session: Session, lines: list[Line], now: datetime) -> None:
    """Show the keys that jobs wait for."""
    if lines:
        session.screen.title("Waiting")
        columns: list[Column[Line]] = [
            Column("Key", lambda waiting: waiting.key, keep=10, least=16),
            Column("Jobs", lambda waiting: number(waiting.jobs), keep=5, right=True),
            Column("The first for", lambda waiting: age(waiting.since, now), keep=8, right=True),
        ]
        session.screen.table(columns, lines)


def _show_line(session: Session, key: str, now: datetime) -> None:
    """Show the jobs that wait for one key."""
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
