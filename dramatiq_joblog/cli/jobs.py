"""``list``: the jobs that match, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from .app import NOTHING, Refusal, Session, at_most, command
from .cells import SHORT_JID, attempts, kind, since, took, why
from .filters import filtered, select, text_of
from .style import QUIET, age, aligned, line, mark
from .table import Column

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from dramatiq_joblog.schema.query import JobQuery

#: The width from which a line has room for full jids.
_WIDE = 160


@command(
    "list",
    "Show jobs, newest first.",
    examples=[
        ("list", "the newest jobs"),
        ("list state:dead type:reconciliation since:1h", "words, as in the dashboard's search"),
        ("list --state dead --type reconciliation --since 1h", "the same, as options"),
        ("list user:7 -state:finished", "a user's jobs that have not finished"),
        ('list timeout since:2026-11-24T07:00 until:"2026-11-24 08:00"', "by text and by time"),
        ('list --saved "dead imports" since:1d', "a saved search, narrowed further"),
        ("list state:dead | cut -f1", "full jids, one per line"),
    ],
)
@filtered
@click.option(
    "--before",
    metavar="PLACE",
    help="Continue a list: the value printed at its end.",
)
@at_most
def list_jobs(
    session: Session,
    *,
    words: tuple[str, ...],
    filters: dict[str, Any],
    before: str | None,
    limit: int,
) -> None:
    """Show jobs, newest first.

    WORDs are as in the dashboard's search: state:dead, type:, user:, actor:, queue:, error:,
    worker:, section:, since:, until:, id: and bare text; -key:value excludes, a repeated key
    matches any of its values, * matches any text.  Times are 30m, 2h, 1d, 2w ago, or
    dates such as 2026-11-24T12:00, in UTC.

    In a pipe each job is a line of 11 values, separated by tabs: jid, state, type, actor,
    user, attempt, queue time and duration in milliseconds, when, queue, why.  If --limit leaves
    jobs out, standard error says how to go on.
    """
    jobs, older = _search(select(session, words, filters), limit, before)
    if session.json:
        session.screen.json([job.as_dict() for job in jobs])
    else:
        now = session.joblog.now()
        session.screen.table(columns(now, wide=session.screen.width >= _WIDE), jobs)
    if older and jobs:
        session.remark(f"for older ones add: --before {older}")
    if not jobs:
        text = text_of(words, filters)
        raise Refusal(f"no job matches {text!r}" if text else "the log has no jobs yet", NOTHING)


def _search(query: JobQuery, limit: int, before: str | None) -> tuple[list[Any], str | None]:
    """Return jobs, newest first, and the cursor of older ones, if there may be any.

    Without an index, a page of a query only reaches back a limited way; this command goes on.
    """
    page = query.page(limit=limit, before=before)
    jobs = page.jobs
    while len(jobs) < limit and page.older is not None:
        page = query.page(limit=limit - len(jobs), before=page.older)
        jobs += page.jobs
    return jobs, page.older


def columns(now: datetime, *, wide: bool = False) -> Sequence[Column[Any]]:
    """Return the columns of a list of jobs."""
    return [
        Column("Job", lambda j: _jid(j, wide=wide), lambda j: j.jid, keep=12),
        Column("State", lambda j: mark(j.state), lambda j: str(j.state), keep=11),
        Column("Type", kind, lambda j: j.job_type, keep=10, least=16),
        Column("Actor", _actor, lambda j: j.actor, keep=2, least=14),
        Column("User", lambda j: _text(j.user_id), keep=7, least=6, right=True),
        Column("Run", attempts, lambda j: j.attempt, keep=5, right=True),
        Column(
            "Queued", lambda j: aligned(j.queue_time), lambda j: j.queue_time, keep=3, right=True
        ),
        Column("Took", lambda j: aligned(took(j, now)), lambda j: j.duration, keep=6, right=True),
        Column(
            "Ago",
            lambda j: age(since(j), now),
            lambda j: j.as_dict()["updated_at"],
            keep=9,
            right=True,
        ),
        Column("Queue", lambda _: "", lambda j: j.queue),
        Column("Why", lambda j: why(j, now), lambda j: why(j, now).plain, keep=8, least=16),
    ]


def _jid(job: Any, *, wide: bool) -> Text:
    return Text(line(job.jid if wide else job.jid[:SHORT_JID]), QUIET)


def _actor(job: Any) -> str:
    return job.actor if job.job_type and job.actor != job.job_type else ""


def _text(value: Any) -> str:
    return "" if value is None else str(value)
