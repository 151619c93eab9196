"""``workers``: the worker processes, and which are gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from peewee import fn
from rich.text import Text

from .app import Session, command
from .style import QUIET, age, colour, number
from .table import Column

if TYPE_CHECKING:
    from datetime import datetime

    from dramatiq_joblog import JobLog


@dataclass(frozen=True)
class Process:
    """A worker process, and what it is running."""

    row: Any
    status: str
    running: int

    def as_dict(self) -> dict[str, Any]:
        """Return its row with its status, for JSON."""
        document: dict[str, Any] = self.row.as_dict()
        return document | {"status": self.status, "running": self.running}


@command(
    "workers",
    "Show the worker processes.",
    examples=[
        ("workers", "the workers that are alive, or silent"),
        ("workers --all", "also those that ended recently"),
        ("workers --json", "for programs"),
    ],
)
@click.option("--all", "with_ended", is_flag=True, help="Also show those that ended recently.")
def workers(session: Session, *, with_ended: bool) -> None:
    """Show the worker processes: host, last heartbeat, running jobs."""
    joblog = session.joblog
    now = joblog.now()
    found = [p for p in processes(joblog, now) if with_ended or p.status != "ended"]
    session.show(found, _columns(now), nothing="no worker of this log is known")


def processes(joblog: JobLog, now: datetime) -> list[Process]:
    """Return the worker processes that were seen recently, newest first."""
    job = joblog.Job
    pairs: Any = (
        joblog.jobs.started()
        .select(job.process, fn.COUNT(job.id))
        .order_by()
        .group_by(job.process)
        .tuples()
    )
    counts: dict[str, int] = dict(pairs)
    return [Process(w, status(w, now), counts.get(w.process, 0)) for w in joblog.workers]


def status(worker: Any, now: datetime) -> str:
    """Return ``alive``, ``silent`` (possibly dead), ``gone`` or ``ended``."""
    if worker.ended_at is not None:
        return "ended"
    if worker.swept_at is not None:
        return "gone"
    silent = (now - worker.heartbeat_at).total_seconds() * 1000
    return "silent" if silent > worker.timeout else "alive"


_MARKS = {
    "alive": ("●", ""),
    "ended": ("○", QUIET),
    "silent": ("◌", colour("lost")),
    "gone": ("◌", colour("lost")),
}
_WORDS = {"silent": "possibly dead"}


def _mark(process: Process) -> Text:
    glyph, style = _MARKS[process.status]
    return Text(f"{glyph} {_WORDS.get(process.status, process.status)}", style)


def _columns(now: datetime) -> list[Column[Process]]:
    return [
        Column("Process", lambda p: f"{p.row.host}:{p.row.pid}", keep=9, least=12),
        Column("", _mark, lambda p: p.status, keep=10),
        Column("Running", _share, lambda p: p.running, keep=8, right=True),
        Column(
            "Seen, ago",
            lambda p: age(p.row.heartbeat_at, now),
            lambda p: p.row.as_dict()["heartbeat_at"],
            keep=7,
            right=True,
        ),
        Column(
            "Up",
            lambda p: age(p.row.started_at, now),
            lambda p: p.row.as_dict()["started_at"],
            keep=5,
            right=True,
        ),
        Column("Queues", lambda p: ", ".join(p.row.queues or []), keep=6, least=10),
    ]


def _share(process: Process) -> Text:
    return Text.assemble(number(process.running), (f"/{process.row.threads}", QUIET))
