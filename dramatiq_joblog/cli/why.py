"""``why``: the reason for a job's state, and its history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from dramatiq_joblog.payload.values import iso_text
from dramatiq_joblog.reading.reason import Around, reason_of
from dramatiq_joblog.reading.story import Event, Other, story
from dramatiq_joblog.states import State

from . import job_detail as sheet
from .app import Session, command
from .cells import SHORT_JID
from .show import Jid, find, relatives
from .style import QUIET, age, line, shape

if TYPE_CHECKING:
    from datetime import datetime

    from dramatiq_joblog import JobLog

    from .table import Screen

#: The most actions that are shown.
_DEEDS = 50
_GLYPHS = {"lock": "▪", "list": "·"}


@command(
    "why",
    "Explain the state of a job, and how it got there.",
    examples=[
        ("why 4e1b9c70", "the reason in words, and what happened"),
        ("why 4e1b9c70 --json | jq -r .reason", "for programs"),
    ],
)
@click.argument("jid", type=Jid())
def why(session: Session, *, jid: str) -> None:
    """Explain in words why a job is in its state, and show what happened to it, oldest first.

    JID may be the beginning of a jid.
    """
    joblog, screen = session.joblog, session.screen
    job = find(joblog, jid)
    reason = reason_of(job, _around(joblog, job))
    deeds = list(joblog.actions.where(joblog.Action.jid == job.jid).limit(_DEEDS))
    events = story(job, list(job.failures), relatives(joblog, job), deeds)
    if session.json:
        parts = [
            {"at": iso_text(event.at), "shape": event.shape, "text": _text(event)}
            for event in events
        ]
        screen.json({"jid": job.jid, "state": job.state, "reason": reason, "story": parts})
        return
    now = joblog.now()
    if screen.live:
        sheet.header(screen, job, now)
        screen.paragraph(Text(line(reason)))
        screen.title("What happened")
    else:
        screen.raw(line(reason))
    for event in events:
        _event(screen, event, now)


def _around(joblog: JobLog, job: Any) -> Around:
    """Query what a job may be waiting for, depending on its state."""
    now = joblog.now()
    if job.state == State.ENQUEUED:
        queue = next((queue for queue in joblog.queues() if queue.name == job.queue), None)
        return Around(now, queue=queue)
    if job.state != State.WAITING or not job.section:
        return Around(now)
    line_ = [waiter.jid for waiter in joblog.waiters(job.section).limit(1_000)]
    limit = next((each for each in joblog.limits if each.key == job.section), None)
    return Around(
        now,
        holders=list(joblog.locks.where(joblog.Lock.key == job.section).limit(10)),
        ahead=line_.index(job.jid) if job.jid in line_ else 0,
        limit=limit,
    )


def _event(screen: Screen, event: Event, now: datetime) -> None:
    clock = f"{event.at:%Y-%m-%d %H:%M:%S}"
    if not screen.live:
        screen.raw(f"{iso_text(event.at)}\t{line(_text(event))}")
        return
    glyph = Text(_GLYPHS[event.shape]) if event.shape in _GLYPHS else shape(event.shape)
    text = Text.assemble((f"{clock}  ", QUIET), glyph, " ", line(_text(event, short=True)))
    screen.hanging(text.append(f"  {age(event.at, now)} ago", QUIET), len(clock) + 4)


def _text(event: Event, *, short: bool = False) -> str:
    length = SHORT_JID if short else None
    parts = (part.jid[:length] if isinstance(part, Other) else part for part in event.parts)
    return "".join(parts)
