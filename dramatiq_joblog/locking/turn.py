"""Turns: mutual exclusion between the processes that share a log."""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING

from dramatiq_joblog.database.checkout import in_transaction
from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.errors import DatabaseAwayError

from .leases import Claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .locks import Locks

_KIND = "chore"
#: Seconds between two attempts.
_PAUSE = 0.2


class Turn:
    """A lease on one kind of work.

    Parameters:
      locks: The statements on keys.
      key: The name of the work.
      lasts: Milliseconds until it expires unless it is renewed.
    """

    def __init__(self, locks: Locks, key: str, *, lasts: int) -> None:
        self._locks = locks
        self._key = key
        self._lasts = lasts

    @contextlib.contextmanager
    def take(self, wait: int = 0) -> Iterator[Callable[[], bool] | None]:
        """Acquire the turn within *wait* milliseconds, and release it at the end of the block.

        Yields:
          A function that renews it if due, and returns whether it is still held; None if it was
          not acquired.
        """
        me = secrets.token_hex(8)
        deadline = time.monotonic() + wait / 1000
        while not (held := self._try(me)) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        if not held:
            yield None
            return
        renewed = time.monotonic()

        def renew() -> bool:
            nonlocal renewed
            if time.monotonic() - renewed > self._lasts / 4000:
                renewed = time.monotonic()
                return self._try(me)
            return True

        try:
            yield renew
        finally:
            self._give_back(me)

    def _try(self, me: str) -> bool:
        claim = Claim(_KIND, self._key, me, None, self._lasts)
        take = self._locks.take
        return in_transaction(self._locks.database, lambda: take(claim)) is not None

    def _give_back(self, me: str) -> None:
        lock = self._locks.lock
        mine = lock.kind == _KIND, lock.key == self._key, lock.owner == me
        now = database_now(self._locks.database)
        # If the database is unavailable, the turn expires.
        with contextlib.suppress(DatabaseAwayError):
            lock.update(owner=None, expires_at=now).where(*mine).execute()
