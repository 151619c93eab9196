"""Turns: work that one process of all that share a log does at a time."""

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
#: Seconds between two tries.
_PAUSE = 0.2


class Turn:
    """A turn at one kind of work.

    Parameters:
      locks: Where it is taken.
      key: The work.
      lasts: Milliseconds that it lasts unless it is renewed.
    """

    def __init__(self, locks: Locks, key: str, *, lasts: int) -> None:
        self._locks = locks
        self._key = key
        self._lasts = lasts

    @contextlib.contextmanager
    def take(self, wait: int = 0) -> Iterator[Callable[[], bool] | None]:
        """Take the turn within *wait* milliseconds, and give it back at the end of the block.

        Yields:
          What renews it when that is due, and returns whether it holds; None if another has it.
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
        # If the database is unavailable, the turn ends by itself.
        with contextlib.suppress(DatabaseAwayError):
            lock.update(owner=None, expires_at=now).where(*mine).execute()
