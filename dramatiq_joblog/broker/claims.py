"""Unique keys at ``send()``: claimed before the message goes to the broker."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from dramatiq import Broker, group
from dramatiq.logging import get_logger

from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.errors import (
    ConfigurationError,
    DatabaseAwayError,
    DuplicateJob,
    JobLogError,
    SectionUnknownError,
)
from dramatiq_joblog.locking.leases import Claim
from dramatiq_joblog.locking.needs import UNIQUE as UNIQUE_KIND
from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.recording.events import keeps_newest
from dramatiq_joblog.recording.newest import ON_ITS_WAY, SENDING

from .options import DUPLICATE, UNIQUE

if TYPE_CHECKING:
    from dramatiq import Message

    from dramatiq_joblog.locking.holders import Holder
    from dramatiq_joblog.recording.log import Keyed, Log

    from .sending import Enqueue

_logger = get_logger(__name__)


class _Claimed(NamedTuple):
    """A key claimed for a message that is being sent."""

    claim: Claim
    #: Milliseconds that it is held once the message is sent.
    ttl: int
    #: The older job that it was taken over from.
    former: str | None


class _Thread(threading.local):
    #: The claim of the message that the thread is sending.
    claimed: _Claimed | None = None


class Claims:
    """The keys of unique messages that are being sent.

    Parameters:
      joblog: The log that stores the keys.
    """

    def __init__(self, joblog: Log[Keyed]) -> None:
        self._joblog = joblog
        self._thread = _Thread()
        #: The wrappers around ``enqueue``, by broker.
        self._watched: weakref.WeakKeyDictionary[Broker, Enqueue] = weakref.WeakKeyDictionary()

    def enqueue_of(self, broker: Broker) -> Enqueue | None:
        """Return the wrapper around a broker's ``enqueue``; None if there is none."""
        return self._watched.get(broker)

    def take(self, message: Message[Any]) -> None:
        """Claim a message's unique key before it is sent."""
        unique = message.options[UNIQUE]
        self._refuse_behind_transaction(unique["key"])
        # A group is run again, or the delay of its member has ended.
        was_duplicate = message.options.pop(DUPLICATE, None) is not None
        is_newest = keeps_newest(unique)
        for_good = unique["until"] is None and not is_newest
        ttl = unique["ttl"] if for_good else min(unique["ttl"], ON_ITS_WAY)
        owner, former = fold_jid(message.message_id), None
        process = SENDING if is_newest else None
        claim = Claim(UNIQUE_KIND, unique["key"], owner, None, ttl, process=process)
        try:
            if is_newest:
                holder, former = self._claim_newest(claim)
            else:
                holder = self._claim(claim)
        except Exception as e:
            # Dramatiq would swallow a database error, and send a possible duplicate.
            raise SectionUnknownError(f"key {unique['key']!r} may not be unique: {e}") from e
        if holder is None:
            self._thread.claimed = _Claimed(claim, unique["ttl"], former)
        elif was_duplicate or _is_sent_with_others():
            # An error would be swallowed, or stop the rest of a group from being sent, so the row
            # records it instead.
            message.options[DUPLICATE] = f"the key {unique['key']!r} is held by job {holder.owner}"
        else:
            raise DuplicateJob(unique["key"], holder.owner)

    def _claim(self, claim: Claim) -> Holder | None:
        """Claim a key, or return its holder."""
        core = self._joblog.core
        locks = core.locks

        def take() -> Holder | None:
            if locks.take(claim) is not None:
                return None
            locks.bound(claim.kind, claim.key)
            return locks.holders.first(claim.kind, claim.key)

        try:
            holder: Holder | None = core.writer.call(take)
        except BaseException:
            # It may have been taken all the same.
            claim.give_up()
            core.writer.post(lambda: locks.release(claim.kind, claim.key, claim.owner, claim.token))
            raise
        return holder

    def _claim_newest(self, claim: Claim) -> tuple[Holder | None, str | None]:
        """Claim a key, or take it over; return its holder, or the job that it was taken from."""
        tried = None
        while (holder := self._claim(claim)) is not None and holder.owner != tried:
            tried = holder.owner
            # If not, it has begun, and perhaps freed the key, or was superseded meanwhile.
            if self._take_place(claim, tried):
                return None, tried
        return holder, None

    def _take_place(self, claim: Claim, former: str) -> bool:
        """Take over a key from a message that has not begun; return False if it has."""
        core, ttl = self._joblog.core, claim.ttl
        newest = core.newest
        try:
            taken: bool = core.writer.call(lambda: newest.take_place(claim, former))
        except BaseException:
            # It may have been taken all the same.
            core.writer.post(lambda: newest.give_back(claim.key, claim.owner, former, ttl))
            raise
        return taken

    def _refuse_behind_transaction(self, key: str) -> None:
        """Refuse a claim that would deadlock with this thread's own transaction."""
        core = self._joblog.core
        if dialect_of(core.database).writes_alone and not core.may_wait():
            raise ConfigurationError(
                f"a message with the unique key {key!r} is sent inside a transaction of the log's "
                "SQLite database, and its claim would wait for the end of that transaction: "
                "send it after the transaction, or give the log its own database file"
            )

    def watch(self, broker: Broker) -> None:
        """Wrap ``enqueue`` to release keys when sending fails; no hook is called then."""
        if broker in self._watched:
            return
        enqueue = broker.enqueue

        @functools.wraps(enqueue)
        def watched(message: Message[Any], *, delay: int | None = None) -> Message[Any]:
            # A hook may send another message while this one is being sent.
            outer = self._thread.claimed
            self._thread.claimed = None
            try:
                sent = enqueue(message, delay=delay)
                self._confirm(self._thread.claimed)
            except BaseException:
                self._give_back(self._thread.claimed)
                raise
            else:
                return sent
            finally:
                self._thread.claimed = outer

        self._watched[broker] = watched
        broker.enqueue = watched  # type: ignore[method-assign]

    def _confirm(self, claimed: _Claimed | None) -> None:
        """Extend the key of a sent message to its full ttl."""
        if claimed is None:
            return
        claim, is_newest = claimed.claim, claimed.claim.process == SENDING
        locks, newest = self._joblog.core.locks, self._joblog.core.newest

        def confirm() -> None:
            locks.confirm(claim.key, claim.owner, claimed.ttl)
            if is_newest:
                newest.sent(claim.key, claim.owner)

        try:
            if claim.ttl < claimed.ttl or is_newest:
                self._joblog.core.writer.call(confirm)
        except JobLogError as e:
            # Its row and its start confirm it too; the message is already sent.
            _logger.warning("Key %r is held for %d ms at first: %s", claim.key, claim.ttl, e)

    def _give_back(self, claimed: _Claimed | None) -> None:
        if claimed is None:
            return
        claim, former = claimed.claim, claimed.former
        locks, newest = self._joblog.core.locks, self._joblog.core.newest

        def give_back() -> None:
            if former is None:
                locks.release(claim.kind, claim.key, claim.owner, None)
            else:
                newest.give_back(claim.key, claim.owner, former, claimed.ttl)

        try:
            self._joblog.core.writer.call(give_back)
        except DatabaseAwayError as e:
            _logger.warning("Key %r stays held for %d ms: %s", claim.key, claim.ttl, e)


def _is_sent_with_others() -> bool:
    """Return whether a group is being sent, or a hook that swallows errors is running."""
    codes = Broker.emit_after.__code__, group.run.__code__
    frame = inspect.currentframe()
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    return frame is not None
