"""``actions`` and ``unlock``: the audit log, and freeing a section by hand."""

from __future__ import annotations

import sys
from typing import Any

import click

from .app import NOTHING, Refusal, Session, at_most, command
from .cells import SHORT_JID, kind
from .confirm import confirm, myself, yes_option
from .locks import held
from .style import age, duration, line
from .table import Column


@command(
    "unlock",
    "Free a section whose holder is gone.",
    examples=[
        ('unlock finance:42 --reason "web1 is gone"', "asks first"),
        ('unlock finance:42 --fence 1844 --reason "web1 is gone" --yes', "in a script"),
    ],
)
@click.argument("key")
@click.option(
    "--fence",
    type=int,
    help="The holder's fence, as locks shows it: nothing happens if another holder has the "
    "section by now.  By default the current holder's; needed with --yes.",
)
@click.option("--reason", help="The reason, for the audit log; asked for if missing.")
@click.option("--slot", default=0, show_default=True, help="The slot of the section.")
@yes_option
def unlock(
    session: Session, *, key: str, fence: int | None, reason: str | None, slot: int, yes: bool
) -> None:
    """Free a section whose holder is gone.

    This does not stop the holder's job: if it still runs, it continues alongside the next job. You
    do not need this for a worker that was killed: its section is free once its lease has expired.
    """
    joblog = session.joblog
    found = next((h for h in held(joblog, key) if h.row.slot == slot), None)
    if found is None:
        raise Refusal(f"{key!r} is not held", NOTHING)
    if fence is None and yes:
        raise Refusal("with --yes, name the holder by --fence, as locks shows it")
    if not reason:
        if not sys.stdin.isatty():
            raise Refusal("unlocking needs a --reason, for the audit log")
        reason = click.prompt("Reason", err=True)
    now = joblog.now()
    left = duration((found.row.expires_at - now).total_seconds() * 1000)
    holder = found.row.owner if found.holder is None else f"{kind(found.holder)} {found.row.owner}"
    state = "" if found.holder is None else f", which is {found.holder.state}"
    confirm(
        f"{key!r} will be taken from {line(holder)}{state}, with {left} of its lease left and "
        f"{len(found.waiters)} waiting",
        yes=yes,
    )
    row = joblog.unlock(
        key,
        slot=slot,
        fence=found.row.fence if fence is None else fence,
        reason=str(reason),
        who=myself(),
    )
    if session.json:
        session.screen.json(row.as_dict())
    else:
        session.screen.write(f"{line(key)} is free.")


@command(
    "actions",
    "Show the audit log.",
    examples=[("actions", "who did what, when, and why")],
)
@at_most
def actions(session: Session, *, limit: int) -> None:
    """Show who did what to jobs, keys and problems, newest first."""
    joblog = session.joblog
    now = joblog.now()
    columns: list[Column[Any]] = [
        Column("Ago", lambda a: age(a.at, now), lambda a: a.as_dict()["at"], keep=9, right=True),
        Column("Who", lambda a: line(a.who), keep=8, least=12),
        Column("What", lambda a: line(a.what), keep=10),
        Column(
            "To",
            lambda a: line(a.key or (a.jid or "")[:SHORT_JID]),
            lambda a: a.key or a.jid,
            keep=7,
            least=8,
        ),
        Column("Detail", lambda a: line(a.detail or ""), keep=6, least=20),
    ]
    rows = list(joblog.actions.limit(limit + 1))
    session.show(rows[:limit], columns, nothing="no action has been recorded yet")
    if len(rows) > limit:
        session.remark("older ones were left out; see --limit")
