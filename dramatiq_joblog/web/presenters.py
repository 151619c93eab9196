"""The rows of lists of jobs, locks and workers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.broker.options import DELAY_SUFFIX
from dramatiq_joblog.reading.story import sent_at
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.schema.query import user_field, word
from dramatiq_joblog.states import CANCELLABLE, FINAL, DeadReason, State

from .formats import plain_duration, rough

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The maximum number of waiters, jobs and threads shown in one row.
_DRAWN = 3
_SLOTS = 16


@dataclass(frozen=True)
class Place:
    """A job's queue position for its section: 1 is next."""

    number: int
    jid: str


class JobRow:
    """A job, as lists show it.

    Parameters:
      job: The row of the log.
      now: The time that ages on the page are relative to.
      place: Its queue position, if it waits and the position is known.
      seen: Whether the visitor may see what jobs report about themselves.
    """

    def __init__(
        self, job: Any, now: datetime, place: int | None = None, *, seen: bool = False
    ) -> None:
        self._seen = seen
        self._job = job
        self._now = now
        self._place = place
        self.id: int = job.id
        self.jid: str = job.jid
        self.state = str(job.state)
        self.final = job.state in FINAL
        self.may_be_cancelled = job.state in CANCELLABLE
        self.actor: str = job.actor
        self.queue: str = job.queue
        self.name: str = job.job_type or job.actor
        self.attempt: int = job.attempt
        self.attempts: int | None = None if job.max_retries is None else job.max_retries + 1
        self.queue_time: int | None = job.queue_time
        self.worker: str | None = job.worker and job.worker.rpartition(":")[0]
        self.error_type: str | None = job.error_type
        self.error_message: str | None = job.error_message
        self.error = bool(job.error_type) and job.state != State.FINISHED
        self.note: str | None = job.note

    @property
    def user(self) -> Any:
        """The user that it works for."""
        return user_of(self._job)

    @property
    def user_words(self) -> str:
        """The search for that user's jobs."""
        return word("user", self.user)

    @property
    def running_since(self) -> int | None:
        """Since when it runs, in milliseconds since 1970; None if it does not run."""
        running = self._job.state == State.STARTED and self._job.started_at is not None
        return to_millis(self._job.started_at) if running else None

    @property
    def duration(self) -> float | None:
        """How long it has run, or its last run took, in milliseconds."""
        if self.running_since is not None:
            return max(0, to_millis(self._now) - self.running_since)
        duration: int | None = self._job.duration
        return duration

    @property
    def when(self) -> datetime:
        """The time that matters most in its state."""
        job = self._job
        at: datetime
        if self.final:
            at = job.finished_at or job.updated_at
        elif job.state == State.STARTED:
            at = job.started_at or job.updated_at
        else:
            at = sent_at(job)
        return at

    @property
    def share(self) -> int | None:
        """Its progress in percent, if it runs and has reported it."""
        return share_of(self._progress) if self._job.state == State.STARTED else None

    @property
    def _progress(self) -> dict[str, Any]:
        progress = self._job.progress
        return progress if self._seen and isinstance(progress, dict) else {}

    @property
    def why(self) -> str:
        """A short reason for its state."""
        reason = getattr(self, f"_why_{self.state}", None)
        return reason() if reason is not None else ""

    @property
    def said(self) -> tuple[str, str]:
        """The reason in words: the error's class, if any, and the rest."""
        job = self._job
        message = _first_line(self.error_message)
        if job.state == State.DEAD and self.error_type:
            dismissed = "dismissed" * (job.dismissed_at is not None)
            cancelled = "cancelled" * (job.dead_reason == DeadReason.CANCELLED)
            how = ", ".join(filter(None, (dismissed, cancelled)))
            return self.error_type, f"{message} ({how})" if how else message
        if job.state == State.RETRYING and self.error_type:
            due = (
                self.due if self.due.startswith("overdue") else f"next {self.due}" * bool(self.due)
            )
            return self.error_type, "; ".join(filter(None, (message, due)))
        if job.state == State.FINISHED:
            return "", _first_line(str(self._progress.get("text") or ""))
        if job.state == State.STARTED:
            return "", self._running()
        if job.state == State.DELAYED:
            return "", self.due if self.due.startswith("overdue") else f"due {self.due}"
        return "", self.why

    def _running(self) -> str:
        progress = self._progress
        done, total = progress.get("done"), progress.get("total")
        counted = f"{done} of {total}" if done is not None and total is not None else ""
        return " \u00b7 ".join(
            filter(None, (counted, _first_line(str(progress.get("text") or ""))))
        )

    @property
    def reason(self) -> str:
        """Why it is dead or was skipped, in words."""
        job = self._job
        if job.state == State.DEAD and job.dead_reason:
            dismissed = ", dismissed" if job.dismissed_at is not None else ""
            return str(job.dead_reason).replace("_", " ") + dismissed
        if job.state == State.SKIPPED:
            return job.skip_reason or ""
        return self.why if job.state in {State.WAITING, State.RETRYING, State.DELAYED} else ""

    def _why_enqueued(self) -> str:
        return f"queue {self.queue}"

    def _why_delayed(self) -> str:
        return self.due

    def _why_waiting(self) -> str:
        key = self._job.section or "its section"
        return key if self._place is None else f"{key}, {ordinal(self._place)} in line"

    def _why_started(self) -> str:
        progress = self._progress
        share = share_of(progress)
        return f"{share} %" if share is not None else str(progress.get("text") or "")

    def _why_retrying(self) -> str:
        return ", ".join(filter(None, (self.due, self.error_type)))

    def _why_lost(self) -> str:
        return f"{self.worker} gone" if self.worker else "its worker is gone"

    def _why_dead(self) -> str:
        dismissed = "dismissed, " if self._job.dismissed_at is not None else ""
        reason = str(self._job.dead_reason or "").replace("_", " ")
        if reason == DeadReason.CANCELLED and self.error_type:
            # The reason of death is not its last error.
            return f"{dismissed}{reason}, {self.error_type}"
        return dismissed + (self.error_type or reason)

    def _why_skipped(self) -> str:
        return self._job.skip_reason or ""

    @property
    def due(self) -> str:
        """When it runs next, in words."""
        if self._job.eta is None:
            return ""
        left = (self._job.eta - self._now) / timedelta(milliseconds=1)
        return f"in {rough(left)}" if left >= 0 else f"overdue {rough(-left)}"


def _first_line(text: str | None) -> str:
    """Return the first line of a text, shortened."""
    line = (text or "").strip().partition("\n")[0]
    return line if len(line) <= 300 else f"{line[:300]}\u2026"


def user_of(job: Any) -> Any:
    """Return the id of a job's user, or None, without a query for the user."""
    field: Any = user_field(type(job))
    return getattr(job, field.object_id_name if hasattr(field, "rel_field") else field.name)


def share_of(progress: Any) -> int | None:
    """Return the progress in percent; None if it is not reported."""
    if not isinstance(progress, dict):
        return None
    done, total = progress.get("done"), progress.get("total")
    if not isinstance(done, (int, float)) or not isinstance(total, (int, float)) or total <= 0:
        return None
    return max(0, min(100, int(100 * done / total)))


def ordinal(number: int) -> str:
    """Format a queue position.

    Example:
      >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 22)]
      ['1st', '2nd', '3rd', '4th', '11th', '22nd']
    """
    if number % 100 in {11, 12, 13}:
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


class LockRow:
    """A held key, as the list of locks shows it.

    Parameters:
      lock: The row of the log.
      job: The job that holds it; None if a manual lock does.
      waiters: The jobs that wait for it, in order; None for further slots of the same key.
      slots: The number of held slots of the key.
      now: The time that ages on the page are relative to.
      key: The key, or a placeholder if it is hidden.
    """

    def __init__(
        self,
        lock: Any,
        job: Any,
        waiters: Sequence[Any] | None,
        slots: int,
        now: datetime,
        *,
        key: str,
    ) -> None:
        self.id: int = lock.id
        self.key = key
        self.slot: int = lock.slot
        self.fence: int = lock.fence
        self.ttl: int = lock.ttl
        self.slot_text = f"slot {lock.slot + 1}" if slots > 1 or lock.slot else ""
        self.jid: str | None = None if job is None else job.jid
        self.name = "manual lock" if job is None else job.job_type or job.actor
        self.state = "started" if job is None else str(job.state)
        if self.state not in {"started", "retrying", "lost", "waiting", "enqueued", "delayed"}:
            self.state = "lost"
        self.shape = self.state
        self.place = _place_of(lock, job, now)
        self.held = max(0, to_millis(now) - to_millis(lock.acquired_at))
        self.until = to_millis(lock.expires_at)
        self.left = max(0, self.until - to_millis(now))
        self.share = min(100, round(100 * self.left / max(1, lock.ttl)))
        self.above = waiters is None
        self.waiters = [_Waiter(w, now) for w in (waiters or ())[:_DRAWN]]
        self.more = max(0, len(waiters or ()) - _DRAWN)


class _Waiter:
    """A waiting job."""

    def __init__(self, job: Any, now: datetime) -> None:
        self.jid: str = job.jid
        since = job.waiting_since or job.updated_at
        self.waited = max(0, to_millis(now) - to_millis(since))


def _place_of(lock: Any, job: Any, now: datetime) -> str:
    """Return a text with where the holder is."""
    if job is None:
        return str(lock.owner)
    if job.state == State.RETRYING and job.eta is not None:
        return f"back {JobRow(job, now).due}"
    worker: str = (job.worker or "").rpartition(":")[0]
    return f"{worker} gone" if job.state == State.LOST else worker or "not running yet"


class WorkerRow:
    """A worker process, as the list of workers shows it.

    Parameters:
      worker: The row of the log.
      jobs: Its open runs, oldest first.
      now: The database's time.
    """

    def __init__(self, worker: Any, jobs: Sequence[Any], now: datetime) -> None:
        self.id: int = worker.id
        self.host: str = worker.host
        self.pid: int = worker.pid
        self.boot = (worker.boot_id or "")[:4]
        self.words = word("worker", f"{worker.host}:{worker.pid}")
        self.seen: datetime = worker.heartbeat_at
        self.threads: int = worker.threads
        # Each queue has a delay queue, which is not interesting.
        queues = [name for name in worker.queues or () if not name.endswith(DELAY_SUFFIX)]
        self.queues = ", ".join(queues)
        self.look, self.shape, self.word = self._look(worker, now)
        self.alive = self.look == "ok"
        self.ended = worker.ended_at is not None
        running = sum(job.state == State.STARTED for job in jobs)
        self.busy = min(self.threads, running) if self.alive else len(jobs)
        self.slots = self._draw()
        self.doing = [_Doing(job, now) for job in jobs[:_DRAWN]]
        self.more = max(0, len(jobs) - _DRAWN)
        self.idle = "idle" if self.alive else "nothing"
        end = worker.ended_at or (worker.heartbeat_at if not self.alive else now)
        up = plain_duration((end - worker.started_at) / timedelta(milliseconds=1))
        self.up = up if self.alive else f"was {up}"

    @staticmethod
    def _look(worker: Any, now: datetime) -> tuple[str, str, str]:
        if worker.ended_at is not None:
            return "skipped", "quiet", "Ended"
        silent = worker.heartbeat_at + timedelta(milliseconds=worker.timeout) < now
        if silent or worker.swept_at is not None:
            return "lost", "lost", "Possibly dead"
        return "ok", "alive", "Alive"

    def _draw(self) -> list[str]:
        drawn = min(self.threads, _SLOTS)
        busy = min(drawn, self.busy if self.threads <= _SLOTS else _scaled(self.busy, self.threads))
        kinds = ("b", "i") if self.alive else ("l lb", "l")
        return [kinds[0]] * busy + [kinds[1]] * (drawn - busy)


class _Doing:
    """A job that a worker runs."""

    def __init__(self, job: Any, now: datetime) -> None:
        self.jid: str = job.jid
        self.name: str = job.job_type or job.actor
        self.state = str(job.state)
        since = job.started_at or job.updated_at
        passed = plain_duration((now - since) / timedelta(milliseconds=1))
        self.text = "lost" if job.state == State.LOST else passed


def _scaled(busy: int, threads: int) -> int:
    return -(-busy * _SLOTS // threads)


def places(waiters: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Return the queue position of each waiting job, by jid."""
    return {
        job.jid: number for line in waiters.values() for number, job in enumerate(line, start=1)
    }
