"""``show``: everything about one job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from dramatiq_joblog import JobNotFound
from dramatiq_joblog.reading.timeline import timeline
from dramatiq_joblog.states import Outcome

from . import job_detail as sheet
from .app import NOTHING, Refusal, Session, command
from .cells import kind
from .style import line, safe

if TYPE_CHECKING:
    from dramatiq_joblog import JobLog

#: The most lines and related jobs that are shown, unless options ask for more.
_LINES, _RELATIVES = 50, 100


class Jid(click.ParamType):  # type: ignore[type-arg]
    """A jid, or a beginning that matches only one job."""

    name = "jid"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the jids of the newest jobs."""
        try:
            session = ctx.ensure_object(Session)
            with ctx, session.refusing():
                joblog = session.joblog
                jobs = joblog.jobs.limit(20) if not incomplete else _begin_with(joblog, incomplete)
                return [CompletionItem(j.jid, help=f"{j.state} {kind(j)}") for j in jobs]
        except click.ClickException:
            return []


@command(
    "show",
    "Show everything about one job.",
    examples=[
        ("show 4e1b9c70", "a job, by the beginning of its jid"),
        ("show 4e1b9c70 --traceback", "with the traceback of every failed run"),
        ("show 4e1b9c70 --json", "for programs"),
    ],
)
@click.argument("jid", type=Jid())
@click.option(
    "--lines",
    default=_LINES,
    show_default=True,
    type=click.IntRange(0),
    help="Show at most this many log lines, the last ones.",
)
@click.option("--traceback", is_flag=True, help="Show the traceback of each failed run.")
def show(session: Session, *, jid: str, lines: int, traceback: bool) -> None:
    """Show everything about one job: its times, what failed, what it logged, its family.

    JID may be the beginning of a jid; if it matches several jobs, they are listed.
    """
    joblog = session.joblog
    job = find(joblog, jid)
    failures = list(job.failures)
    logged = list(job.lines)[-lines:] if lines else []
    family = relatives(joblog, job)
    if session.json:
        session.screen.json(
            job.as_dict()
            | {
                "failures": [row.as_dict() for row in failures],
                "lines": [row.as_dict() for row in logged],
                "family": [j.jid for j in family if j.jid != job.jid],
            }
        )
        return
    now, screen = joblog.now(), session.screen
    sheet.header(screen, job, now)
    sheet.failing(screen, job)
    sheet.facts(screen, joblog, job, now)
    sheet.timeline(screen, timeline(job, failures, now))
    failed = [f for f in failures if f.outcome not in (Outcome.WAITED, Outcome.FINISHED)]
    sheet.runs(screen, failed, every=traceback)
    sheet.lines(screen, logged)
    if len(family) > 1:
        sheet.family(screen, job, family, whole=len(family) < _RELATIVES)


def find(joblog: JobLog, jid: str) -> Any:
    """Return the job of *jid*, or the only one whose jid begins with it.

    Raises:
      Refusal: If there is none, or more than one.
    """
    try:
        return joblog.get(jid)
    except JobNotFound:
        found = _begin_with(joblog, jid)
    if not found:
        raise Refusal(f"the log has no job {jid!r}, and no job whose jid begins with it", NOTHING)
    if len(found) > 1:
        names = "\n".join(f"  {safe(j.jid)}  {j.state}  {line(kind(j))}" for j in found[:20])
        more = "\n  …" if len(found) > 20 else ""
        raise Refusal(f"more than one job begins with {jid!r}:\n{names}{more}")
    return found[0]


def _begin_with(joblog: JobLog, prefix: str) -> list[Any]:
    job = joblog.Job
    # A range uses the index on jids on every database; the results are then checked exactly.
    found = joblog.jobs.where(job.jid >= prefix, job.jid <= f"{prefix}zzzzzzzz").limit(50)
    return [row for row in found if row.jid.startswith(prefix)]


def relatives(joblog: JobLog, job: Any) -> list[Any]:
    """Return the jobs of a job's family, itself included, oldest first."""
    root = job.root_jid or job.jid
    model = joblog.Job
    mine = (model.jid == root) | (model.root_jid == root)
    return list(joblog.jobs.where(mine).order_by(model.id).limit(_RELATIVES))
