"""The history of one job, from all tables, in order of time; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.states import FINAL, Outcome, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

_VERBS = {
    "requeue": "ran it again",
    "dismiss": "dismissed it",
    "cancel": "cancelled it",
    "unlock": "unlocked",
    "prune": "pruned",
}
#: The shapes of users' actions.
_SHAPES = {"requeue": "retrying", "cancel": "skipped", "dismiss": "skipped", "unlock": "lock"}


@dataclass(frozen=True)
class Other:
    """A reference to another job in a sentence."""

    jid: str


@dataclass(frozen=True)
class Event:
    """An event in a job's history."""

    at: datetime
    #: The shape: a state, ``lock`` or ``list``.
    shape: str
    #: The sentence: texts, with references to other jobs between them.
    parts: tuple[str | Other, ...]


def sent_at(job: Any) -> datetime:
    """Return when a job was first sent, as far as known."""
    at: datetime = job.enqueued_at or job.created_at
    return at


def story(
    job: Any, failures: Sequence[Any], family: Sequence[Any], deeds: Iterable[Any]
) -> list[Event]:
    """Return the history of a job, oldest event first.

    Parameters:
      job: The row of the job.
      failures: Its failures.
      family: Jobs of its family.
      deeds: The users' actions on it.
    """
    deeds = list(deeds)
    again = max((deed.at for deed in deeds if deed.what == "requeue"), default=job.updated_at)
    events = [
        *_sent(job),
        *_runs(job, failures),
        *(Event(d.at, _SHAPES.get(d.what, "list"), (f"{d.who} {_verb(d)}",)) for d in deeds),
        *_children(job, family),
        *_end(job, family, again),
    ]
    return sorted(events, key=lambda event: event.at)


def _verb(deed: Any) -> str:
    verb = _VERBS.get(deed.what, str(deed.what))
    return f"{verb}, which {deed.detail}" if deed.what == "cancel" and deed.detail else verb


def _sent(job: Any) -> Iterator[Event]:
    parts: tuple[str | Other, ...] = ("sent",)
    if job.parent_jid is not None:
        parts = ("sent by ", Other(job.parent_jid))
    if job.replay_of:
        parts = (*parts, ", runs ", Other(job.replay_of), " again")
    yield Event(sent_at(job), "enqueued", parts)


def _runs(job: Any, failures: Sequence[Any]) -> Iterator[Event]:
    number = 0
    for failure in failures:
        if failure.started_at is None:
            continue
        if failure.outcome == Outcome.WAITED:
            yield Event(failure.started_at, "waiting", (_waited(job),))
            continue
        number += 1
        yield Event(failure.started_at, "started", (_began(number, failure.worker),))
        if failure.finished_at is not None and failure.outcome != job.state:
            shape, text = _went(failure)
            yield Event(failure.finished_at, shape, (text,))
    if job.state == State.WAITING and job.waiting_since is not None:
        yield Event(job.waiting_since, "waiting", (_waited(job),))
    stands = job.started_at is not None and all(
        failure.started_at != job.started_at for failure in failures
    )
    if stands:
        yield Event(job.started_at, "started", (_began(number + 1, job.worker),))
    if job.state == State.LOST:
        yield Event(job.updated_at, "lost", ("lost: its worker is gone",))


def _children(job: Any, family: Sequence[Any]) -> Iterator[Event]:
    for child in family:
        dead = child.state == State.DEAD and child.finished_at is not None
        if dead and child.parent_jid == job.jid:
            name = child.job_type or child.actor
            parts = (f"its child {name} ", Other(child.jid), " died")
            yield Event(child.finished_at, "dead", parts)


def _end(job: Any, family: Sequence[Any], again: datetime) -> Iterator[Event]:
    if job.finished_at is not None and job.state in FINAL:
        children = sum(child.parent_jid == job.jid for child in family)
        some = f", {children} child{'ren' * (children != 1)} sent" if children else ""
        why = f": {job.error_type}" if job.state == State.DEAD and job.error_type else ""
        yield Event(job.finished_at, str(job.state), (f"{job.state}{why}{some}",))
    if job.replayed_by:
        yield Event(again, "retrying", ("run again as ", Other(job.replayed_by)))


def _began(number: int, worker: str | None) -> str:
    place = (worker or "").rpartition(":")[0]
    return f"run {number} began" + (f" on {place}" if place else "")


def _went(failure: Any) -> tuple[str, str]:
    """Return the shape and the text of how a run ended."""
    error = failure.error_type or ""
    if failure.outcome == Outcome.INTERRUPTED:
        return "lost", "lost: the worker was silent"
    if failure.outcome == Outcome.RETRIED:
        return "retrying", f"failed: {error}" if error else "to be retried"
    return str(failure.outcome), f"{failure.outcome}: {error}" if error else str(failure.outcome)


def _waited(job: Any) -> str:
    return f"waited for {job.section}" if job.section else "waited for its section"
