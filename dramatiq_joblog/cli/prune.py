"""``prune``: delete jobs that ended long ago."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from dramatiq_joblog import JobLogError
from dramatiq_joblog.reading.search import instant
from dramatiq_joblog.states import FINAL

from .app import Refusal, Session, command
from .confirm import confirm, many, myself, progress, yes_option
from .style import number

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

_STATES = tuple(sorted(str(state) for state in FINAL))


class Keep(click.ParamType):  # type: ignore[type-arg]
    """A final state, and how long its jobs are kept, such as ``finished=7d``."""

    name = "state=time"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the final states."""
        return [CompletionItem(f"{s}=") for s in _STATES if s.startswith(incomplete)]


@command(
    "prune",
    "Delete old jobs.",
    examples=[
        ("prune --keep finished=7d --keep dead=90d --dry-run", "only count"),
        ("prune --keep finished=7d --keep dead=90d --yes", "from cron"),
        ("--app shop.jobs:joblog prune", "with the application's keep"),
    ],
)
@click.option(
    "--batch",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help="How many jobs to delete per transaction.",
)
@click.option("--dry-run", is_flag=True, help="Only count the jobs that would be deleted.")
@click.option(
    "--keep",
    multiple=True,
    type=Keep(),
    metavar="STATE=TIME",
    help="How long to keep jobs of a final state after their end, as in finished=7d; repeatable.  "
    "Jobs of other states stay.  By default the application's keep.",
)
@yes_option
def prune(session: Session, *, batch: int, dry_run: bool, keep: tuple[str, ...], yes: bool) -> None:
    """Delete old jobs, with their failed runs and log lines.

    Only finished, dead and skipped jobs are deleted, in small batches, while workers run. Their
    totals stay, so stats still includes them. The application's keep_types always apply.
    """
    joblog = session.joblog
    if not keep and session.app is None:
        raise Refusal(
            "how long are jobs kept? Give --keep finished=7d --keep dead=90d, or name the "
            "application's log with --app, if it has keep="
        )
    # The log itself refuses other states.
    times: Any = dict(map(_kept, keep)) or None
    old = joblog.prune(times, dry_run=True)
    if not old or dry_run:
        _tell(session, old, "would be deleted" if old else "")
        return
    confirm(f"{_counted(old)} will be deleted", yes=yes)
    total = sum(old.values())
    with progress("deleting", total) as update:
        gone = joblog.prune(
            times, batch=batch, progress=lambda counts: update(_jobs(counts), total)
        )
    joblog.record("prune", who=myself(), detail=_counted(gone))
    _tell(session, gone, "deleted")


def _kept(text: str) -> tuple[str, int]:
    """Parse ``finished=7d`` into a state and milliseconds."""
    state, equals, time = text.partition("=")
    if not equals or state not in _STATES:
        raise Refusal(
            f"--keep {text!r} is not understood; use one of {', '.join(_STATES)} and a time, as "
            "finished=7d"
        )
    now = datetime.now(timezone.utc)
    try:
        since = instant(time, now)
    except JobLogError as e:
        raise Refusal(f"--keep {text!r}: {e}") from e
    return state, (now - since) // timedelta(milliseconds=1)


def _jobs(counts: Mapping[str, int]) -> int:
    return sum(counts.get(state, 0) for state in _STATES)


def _counted(counts: Mapping[str, int]) -> str:
    """Return ``1 204 finished and 12 dead jobs``, or with the rows deleted with them."""
    states = [f"{number(counts[state])} {state}" for state in _STATES if counts.get(state)]
    text = _listed(states) + (" job" if _jobs(counts) == 1 else " jobs") if states else "no jobs"
    others = {"failures": "failed run", "lines": "log line"}
    more = [many(counts[name], word) for name, word in others.items() if counts.get(name)]
    return f"{text} with {_listed(more)}" if more else text


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _tell(session: Session, counts: Counter[str], done: str) -> None:
    if session.json:
        session.screen.json(dict(counts))
    elif not done:
        session.screen.write("No job is that old.")
    else:
        session.screen.write(f"{_counted(counts)} {done}.")
