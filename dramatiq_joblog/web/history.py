"""All that happened to one job, from all tables, in the order of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from dramatiq_joblog.states import FINAL, Outcome, State

from .presenters import sent_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from .context import Visit

    #: When, the shape that it has, and what.
    Event = tuple[datetime, str, Any]

_VERBS = {
    "requeue": "ran it again",
    "dismiss": "dismissed it",
    "cancel": "cancelled it",
    "unlock": "unlocked",
    "prune": "pruned",
}


def _verb(deed: Any) -> str:
    verb = _VERBS.get(deed.what, str(deed.what))
    return f"{verb}, which {deed.detail}" if deed.what == "cancel" and deed.detail else verb


def history(
    visit: Visit,
    found: Any,
    failures: Sequence[Any],
    family: Sequence[Any],
    deeds: Iterable[Any],
) -> list[Event]:
    """Return all that happened to a job, oldest first: when, its shape, and what."""
    events = [
        *_sent(visit, found),
        *_runs(found, failures),
        *(
            (d.at, _SHAPES.get(d.what, "list"), Markup("{} {}").format(d.who, _verb(d)))
            for d in deeds
        ),
        *_children(visit, found, family),
        *_end(visit, found, family),
    ]
    return sorted(events, key=lambda event: event[0])


def _deeds(deeds: Iterable[Any]) -> Iterator[Event]:
    for deed in deeds:
        text = Markup("{} {}").format(deed.who, _verb(deed))
        yield deed.at, _SHAPES.get(deed.what, "list"), text


def _to(visit: Visit, jid: str) -> Markup:
    href = visit.link("job", jid=jid)
    return Markup('<a class="link mono" href="{}">{}</a>').format(href, jid[:8])


def _sent(visit: Visit, found: Any) -> Iterator[Event]:
    text = Markup("sent")
    if found.parent_jid is not None:
        text = Markup("sent by ") + _to(visit, found.parent_jid)
    if found.replay_of:
        text = text + Markup(", runs ") + _to(visit, found.replay_of) + Markup(" again")
    yield sent_at(found), "enqueued", text


def _runs(found: Any, failures: Sequence[Any]) -> Iterator[Event]:
    number = 0
    for failure in failures:
        if failure.started_at is None:
            continue
        if failure.outcome == Outcome.WAITED:
            yield failure.started_at, "waiting", _waited(found)
            continue
        number += 1
        yield failure.started_at, "started", _began(number, failure.worker)
        if failure.finished_at is not None and failure.outcome != found.state:
            yield failure.finished_at, *_went(failure)
    if found.state == State.WAITING and found.waiting_since is not None:
        yield found.waiting_since, "waiting", _waited(found)
    stands = found.started_at is not None and all(
        failure.started_at != found.started_at for failure in failures
    )
    if stands:
        yield found.started_at, "started", _began(number + 1, found.worker)
    if found.state == State.LOST:
        yield found.updated_at, "lost", "lost: its worker is gone"


def _children(visit: Visit, found: Any, family: Sequence[Any]) -> Iterator[Event]:
    for child in family:
        dead = child.state == State.DEAD and child.finished_at is not None
        if dead and child.parent_jid == found.jid:
            name = child.job_type or child.actor
            text = Markup("its child {} {} died").format(name, _to(visit, child.jid))
            yield child.finished_at, "dead", text


def _end(visit: Visit, found: Any, family: Sequence[Any]) -> Iterator[Event]:
    if found.replayed_by:
        text = Markup("run again by ") + _to(visit, found.replayed_by)
        yield found.updated_at, "retrying", text
    if found.finished_at is not None and found.state in FINAL:
        children = sum(child.parent_jid == found.jid for child in family)
        some = f", {children} child{'ren' * (children != 1)} sent" if children else ""
        why = f": {found.error_type}" if found.state == State.DEAD and found.error_type else ""
        yield found.finished_at, str(found.state), f"{found.state}{why}{some}"


#: The shapes of what people do.
_SHAPES = {"requeue": "retrying", "cancel": "skipped", "dismiss": "skipped", "unlock": "lock"}


def _began(number: int, worker: str | None) -> str:
    place = (worker or "").rpartition(":")[0]
    return f"run {number} began" + (f" on {place}" if place else "")


def _went(failure: Any) -> tuple[str, str]:
    """Return the shape of how a run ended, and how in words."""
    error = failure.error_type or ""
    if failure.outcome == Outcome.INTERRUPTED:
        return "lost", "lost: the worker was silent"
    if failure.outcome == Outcome.RETRIED:
        return "retrying", f"failed: {error}" if error else "to be retried"
    return str(failure.outcome), f"{failure.outcome}: {error}" if error else str(failure.outcome)


def _waited(found: Any) -> str:
    return f"waited for {found.section}" if found.section else "waited for its section"
