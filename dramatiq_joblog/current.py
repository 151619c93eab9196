"""``current_job()``: what an actor may know and say about its own run."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .locks import Lease


@dataclass
class CurrentJob:
    """The job whose actor is running."""

    #: Dramatiq's ``message_id``.
    jid: str
    #: Number of this attempt; 1 for the first.
    attempt: int
    #: The first job of the family that this one was sent in.
    root_jid: str
    #: What it holds of its critical section, if it has one.
    lease: Lease | None = None
    #: Whatever the actor wants to keep with its row: stored, as JSON, with the outcome.
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def fence(self) -> int | None:
        """A number that grows with each holder of the job's section, for stores that check it."""
        return None if self.lease is None else self.lease.fence

    @property
    def lease_lost(self) -> bool:
        """Whether another job may be in the section by now: this one was paused for too long."""
        return self.lease is not None and self.lease.lost


#: Async actors see it too: Dramatiq copies the context into their event loop.
running: ContextVar[CurrentJob | None] = ContextVar("dramatiq_joblog_current", default=None)


def current_job() -> CurrentJob | None:
    """Return the job that runs here, or None outside an actor or in one that is not logged.

    Example:
      >>> current_job() is None
      True
    """
    return running.get()
