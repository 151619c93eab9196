"""The parts of one job's details, for people."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from dramatiq_joblog.states import FINAL, State

from .cells import SHORT_JID, due, error, kind, progress
from .style import (
    QUIET,
    TITLE,
    ago,
    aligned,
    colour,
    duration,
    exact,
    line,
    mark,
    number,
    safe,
    shape,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from dramatiq_joblog import JobLog
    from dramatiq_joblog.reading.timeline import Span

    from .table import Screen

#: The most spans that are drawn; the first and the last ones matter.
_SPANS = 30
#: Cells for the label before a bar of the timeline, and for the time after it.
_LABEL, _TIME = 34, 10
#: Cells of a name in the family.
_NAME = 44


def header(screen: Screen, job: Any, now: datetime) -> None:
    """Write the job's name, state and jid."""
    screen.write((line(kind(job)), TITLE))
    text = Text.assemble(mark(job.state), "  ", (safe(job.jid), QUIET))
    if job.eta is not None and job.state not in FINAL:
        text.append(f"  runs next {due(job.eta, now)}")
    if job.dismissed_at is not None:
        text.append(f"  dismissed {ago(job.dismissed_at, now)}")
    screen.write(text)
    screen.rule()


def failing(screen: Screen, job: Any) -> None:
    """Write why it is dead, skipped or retried."""
    reason = job.dead_reason or job.skip_reason
    text = error(job, style="")
    if reason and text:
        text = Text.assemble(text, (f"  ({line(reason)})", QUIET))
    elif reason:
        text = Text(line(reason))
    if text:
        screen.paragraph(text)
        screen.write()


def facts(screen: Screen, joblog: JobLog, job: Any, now: datetime) -> None:
    """Write its fields as pairs of a name and a value."""
    attempt = (
        f"{job.attempt} of {job.max_retries + 1}"
        if job.max_retries is not None
        else str(job.attempt)
    )
    pairs: list[tuple[str, Text | str]] = [
        ("actor", line(job.actor) + _call(job)),
        ("queue", line(job.queue)),
        ("user", "" if job.user_id is None else line(job.user_id)),
        ("attempt", attempt),
        ("queued", duration(job.queue_time)),
        ("took", duration(job.duration)),
        ("sent", _when(job.enqueued_at, now)),
        ("started", _when(job.started_at, now)),
        ("finished", _when(job.finished_at, now)),
        ("worker", line(job.worker or "")),
        ("section", _section(joblog, job, now)),
        ("progress", progress(job.progress, 20)),
        *((name, _short(getattr(job, name))) for name in joblog.core.own_fields if name != "user"),
        ("noted", _short(job.meta)),
        ("options", _short(job.options)),
        ("trace", line(job.trace_id or "")),
        ("sent by", line(job.parent_jid or "")),
        ("repeats", line(job.replay_of or "")),
        ("run again as", line(job.replayed_by or "")),
        ("note", line(job.note or "")),
    ]
    screen.facts(pairs)


def _call(job: Any) -> str:
    """Return the arguments in the form of a call."""
    if job.args is None and job.kwargs is None:
        return ""
    args, kwargs = job.args or [], job.kwargs or {}
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        # The arguments were too long to store, or are not JSON.
        return f"({line(json.dumps([args, kwargs], ensure_ascii=False))})"
    parts = [_value(value) for value in args]
    parts += [f"{name}={_value(value)}" for name, value in kwargs.items()]
    return line(f"({', '.join(parts)})")


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _short(value: Any) -> str:
    return (
        ""
        if value in (None, {}, [])
        else line(_value(value) if not isinstance(value, str) else value)
    )


def _when(instant: datetime | None, now: datetime) -> Text:
    if instant is None:
        return Text()
    return Text.assemble(exact(instant), (f"  {ago(instant, now)}", QUIET))


def _section(joblog: JobLog, job: Any, now: datetime) -> Text:
    if not job.section:
        return Text()
    text = Text(line(job.section))
    if job.state in FINAL:
        return text
    lock = joblog.Lock
    held: Any
    for held in joblog.locks.where(lock.key == job.section):
        left = duration((held.expires_at - now).total_seconds() * 1000)
        if held.owner == job.jid:
            text.append(f"  held, fence {number(held.fence)}, lease {left}", QUIET)
        else:
            text.append(f"  held by {line(held.owner)}, lease {left}", QUIET)
    return text


def timeline(screen: Screen, spans: Sequence[Span]) -> None:
    """Draw a timeline of the job."""
    if not spans:
        return
    begin, end = spans[0].start, max(span.end for span in spans)
    whole = max(1, round((end - begin).total_seconds() * 1000))
    room = max(10, screen.width - _LABEL - _TIME - 2)
    screen.title("Timeline", f"{duration(whole)} from the first send")
    left_out = len(spans) - _SPANS
    for place, span in enumerate(spans):
        if left_out > 0 and _SPANS // 2 <= place < _SPANS // 2 + left_out:
            if place == _SPANS // 2:
                screen.write((f"  … {number(left_out)} more, as above and below", QUIET))
            continue
        label = _label(span)
        label.truncate(_LABEL, overflow="ellipsis", pad=True)
        before = round((span.start - begin).total_seconds() * 1000)
        took = aligned(span.milliseconds)
        took.align("right", _TIME)
        screen.write(label, _drawn(span, before / whole, span.milliseconds / whole, room), took)


_STROKES = {"back-off": "─", "nobody": "╌"}


def _drawn(span: Span, offset: float, share: float, room: int) -> Text:
    """Return a span's bar at its position, at least one cell wide."""
    length = max(1, round(share * room))
    start = min(round(offset * room), room - length)
    style = colour(span.state)
    stroke = _STROKES.get(span.kind, "━")
    return Text.assemble(" " * start, (stroke * length, style), " " * (room - start - length + 2))


def _label(span: Span) -> Text:
    text = Text.assemble(shape(span.state), " ")
    if span.kind != "run":
        names = {
            "queue": "Queue",
            "waiting": "Waiting",
            "back-off": "Back-off",
            "nobody": "No worker",
        }
        text.append(names[span.kind])
        return text
    text.append(f"Run {span.run}, {line(span.state)}")
    if span.error:
        text.append(f"  {line(span.error)}", QUIET)
    return text


def runs(screen: Screen, failures: Sequence[Any], *, every: bool) -> None:
    """Show each run that failed."""
    if not failures:
        return
    screen.title("Failed runs", "oldest first" if len(failures) > 1 else "")
    for number_, failure in enumerate(failures, 1):
        screen.fit(
            Text.assemble(
                mark(failure.outcome),
                f"  run {number_}, attempt {failure.attempt}  {duration(failure.duration)}",
                (f"  {line(failure.worker or '')}", QUIET),
            )
        )
        if text := error(failure):
            screen.paragraph(text, 2)
        if failure.traceback and (every or failure is failures[-1]):
            _traceback(screen, failure.traceback)


# The folder of installed packages: only the rest of such a path matters to people.
_INSTALLED = re.compile(r'(?<=File ")[^"]*/(?:site|dist)-packages/')


def _traceback(screen: Screen, text: str) -> None:
    frames = safe(text).rstrip().splitlines()
    if screen.live:
        here = f'File "{Path.cwd()}/'
        frames = [_INSTALLED.sub("…/", one).replace(here, 'File "') for one in frames]
    for number_, one in enumerate(frames, 1):
        # The frames of the user's code and the last line matter most.
        quiet = number_ < len(frames) and (not one.startswith("  File ") or "…/" in one)
        indent = len(one) - len(one.lstrip())
        screen.paragraph(Text(one.strip(), QUIET if quiet else ""), 4 + indent)


def lines(screen: Screen, logged: Sequence[Any]) -> None:
    """Show its log lines."""
    if not logged:
        return
    screen.title("Log lines")
    attempt = None
    for row in logged:
        if row.attempt != attempt:
            attempt = row.attempt
            screen.write((f"  attempt {attempt}", QUIET))
        before = f"  {row.time:%H:%M:%S}.{row.time.microsecond // 1000:03} {row.level.lower():<8}"
        screen.hanging(Text.assemble((before, QUIET), line(row.text)), len(before))


def family(screen: Screen, job: Any, jobs: Sequence[Any], *, whole: bool) -> None:
    """Draw a job's family as a tree: each job below the one that sent it."""
    known = {one.jid for one in jobs}
    children: dict[str | None, list[Any]] = {}
    for one in jobs:
        parent = one.parent_jid if one.parent_jid in known and one.parent_jid != one.jid else None
        children.setdefault(parent, []).append(one)
    count = f"{number(len(jobs))} jobs"
    screen.title("Family", count if whole else f"the first {count}")
    for top in children.get(None, []):
        for stem, one in _branches(top, children):
            screen.fit(
                Text.assemble((stem, QUIET), _relative(screen, one, mine=one.jid == job.jid))
            )


def _branches(
    top: Any, children: dict[str | None, list[Any]], stem: str = "", fork: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield a job and all jobs below it, each with the lines of the tree before it."""
    yield stem + fork, top
    stem += {"├ ": "│ ", "└ ": "  "}.get(fork, "")
    below = children.get(top.jid, [])
    for one in below:
        yield from _branches(one, children, stem, "└ " if one is below[-1] else "├ ")


def _relative(screen: Screen, job: Any, *, mine: bool) -> Text:
    jid = job.jid[:SHORT_JID] if screen.live else job.jid
    name = Text(line(kind(job)), TITLE if mine else "")
    if screen.live:
        # The name is cut, because the jid after it identifies the job.
        name.truncate(_NAME, overflow="ellipsis")
    text = Text.assemble(shape(job.state), " ", name)
    text.append(f"  {safe(jid)}", QUIET)
    if mine:
        text.append("  this job", QUIET)
    elif job.state == State.DEAD and job.error_type:
        text.append(f"  {line(job.error_type)}")
    elif job.duration is not None:
        text.append(f"  {duration(job.duration)}", QUIET)
    return text
