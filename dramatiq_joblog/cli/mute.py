"""``mute``: a problem that is known, until a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dramatiq_joblog.admin.problem import said
from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.reading.search import instant_to_come
from dramatiq_joblog.states import ProblemKind

from .app import NOTHING, Refusal, Session, command
from .confirm import myself
from .style import ago, line
from .table import Column

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dramatiq_joblog.schema.models import Mute


@command(
    "mute",
    "Mute a known problem until a given time.",
    examples=[
        (
            "mute queues mail --until 1d --reason 'ticket 12'",
            "it is known, and can wait until tomorrow",
        ),
        ("mute queues mail --off", "report it again"),
        ("mute", "what is muted, by whom and until when"),
    ],
)
@click.argument(
    "kind", required=False, metavar="[KIND]", type=click.Choice([str(kind) for kind in ProblemKind])
)
@click.argument("subject", required=False)
@click.option(
    "--until",
    metavar="TIME",
    help="How long: 2h, 1d, or until a date such as 2026-11-24T12:00; at most 31 days.",
)
@click.option("--reason", help="Why; it is recorded.")
@click.option("--off", is_flag=True, help="Unmute it.")
def mute(
    session: Session,
    *,
    kind: str | None,
    subject: str | None,
    until: str | None,
    reason: str | None,
    off: bool,
) -> None:
    """Mute the problem of a KIND that status shows, until a time or until it gets worse.

    SUBJECT says which one if there are several of the kind. The problem is back when the time is
    over, or when its count has more than doubled. Meanwhile status shows it in grey, its exit
    code is 0 without other problems, and alerts leave it out.
    """
    joblog, screen = session.joblog, session.screen
    if kind is None:
        _show(session)
        return
    if not off and (until is None or reason is None):
        raise Refusal("say until when, and why: --until 1d --reason 'ticket 12'")
    if off:
        # A problem that is gone can be muted still, and would be when it comes again.
        muted = _one(joblog.mutes, kind, subject, "no problem {} is muted: see mute")
        joblog.unmute(muted, who=myself())
        if session.json:
            screen.json(muted.as_dict())
        else:
            screen.write(f"No longer muted: {line(muted.title)}.")
        return
    problem = _one(
        joblog.problems(muted=True), kind, subject, "there is no problem {} now: see status"
    )
    ends = instant_to_come(str(until), joblog.now())
    row = joblog.mute(problem, until=ends, reason=str(reason), who=myself())
    if session.json:
        screen.json(row.as_dict())
    else:
        screen.write(f"Muted until {said(row.until)}: {line(problem.title)}.")


def _one(found: Iterable[Any], kind: str, subject: str | None, without: str) -> Any:
    """Return the one problem, or what mutes it, that was named.

    Raises:
      Refusal: If there is none, or there are several.
    """
    same = [each for each in found if str(each.kind) == kind]
    if subject is not None:
        same = [each for each in same if fold_jid(each.subject) == fold_jid(subject)]
    if not same:
        named = kind if subject is None else f"{kind} {subject!r}"
        raise Refusal(without.format(named), NOTHING)
    if len(same) > 1:
        names = ", ".join(repr(each.subject) for each in same[:5])
        raise Refusal(f"there are {len(same)} problems of the kind {kind}: name one of {names}")
    return same[0]


def _show(session: Session) -> None:
    now = session.joblog.now()
    columns: list[Column[Mute]] = [
        Column("Kind", lambda row: row.kind, keep=9, least=8),
        Column("Subject", lambda row: row.subject or row.title, keep=8, least=12),
        Column("Ends", lambda row: ago(row.until, now), lambda row: row.as_dict()["until"], keep=7),
        Column("Who", lambda row: row.who, keep=6, least=8),
        Column("Reason", lambda row: row.reason, keep=5, least=12),
    ]
    session.show(list(session.joblog.mutes), columns, nothing="no problem is muted")
