"""The reason for a job's state, in whole sentences; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.payload.durations import plain
from dramatiq_joblog.states import DeadReason, State

from .display import exact, rough
from .story import sent_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime


@dataclass(frozen=True)
class Around:
    """What else is known about what a job waits for."""

    now: datetime
    #: The state of its queue, a :class:`Queue`; None if unknown.
    queue: Any = None
    #: The holders of its section, as rows of locks, and the jobs that wait before it.
    holders: Sequence[Any] = ()
    ahead: int = 0
    #: The limit set at run time for its section; None if the code's applies.
    limit: Any = None


#: The meaning of each reason for being dead; the error follows.
_DEAD = {
    DeadReason.RETRIES_EXHAUSTED: "It failed as often as max_retries allows",
    DeadReason.NO_RETRIES: "It failed, and may not be retried",
    DeadReason.RETRY_LOST: "It failed, and the broker refused its retry: run it again",
    DeadReason.THROWS: "It raised an error that its throws option names",
    DeadReason.AGE_LIMIT: "It reached its max_age before it could run",
    DeadReason.UNKNOWN_ACTOR: "No worker declares its actor",
    DeadReason.ABORTED: "Someone aborted it",
    DeadReason.INTERRUPTED: "Its runs lost their worker again and again: it may be a poison pill",
    DeadReason.CONFLICT: "Another job held its section, and its on_conflict is to fail",
    DeadReason.WAIT_TIMEOUT: "It waited for its section as long as wait_for allows",
    DeadReason.CANCELLED: "Someone cancelled it",
}


def reason_of(job: Any, around: Around) -> str:
    """Return why a job is in its state, in one or two sentences.

    Parameters:
      job: The row of the job.
      around: What else is known.
    """
    tellers: dict[str, Callable[[Any, Around], str]] = {
        State.ENQUEUED: _enqueued,
        State.DELAYED: _delayed,
        State.WAITING: _waiting,
        State.STARTED: _started,
        State.RETRYING: _retrying,
        State.LOST: _lost,
        State.FINISHED: _finished,
        State.DEAD: _dead,
        State.SKIPPED: _skipped,
    }
    return tellers[str(job.state)](job, around)


def _enqueued(job: Any, around: Around) -> str:
    text = f"It has waited in the queue {job.queue!r} for {_since(sent_at(job), around)}"
    queue = around.queue
    if queue is None or not queue.threads:
        return f"{text}: no live worker consumes it. Start one (dramatiq -Q {job.queue})."
    if queue.running >= queue.threads:
        busy = "its one thread is" if queue.threads == 1 else f"all {queue.threads} threads are"
        return f"{text}: {busy} busy, and {queue.due} jobs are due."
    return f"{text}, although a thread is free: the broker may have lost it."


def _delayed(job: Any, around: Around) -> str:
    if _is_overdue(job, around):
        return f"It was due {_due(job, around)}, and has not begun."
    return f"It is delayed until its time, {_due(job, around)}."


def _waiting(job: Any, around: Around) -> str:
    begun = job.waiting_since
    waits = "is waiting" if begun is None else f"has waited for {_since(begun, around)}"
    text = f"It {waits} for its section {job.section!r}"
    if around.limit is not None and around.limit.limit == 0:
        return f"{text}: {around.limit.who} has paused it."
    line = f", with {around.ahead} before it" if around.ahead else ""
    if around.holders:
        names = " and ".join(str(held.owner) for held in around.holders[:3])
        return f"{text}, which {names} hold{'s' * (len(around.holders) == 1)}{line}."
    return f"{text}{line}: the key is free, and no worker has taken it yet."


def _started(job: Any, around: Around) -> str:
    place = f" on {job.worker}" if job.worker else ""
    text = f"It has run{place} for {_since(job.started_at, around)}, attempt {_attempt(job)}"
    progress = job.progress if isinstance(job.progress, dict) else {}
    done, total = progress.get("done"), progress.get("total")
    counted = f", {done} of {total} done" if done is not None and total is not None else ""
    return f"{text}{counted}."


def _retrying(job: Any, around: Around) -> str:
    is_due = "was due" if _is_overdue(job, around) else "is due"
    return f"Attempt {_attempt(job)} failed{_error(job)}. The next {is_due} {_due(job, around)}."


def _lost(job: Any, around: Around) -> str:
    worker = f" {job.worker.rpartition(':')[0]}" if job.worker else ""
    return (
        f"Its worker{worker} has been gone for {_since(job.updated_at, around)}, and the broker "
        "has not delivered it again. It does so within minutes while a worker is alive."
    )


def _finished(job: Any, around: Around) -> str:
    took = "" if job.duration is None else f" after {plain(job.duration)}"
    attempt = "" if job.attempt == 1 else f", at attempt {_attempt(job)}"
    return f"It is done: it finished {_when(job, around)}{took}{attempt}."


def _dead(job: Any, around: Around) -> str:
    why = _DEAD.get(job.dead_reason, "It failed")
    times = f" ({_attempt(job)})" if job.dead_reason == DeadReason.RETRIES_EXHAUSTED else ""
    text = f"{why}{times}{_error(job)}. It died {_when(job, around)}"
    if job.replayed_by:
        return f"{text}, and was run again as {job.replayed_by}."
    dismissed = ", and was dismissed" if job.dismissed_at is not None else ""
    return f"{text}{dismissed}."


def _skipped(job: Any, around: Around) -> str:
    reason = f": {job.skip_reason}" if job.skip_reason else ""
    return f"It was dropped before it ran, {_when(job, around)}{reason}."


def _when(job: Any, around: Around) -> str:
    if job.finished_at is None:
        return "at an unknown time"
    return f"{_since(job.finished_at, around)} ago"


def _attempt(job: Any) -> str:
    allowed = "" if job.max_retries is None else f" of {job.max_retries + 1}"
    return f"{job.attempt}{allowed}"


def _error(job: Any) -> str:
    if not job.error_type:
        return ""
    return f": {job.error_type}" + (f": {job.error_message}" if job.error_message else "")


def _due(job: Any, around: Around) -> str:
    if job.eta is None:
        return "at an unknown time"
    left = (job.eta - around.now) / timedelta(milliseconds=1)
    passed = f"{rough(-left)} ago" if left < 0 else f"in {rough(left)}"
    return f"{exact(job.eta)}, {passed}"


def _is_overdue(job: Any, around: Around) -> bool:
    return job.eta is not None and bool(job.eta < around.now)


def _since(instant: datetime, around: Around) -> str:
    return rough(max(0.0, (around.now - instant) / timedelta(milliseconds=1)))
