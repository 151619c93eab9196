"""Listeners for news of a job, in threads and in event loops."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias

from dramatiq_joblog.schema.query import J
from dramatiq_joblog.states import FINAL, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog.errors import JobLogError

#: What an inbox receives: jobs, an error to raise, or None if a check found nothing new.
News: TypeAlias = "Sequence[J] | JobLogError | None"


class Inbox(Protocol):
    """Receives the news of one listener from the watcher's thread."""

    # Any: News about rows of the model.
    def put(self, news: Any) -> None:
        """Add news."""


class ThreadInbox:
    """The inbox of a thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, news: Any) -> None:
        """Add news."""
        self._queue.put(news)

    def get(self, timeout: float | None) -> Any:
        """Return the next news, within *timeout* seconds.

        Raises:
          TimeoutError: If there is none.
        """
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None


class LoopInbox:
    """The inbox of a task, in the event loop that is running when it is created."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, news: Any) -> None:
        """Add news."""
        # A closed loop raises: nobody listens there any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, news)

    async def get(self, timeout: float | None) -> Any:
        """Return the next news, within *timeout* seconds.

        Raises:
          TimeoutError: If there is none.
        """
        try:
            return await asyncio.wait_for(self._queue.get(), timeout)
        except asyncio.TimeoutError:
            # Before Python 3.11 asyncio has its own TimeoutError.
            raise TimeoutError from None


class Listener(Generic[J]):
    """Waits for the end of one job.

    Everything except its inbox belongs to the watcher's thread; others may read it.

    Parameters:
      jid: The job's jid, in the form of its row.
      inbox: Receives its news.
    """

    def __init__(self, jid: str, inbox: Inbox) -> None:
        self.jid = jid
        self.inbox = inbox
        #: Whether the database has answered about it.
        self.answered = False
        #: The last known state of the job, and when its row changed.
        self.seen: tuple[Any, Any] | None = None

    @property
    def state(self) -> State | str | None:
        """The last known state; None if there was no row."""
        return None if self.seen is None else self.seen[0]

    def wants(self, seen: tuple[Any, Any]) -> bool:
        """Whether a row with this state and time must be read."""
        return seen[0] in FINAL

    def take(self, job: J) -> None:
        """Take the row of the job."""
        if job.state in FINAL:
            self.inbox.put([job])

    def note(self, seen: tuple[Any, Any], root: str | None) -> None:
        """Record what the database has answered: state and time, and the root of the family."""
        self.seen = seen

    def end_check(self) -> None:
        """Let the waiting code know that its job was looked for, the first time."""
        if not self.answered:
            self.answered = True
            self.inbox.put(None)


class Follower(Listener[J]):
    """Waits for each change of state and progress of one job."""

    def __init__(self, jid: str, inbox: Inbox) -> None:
        super().__init__(jid, inbox)
        self._shown: tuple[Any, ...] | None = None

    def wants(self, seen: tuple[Any, Any]) -> bool:
        """Whether the row has changed."""
        return seen != self.seen

    def take(self, job: J) -> None:
        """Take the row of the job if it has changed."""
        shows = job.state, job.attempt, job.progress
        if shows != self._shown:
            self._shown = shows
            self.inbox.put([job])


class FamilyListener(Listener[J]):
    """Waits until all jobs of one job's family have ended."""

    def __init__(self, jid: str, inbox: Inbox) -> None:
        super().__init__(jid, inbox)
        #: The first job of the family; None until the job's row was read.
        self.root: str | None = None

    def wants(self, seen: tuple[Any, Any]) -> bool:
        """Whether the row must be read; the family is queried as a whole."""
        return False

    def note(self, seen: tuple[Any, Any], root: str | None) -> None:
        """Record what the database has answered: state and time, and the root of the family."""
        super().note(seen, root)
        self.root = root or self.jid
