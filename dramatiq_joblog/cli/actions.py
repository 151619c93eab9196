"""``requeue``, ``dismiss`` and ``cancel``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click
from peewee import PeeweeException

from dramatiq_joblog import (
    CancelInterruptedError,
    JobLogError,
    RequeueInterruptedError,
)
from dramatiq_joblog.admin.cancel import Cancelling
from dramatiq_joblog.broker.bulk import requeue_named
from dramatiq_joblog.broker.options import REPLAY_OF
from dramatiq_joblog.payload.sanitize import message_of
from dramatiq_joblog.states import CANCELLABLE, FINAL, State

from .app import AWAY, NOTHING, Refusal, Session, command
from .cells import kind
from .confirm import confirm, many, myself, progress, yes_option
from .filters import filtered, select
from .jobs import columns
from .show import find
from .style import QUIET, duration, line, mark, number, safe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog import JobLog

#: The most jobs that one command changes, unless an option allows more.
_MOST = 1_000

#: How many jobs that could not run again are shown one by one.
_SHOWN = 20

_limit = click.option(
    "--limit",
    "-n",
    default=_MOST,
    show_default=True,
    type=click.IntRange(1),
    help="Change at most this many.",
)


@command(
    "requeue",
    "Run jobs again, as new jobs.",
    examples=[
        ("--app shop.jobs:joblog requeue 4e1b9c70", "run one job again, with its arguments"),
        ("--app shop.jobs:joblog requeue type:reconciliation since:1d", "all dead jobs of a day"),
        ("--app shop.jobs:joblog requeue --error Timeout --dry-run", "only show which"),
    ],
)
@filtered
@click.option("--dry-run", is_flag=True, help="Only show which jobs would run again.")
@_limit
@yes_option
def requeue(
    session: Session,
    *,
    words: tuple[str, ...],
    filters: dict[str, Any],
    dry_run: bool,
    limit: int,
    yes: bool,
) -> None:
    """Run jobs again, each as a new job with the same arguments and options.

    WORDs are jids, or their beginnings, or words of a search. A search selects only dead jobs,
    unless it has a state:, and no job that was run again before. This needs the application with
    its broker and actors: --app.
    """
    joblog = session.joblog
    _check_actors(session)
    named = _named(session, words, filters)
    jobs = named or _found(session, words, filters, limit, "run again")
    if dry_run:
        _show(session, jobs, "would run again")
        return
    if len(jobs) > 1:
        confirm(f"{_counted(jobs)} will run again", yes=yes)
    if len(named) == 1:
        # For a single job, the reason of the refusal is the whole answer.
        _show_requeued(session, [_send_one(joblog, named[0].jid)], {})
        return
    sent, refused, broken = _send(joblog, jobs, named=bool(named))
    _show_requeued(session, sent, refused)
    if broken is not None:
        raise broken
    _refuse("not all could run again", refused)


def _check_actors(session: Session) -> None:
    """Refuse to run jobs again without the application's broker and actors."""
    sender = session.joblog.core.sender
    if sender is not None and sender.declares_actors:
        return
    if session.app:
        raise Refusal(
            f"--app {session.app}: this module declares no actors; name one that imports them, "
            "and that has the log, as the module that your workers run"
        )
    raise Refusal(
        "running a job again needs the application's broker and actors: name its log with "
        "--app module:joblog"
    )


def _send_one(joblog: JobLog, jid: str) -> tuple[str, str]:
    """Run a job again; return its jid and the new one."""
    try:
        return jid, joblog.requeue(jid, who=myself()).message_id
    except (JobLogError, PeeweeException):
        raise
    except Exception as e:
        # Each broker raises its own kinds of errors.
        text = line(joblog.core.redactor.error(message_of(e)))
        raise Refusal(f"the application's broker is unavailable: {text}", AWAY) from e


def _send(
    joblog: JobLog, jobs: Sequence[Any], *, named: bool
) -> tuple[list[tuple[str, str]], dict[str, str], Exception | None]:
    """Run jobs again; return old and new jids, reasons of refusals, and what interrupted it."""
    # Jobs named by jid are run again even if they were before.
    jids, broken = [job.jid for job in jobs], None
    with progress("running again", len(jids)) as update:
        try:
            done = requeue_named(joblog.core, jids, who=myself(), repeat=named, progress=update)
            messages, refused = done.sent, done.refused
        except RequeueInterruptedError as e:
            messages, refused, broken = e.sent, e.refused, Refusal(line(e), AWAY)
    return [(m.options[REPLAY_OF], m.message_id) for m in messages], refused, broken


def _show_requeued(
    session: Session, sent: Sequence[tuple[str, str]], refused: dict[str, str]
) -> None:
    screen = session.screen
    if session.json:
        screen.json(
            {
                "sent": [{"jid": new, "replay_of": old} for old, new in sent],
                "refused": refused,
            }
        )
    else:
        for old, new in sent:
            screen.write(
                mark(State.ENQUEUED), f"  {safe(new)}", (f"  runs {safe(old)} again", QUIET)
            )
        for jid, reason in list(refused.items())[:_SHOWN]:
            screen.write(
                mark(State.DEAD), f"  {safe(jid)}", (f"  not again: {line(reason)}", QUIET)
            )


def _refuse(what: str, refused: dict[str, str]) -> None:
    """Report why something could not be done, if anything could not."""
    if refused:
        reasons = Counter(refused.values()).most_common(3)
        counts = "; ".join(f"{many(count, 'job')}: {line(reason)}" for reason, count in reasons)
        raise Refusal(f"{what}: {counts}", NOTHING)


@command(
    "dismiss",
    "Mark dead jobs as handled.",
    examples=[
        ("dismiss 4e1b9c70", "a dead job that needs no more attention"),
        (
            "dismiss --error MissingSeriesError until:7d",
            "all dead jobs with an error, older than a week",
        ),
    ],
)
@filtered
@_limit
@yes_option
def dismiss(
    session: Session,
    *,
    words: tuple[str, ...],
    filters: dict[str, Any],
    limit: int,
    yes: bool,
) -> None:
    """Mark dead jobs as handled: lists of dead jobs leave them out.

    WORDs are jids, or their beginnings, or words of a search. Nothing is deleted, and the audit
    log records who did it: see actions.
    """
    joblog = session.joblog
    jobs = _named(session, words, filters) or _found(session, words, filters, limit, "dismissed")
    confirm(f"{_counted(jobs)} will be dismissed", yes=yes or len(jobs) == 1)
    dismissed = joblog.dismiss(*(job.jid for job in jobs), who=myself())
    if session.json:
        session.screen.json({"dismissed": dismissed})
    elif dismissed:
        session.screen.write(f"{many(len(dismissed), 'job')} dismissed.")
    if not dismissed:
        raise Refusal("none of them is dead and not dismissed yet", NOTHING)


@command(
    "cancel",
    "Cancel jobs that are not running.",
    examples=[
        ("cancel 4e1b9c70", "a job whose message is gone, or that is no longer wanted"),
        ('cancel until:1h --reason "Redis was flushed"', "all lost ones older than an hour"),
        ("cancel state:enqueued until:1h --yes", "all jobs sent earlier, without asking"),
    ],
)
@filtered
@_limit
@click.option("--reason", help="The reason, for the audit log.")
@yes_option
def cancel(
    session: Session,
    *,
    words: tuple[str, ...],
    filters: dict[str, Any],
    limit: int,
    reason: str | None,
    yes: bool,
) -> None:
    """Cancel jobs that are not running: they become dead and free what they hold.

    WORDs are jids, or their beginnings, or words of a search. A search selects only lost jobs,
    unless it has a state:. If the message of a cancelled job is delivered later, it does not run.
    Running jobs are refused: the log cannot stop code.
    """
    joblog = session.joblog
    jobs = _named(session, words, filters) or _found(session, words, filters, limit, "cancelled")
    able = [job for job in jobs if job.state not in FINAL]
    if able:
        states = ", ".join(f"{number(n)} {s}" for s, n in Counter(j.state for j in able).items())
        confirm(f"{_counted(able)}, {states}, will become dead and not run", yes=yes)
    cancelled, refused, broken = _cancel(joblog, jobs, reason)
    if session.json:
        session.screen.json({"cancelled": cancelled, "refused": refused})
    elif cancelled:
        session.screen.write(f"{many(len(cancelled), 'job')} cancelled.")
    if broken is not None:
        raise broken
    _refuse("not all could be cancelled", refused)


def _cancel(
    joblog: JobLog, jobs: Sequence[Any], reason: str | None
) -> tuple[list[str], dict[str, str], Exception | None]:
    """Cancel jobs; return their jids, the reasons for refusals, and what interrupted it."""
    if len(jobs) == 1:
        # For a single job, the reason of the refusal is the whole answer.
        return [joblog.cancel(jobs[0].jid, who=myself(), reason=reason).jid], {}, None
    jids = [job.jid for job in jobs]
    with progress("cancelling", len(jids)) as update:
        try:
            done = Cancelling(joblog.core).named(jids, who=myself(), reason=reason, progress=update)
        except CancelInterruptedError as e:
            return e.cancelled, e.refused, Refusal(line(e), AWAY)
    return done.cancelled, done.refused, None


def _named(session: Session, words: Sequence[str], filters: dict[str, Any]) -> list[Any]:
    """Return the jobs that are named by jid, or nothing if it is a search."""
    bare = [word for word in words if ":" not in word]
    if not bare:
        if words or any(filters.values()):
            return []
        raise Refusal(
            "which jobs? Name them by jid, or give words of a search, such as type:import"
        )
    if len(bare) < len(words) or any(filters.values()):
        raise Refusal(f"{bare[0]!r} is a jid, and cannot be combined with other words")
    return [find(session.joblog, jid) for jid in dict.fromkeys(bare)]


def _found(
    session: Session, words: Sequence[str], filters: dict[str, Any], limit: int, what: str
) -> list[Any]:
    """Return the jobs that a search finds and to which *what* can be done."""
    job = session.joblog.Job
    query = select(session, words, filters)
    state_is_said = filters.get("state") or any(word.startswith("state:") for word in words)
    if what == "cancelled":
        query = query.in_state(*(CANCELLABLE if state_is_said else (State.LOST,)))
    elif what == "dismissed":
        query = query.dead().undismissed()
    else:
        query = query.in_state(*(FINAL if state_is_said else (State.DEAD,)))
        query = query.where(job.replayed_by.is_null())
    jobs = list(query.order_by(job.id).limit(limit + 1))
    if not jobs:
        raise Refusal(f"no job that matches can be {what}", NOTHING)
    if len(jobs) > limit:
        click.echo(f"More match: these are the oldest {number(limit)}; see --limit.", err=True)
    return jobs[:limit]


def _counted(jobs: Sequence[Any]) -> str:
    """Return ``12 jobs (8 reconciliation, 4 import), the oldest 3 d old``."""
    counts = Counter(line(kind(job)) for job in jobs).most_common()
    kinds = ", ".join(f"{number(count)} {name}" for name, count in counts[:4])
    rest = ", …" if len(counts) > 4 else ""
    span = max(job.created_at for job in jobs) - min(job.created_at for job in jobs)
    within = f", sent within {duration(span.total_seconds() * 1000)}" if len(jobs) > 1 else ""
    return f"{many(len(jobs), 'job')} ({kinds}{rest}){within}"


def _show(session: Session, jobs: Sequence[Any], what: str) -> None:
    if session.json:
        session.screen.json([job.as_dict() for job in jobs])
        return
    session.screen.table(columns(session.joblog.now()), jobs)
    click.echo(f"{_counted(jobs)} {what}.", err=True)
