"""The story: what is sent, and watching it until everything has ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dramatiq_joblog.states import FINAL

from .data import Feed, User, database, seed
from .jobs import JobType, broker, find_unmatched, import_prices, joblog, reconcile, verify

if TYPE_CHECKING:
    from rich.console import Console

    from dramatiq_joblog.schema.query import JobQuery

#: Seconds that the jobs may take.
DEADLINE = 50


class StoryError(Exception):
    """Raised when the story cannot go on; the text says why, and what to do."""


def send() -> list[str]:
    """Create the data again and send everyone's jobs; return their jids."""
    broker.flush_all()  # what an earlier story that was broken off left in our namespace
    seed()
    sent = []
    with database.connection_context():
        users = list(User.select())
        feeds = list(Feed.select().order_by(Feed.id))
    for user in users:
        mine = [feed.symbol for feed in feeds if feed.user == user]
        # One has ordered a series that nobody delivers.
        symbols = [*mine, "ENRN"] if user.name == "Hana" else mine
        sent += [import_prices.send(user.id, symbol) for symbol in symbols]
        sent.append(reconcile.send_with_options(args=(user.id,), delay=user.id % 3 * 500 or None))
        sent.append(verify.send(user.id))
        if user.name in ("Goran", "Jun"):
            sent.append(find_unmatched.send(user.id, "1234567.89"))
    return [message.message_id for message in sent]


def jobs_of(sent: list[str]) -> JobQuery:
    """Return the jobs of this story: those that were sent, and those that they sent."""
    return joblog.jobs.where(joblog.Job.jid.in_(sent) | joblog.Job.root_jid.in_(sent))


def watch(console: Console, sent: list[str]) -> None:
    """Show how the jobs go on, until all have ended.

    Raises:
      StoryError: If that takes too long.
    """
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:22}"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:3.0f} of {task.total:.0f} ended"),
        TextColumn("{task.fields[now]:18}"),
        TimeElapsedColumn(),
    )
    deadline = time.monotonic() + DEADLINE
    with Progress(*columns, console=console) as progress:
        tasks = {
            kind: progress.add_task(kind.value.replace("_", " "), total=0, now="")
            for kind in JobType
        }
        while True:
            # Asked before the bars are drawn, so that they are full in the end.
            ended, known = jobs_of(sent).in_state(*FINAL).count(), jobs_of(sent).count()
            for kind, task in tasks.items():
                mine = jobs_of(sent).of_type(kind)
                busy = mine.in_progress().count()
                progress.update(
                    task,
                    total=mine.count(),
                    completed=mine.in_state(*FINAL).count(),
                    now=f"{busy} in progress" if busy else "",
                )
            # A job that another one sends has its row before that one's end is written.
            if ended == known >= len(sent):
                return
            if time.monotonic() > deadline:
                raise StoryError(
                    f"{known - ended} of {known} jobs have not ended within {DEADLINE} seconds; "
                    "is a worker running? Start one with: dramatiq example_app"
                )
            time.sleep(0.1)
