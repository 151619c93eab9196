"""The timeline of one job: its spans on one axis, and its runs in words."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.reading.timeline import Span, timeline
from dramatiq_joblog.states import DeadReason, Outcome, State

from .formats import plain_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

#: The width of the plot, and the minimum width of a bar, in units.
WIDTH, LEAST = 1200, 5
#: The maximum number of bars; if there are more, those in the middle are merged.
_MOST = 24
#: The middle of a row, and half the height of a full and a thin bar.
_MIDDLE, _FULL, _THIN = 20, 7, 1.5
_MS = timedelta(milliseconds=1)
#: Milliseconds between two lines of an axis.
STEPS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500),
    *(1000, 2000, 5000, 10_000, 15_000, 30_000),
    *(60_000, 120_000, 300_000, 600_000, 900_000, 1_800_000),
    *(3_600_000, 7_200_000, 14_400_000, 21_600_000, 43_200_000, 86_400_000),
)
#: The look of a span: colour, shape, form and title.
_LOOKS = {
    "queue": ("enqueued", "enqueued", "full", "Queue"),
    "waiting": ("waiting", "waiting", "full", "Waiting"),
    "back-off": ("retrying", "delayed", "thin", "Back-off"),
    "nobody": ("lost", "lost", "gap", "No worker"),
}
#: The look of a run, by its outcome or the state of its job.
_RUNS = {
    "retried": ("retrying", "retrying", "retried"),
    "dead": ("dead", "dead", "dead"),
    "interrupted": ("lost", "lost", "interrupted"),
    "skipped": ("skipped", "skipped", "skipped"),
    "finished": ("finished", "finished", "finished"),
    "started": ("started", "started", "running"),
    "lost": ("lost", "lost", "lost"),
}


@dataclass
class Bar:
    """One row of the drawing."""

    #: The job state whose colour it has.
    state: str
    #: The shape beside its title.
    shape: str
    #: ``full`` for a run, a queue or a section, ``thin`` for a back-off, ``gap`` for neither.
    kind: str
    title: str
    detail: str
    #: Its duration in milliseconds.
    duration: float
    x1: float
    x2: float
    from_above: bool = False
    to_below: bool = False

    @property
    def top(self) -> float:
        """The y coordinate of its top."""
        return _MIDDLE - (_THIN if self.kind == "thin" else _FULL)

    @property
    def bottom(self) -> float:
        """The y coordinate of its bottom."""
        return _MIDDLE + (_THIN if self.kind == "thin" else _FULL)


@dataclass
class Lifeline:
    """The complete drawing, with an axis."""

    segments: list[Bar]
    note: str
    label: str
    from_text: str
    #: Milliseconds from the first send to the end, or to now.
    total: float
    #: The positions of the axis lines.
    grid: list[float] = field(default_factory=list)
    #: Their labels, with position in percent and anchor.
    axis: list[tuple[float, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One run; *outcome* is that of a failure, or the job's state."""

    number: int
    attempt: int
    outcome: str
    begin: datetime
    end: datetime
    worker: str
    #: The row of the failure, or None for the run on the job's own row.
    failure: Any


def runs_of(job: Any, failures: Sequence[Any], now: datetime) -> list[Run]:
    """Return the runs of a job, oldest first, without waits for a section."""
    by_begin = {(f.started_at, str(f.outcome)): f for f in failures}
    return [
        Run(
            number=span.run,
            attempt=span.attempt,
            outcome=str(span.state),
            begin=span.start,
            end=span.end,
            worker=_process(span.worker),
            failure=by_begin.get((span.start, str(span.state))),
        )
        for span in timeline(job, failures, now)
        if span.kind == "run"
    ]


def draw(job: Any, failures: Sequence[Any], now: datetime) -> Lifeline:
    """Draw the timeline of a job until *now*, or until its end."""
    spans = timeline(job, failures, now)
    begin = spans[0].start if spans else job.enqueued_at or job.created_at
    end = max((span.end for span in spans), default=begin)
    total = max(1.0, (end - begin) / _MS)
    length = total * 1.001
    step = next((s for s in STEPS if total / s <= 8), total / 4)
    lines = [n * step for n in range(int(total / step) + 1)]
    bars = [_bar(span, job, begin, length) for span in _folded(spans)]
    for above, below in itertools.pairwise(bars):
        above.to_below = below.from_above = True
    counted = ", ".join(f"{bar.title} {plain_duration(bar.duration)}" for bar in bars)
    return Lifeline(
        segments=bars,
        note=_note(spans),
        label=f"Timeline of the job: {counted}",
        from_text=f"from {begin:%H:%M:%S} UTC",
        total=(end - begin) / _MS,
        grid=[_x(at, length) for at in lines],
        axis=[_label(at, step, length) for at in lines],
    )


def _bar(span: Span, job: Any, begin: datetime, length: float) -> Bar:
    if span.kind == "run":
        outcome = str(span.state)
        state, shape, word = _RUNS.get(outcome, ("enqueued", "enqueued", outcome))
        kind, title = "full", f"Run {span.run}, {word}"
    elif span.kind == "folded":
        (state, shape, kind), title = ("retrying", "retrying", "gap"), _some(span.run, "more run")
    else:
        state, shape, kind, title = _LOOKS[span.kind]
        if span.kind == "queue" and job.state == State.DELAYED:
            state, shape, title = "delayed", "delayed", "Delayed"
    x1 = min(_x((span.start - begin) / _MS, length), WIDTH - LEAST)
    x2 = max(_x((span.end - begin) / _MS, length), x1 + LEAST)
    return Bar(
        *(state, shape, kind, title, _detail(span, job)),
        duration=(span.end - span.start) / _MS,
        x1=x1,
        x2=min(WIDTH, x2),
    )


def _detail(span: Span, job: Any) -> str:
    worker = _process(span.worker)
    if span.kind == "run":
        if span.state == Outcome.INTERRUPTED:
            return f"{worker} disappeared" if worker else "its worker disappeared"
        return span.error or worker
    if job.dead_reason == DeadReason.CANCELLED and span.end == job.finished_at:
        return "until it was cancelled"
    details = {
        "queue": f"queue {job.queue}",
        "waiting": job.section or "",
        "back-off": "before the next attempt",
        "nobody": "until the broker delivers it again",
        "folded": "they are listed below",
    }
    return details[span.kind]


def _folded(spans: list[Span]) -> list[Span]:
    """Merge the middle of a long timeline into one span."""
    if len(spans) <= _MOST:
        return spans
    keep = _MOST // 2
    first, middle, last = spans[: keep - 1], spans[keep - 1 : -keep], spans[-keep:]
    runs = sum(span.kind == "run" for span in middle)
    return [*first, Span("folded", "retrying", middle[0].start, middle[-1].end, run=runs), *last]


def _note(spans: Iterable[Span]) -> str:
    runs = [span for span in spans if span.kind == "run"]
    if not runs:
        return "no run yet"
    workers = {_process(run.worker) for run in runs if run.worker}
    attempts = {run.attempt for run in runs}
    counted = ((runs, "run"), (attempts, "attempt"), (workers, "worker"))
    return ", ".join(_some(len(of), what) for of, what in counted if of)


def _x(milliseconds: float, total: float) -> float:
    return round(WIDTH * milliseconds / total, 1)


def _label(at: float, step: float, length: float) -> tuple[float, str, str]:
    share = 100 * at / length
    anchor = "start" if at == 0 else "end" if share > 96 else "middle"
    return round(share, 2), tick(at, step), anchor


def tick(at: float, step: float) -> str:
    """Format a time on an axis with lines *step* milliseconds apart.

    Example:
      >>> [tick(200, 100), tick(1500, 500), tick(90_000, 30_000), tick(7_200_000, 3_600_000)]
      ['200 ms', '1.5 s', '1:30', '2 h']
    """
    if at == 0:
        return "0"
    if step < 1000 and at < 1000:
        return f"{at:.0f} ms"
    if at < 60_000 and step < 10_000:
        return f"{at / 1000:g} s"
    if step < 3_600_000:
        minutes, seconds = divmod(round(at / 1000), 60)
        hours, rest = divmod(minutes, 60)
        return f"{hours}:{rest:02} h" if hours else f"{minutes}:{seconds:02}"
    return f"{at / 86_400_000:g} d" if step >= 86_400_000 else f"{at / 3_600_000:g} h"


def _some(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _process(worker: str | None) -> str:
    return (worker or "").rpartition(":")[0]
