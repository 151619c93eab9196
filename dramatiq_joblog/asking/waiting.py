"""Waiting for jobs to end, and following them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic
from uuid import UUID

from dramatiq_joblog.database.timeouts import in_event_loop
from dramatiq_joblog.errors import ConfigurationError, JobLogError, WaitTimeout
from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.recording.current import running
from dramatiq_joblog.schema.query import J, count_asked
from dramatiq_joblog.states import FINAL

from .listener import FamilyListener, Follower, Listener, LoopInbox, ThreadInbox

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from .watcher import Watcher

#: Milliseconds for the database's first answer, however short the timeout is.
FIRST_ANSWER = 250
#: The most milliseconds to wait: ten years.
MOST = 315_360_000_000


class Patience:
    """How long to wait: *timeout* milliseconds, or forever."""

    def __init__(self, timeout: int | None) -> None:
        if timeout is not None:
            timeout = count_asked("timeout", timeout, least=0, most=MOST)
        self._timeout = timeout
        self._began = time.monotonic()

    def left(self, listener: Listener[Any]) -> float | None:
        """Return the seconds left for a listener's next news; None for forever."""
        if self._timeout is None:
            return None
        # The database was not queried yet, and needs this time.
        least = 0 if listener.answered else FIRST_ANSWER
        return max(0.0, self._began + max(self._timeout, least) / 1000 - time.monotonic())

    def over(self, listener: Listener[Any]) -> WaitTimeout:
        """Return the error to raise when the time is over."""
        state = None if listener.state is None else str(listener.state)
        return WaitTimeout(
            listener.jid,
            self._timeout or 0,
            state,
            answered=listener.answered,
            family=isinstance(listener, FamilyListener),
        )


class Waiting(Generic[J]):
    """Waits for jobs, a bounded number at a time.

    Parameters:
      watcher: The source of their news.
      kind: The listener: for the end of a job, or of its family.
      jids: The jobs.
      timeout: Milliseconds to wait for all of them; None forever.
    """

    def __init__(
        self,
        watcher: Watcher[J],
        kind: type[Listener[J]],
        jids: Sequence[str],
        timeout: int | None,
    ) -> None:
        self._watcher = watcher
        self._kind = kind
        self._patience = Patience(timeout)
        self._jids = list(map(asked_jid, jids))
        for jid in self._jids:
            refuse_own(jid)

    def here(self) -> list[list[J]]:
        """Wait in this thread; return the rows of the jobs, in their order."""
        refuse_waiting_in_event_loop("joblog.wait()", "await joblog.wait_async()")
        listeners = [(self._kind(jid, inbox), inbox) for jid, inbox in self._inboxes(ThreadInbox)]
        with self._listening([listener for listener, _ in listeners]):
            return [self._hear(listener, inbox) for listener, inbox in listeners]

    async def aside(self) -> list[list[J]]:
        """Wait in this task; return the rows of the jobs, in their order."""
        listeners = [(self._kind(jid, inbox), inbox) for jid, inbox in self._inboxes(LoopInbox)]
        with self._listening([listener for listener, _ in listeners]):
            return [await self._hear_aside(listener, inbox) for listener, inbox in listeners]

    def _inboxes(self, kind: Any) -> list[tuple[str, Any]]:
        return [(jid, kind()) for jid in self._jids]

    @contextlib.contextmanager
    def _listening(self, listeners: Sequence[Listener[J]]) -> Iterator[None]:
        try:
            for listener in listeners:
                self._watcher.add(listener)
            yield
        finally:
            for listener in listeners:
                self._watcher.discard(listener)

    def _hear(self, listener: Listener[J], inbox: ThreadInbox) -> list[J]:
        while True:
            try:
                news = inbox.get(self._patience.left(listener))
            except TimeoutError:
                raise self._patience.over(listener) from None
            if news is not None:
                return jobs_of(news)

    async def _hear_aside(self, listener: Listener[J], inbox: LoopInbox) -> list[J]:
        while True:
            try:
                news = await inbox.get(self._patience.left(listener))
            except TimeoutError:
                raise self._patience.over(listener) from None
            if news is not None:
                return jobs_of(news)


class Following(Generic[J]):
    """The changes of one job as they happen, for ``for`` and ``async for``.

    It begins with the job as it is, and ends after the job has ended.  Each iteration starts from
    the beginning.

    Parameters:
      watcher: The source of its news.
      jid: The job.
      timeout: Milliseconds to follow it for; None until its end.
    """

    def __init__(self, watcher: Watcher[J], jid: str, timeout: int | None) -> None:
        self._watcher = watcher
        self._jid = asked_jid(jid)
        self._timeout = timeout
        Patience(timeout)
        refuse_own(self._jid)

    def __iter__(self) -> Iterator[J]:
        refuse_waiting_in_event_loop("joblog.follow()", "async for job in joblog.follow()")
        return self._here()

    def __aiter__(self) -> AsyncGenerator[J, None]:  # noqa: PYI058 - it can be closed
        return self._aside()

    def _here(self) -> Iterator[J]:
        patience, inbox = Patience(self._timeout), ThreadInbox()
        listener: Follower[J] = Follower(self._jid, inbox)
        try:
            while True:
                # Again after a fork: the thread that watched it is in the parent process.
                self._watcher.add(listener)
                try:
                    news = inbox.get(patience.left(listener))
                except TimeoutError:
                    raise patience.over(listener) from None
                jobs: list[J] = [] if news is None else jobs_of(news)
                for job in jobs:
                    yield job
                    if job.state in FINAL:
                        return
        finally:
            self._watcher.discard(listener)

    async def _aside(self) -> AsyncGenerator[J, None]:
        patience, inbox = Patience(self._timeout), LoopInbox()
        listener: Follower[J] = Follower(self._jid, inbox)
        try:
            while True:
                self._watcher.add(listener)
                try:
                    news = await inbox.get(patience.left(listener))
                except TimeoutError:
                    raise patience.over(listener) from None
                jobs: list[J] = [] if news is None else jobs_of(news)
                for job in jobs:
                    yield job
                    if job.state in FINAL:
                        return
        finally:
            self._watcher.discard(listener)


def wait_for_jobs(watcher: Watcher[J], jids: Iterable[str], timeout: int | None) -> Waiting[J]:
    """Return an object that waits for the ends of jobs."""
    return Waiting(watcher, Listener, asked_jids(jids), timeout)


def wait_for_family(watcher: Watcher[J], jid: str, timeout: int | None) -> Waiting[J]:
    """Return an object that waits for the end of a job and of its whole family."""
    return Waiting(watcher, FamilyListener, [jid], timeout)


def jobs_of(news: Any) -> list[J]:
    """Return the jobs of news, or raise the error that came instead."""
    if isinstance(news, JobLogError):
        raise news
    return list(news)


def asked_jid(jid: Any) -> str:
    """Return a jid in the form of the rows.

    Raises:
      ConfigurationError: If it is not a jid: such a job would never appear.
    """
    if isinstance(jid, (str, UUID, int)) and not isinstance(jid, bool) and str(jid):
        return fold_jid(jid)
    # Without the value itself: a message has arguments, which may be secret.
    raise ConfigurationError(
        f"{_kind_of(jid)} is not a jid: wait for message.message_id, or for job.jid"
    )


def asked_jids(jids: Any) -> list[Any]:
    """Return several jids as a list.

    Raises:
      ConfigurationError: If it is a single jid, or not a list of jids.
    """
    if isinstance(jids, Iterable) and not isinstance(jids, (str, bytes)):
        return list(jids)
    raise ConfigurationError(
        f"{_kind_of(jids)} is not a list of jids: give one, such as "
        "[m.message_id for m in messages]"
    )


def _kind_of(value: Any) -> str:
    if value is None or value == "":
        return repr(value)
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def refuse_own(jid: str) -> None:
    """Refuse to wait for the job that waits.

    Raises:
      ConfigurationError: If it runs in this thread.
    """
    run = running.get()
    if run is not None and run.jid == jid:
        raise ConfigurationError(
            f"job {jid} would wait for itself forever: wait for another job, or from outside"
        )


def refuse_waiting_in_event_loop(what: str, instead: str) -> None:
    """Refuse to wait in a thread that is running an event loop, which would be blocked.

    Raises:
      ConfigurationError: If it is.
    """
    if in_event_loop():
        raise ConfigurationError(
            f"{what} would stop the running event loop while it waits: use {instead}"
        )
