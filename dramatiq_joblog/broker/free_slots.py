"""How many of a key's waiters may run now, by the limits known in this process."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import TYPE_CHECKING

from dramatiq_joblog.locking.needs import RATE, SECTION

if TYPE_CHECKING:
    from dramatiq_joblog.database.connection import Connection
    from dramatiq_joblog.locking.holders import Usage
    from dramatiq_joblog.locking.needs import Need
    from dramatiq_joblog.recording.log import Log, Written

    from .held import HeldMessages

#: Maximum milliseconds until an exhausted rate is checked again: its limit may be changed.
RATE_EVERY = 1_000


class FreeSlots:
    """The free slots of the keys that messages here wait for.

    Parameters:
      joblog: The log.
      held: The messages that wait here.
    """

    def __init__(self, joblog: Log[Written], held: HeldMessages) -> None:
        self._joblog = joblog
        self._held = held
        #: The last results of callable limits, by key and actor.
        self._heard: dict[tuple[str, str | None], int] = {}
        #: When the rate of a key is checked again, in monotonic seconds.
        self._rates_due: dict[str, float] = {}

    def hear(self, need: Need, actor: str) -> None:
        """Store the result of an actor's callable limit; any thread may call this."""
        self._heard[need.key, actor] = need.limit
        self._rates_due.pop(need.key, None)

    def forget_others(self) -> None:
        """Forget the keys that no message here waits for any more."""
        for key in self._rates_due.keys() - self._held.keys:
            self._rates_due.pop(key, None)
        for key, actor in list(self._heard):
            if key not in self._held.keys:
                self._heard.pop((key, actor), None)

    def limit(self, need: Need, used: Usage) -> int:
        """Return the limit of a need, as far as it is known here."""
        limit = self._heard.get((need.key, need.asked_by), need.limit)
        return limit if used.limit_set is None else used.limit_set

    def free(self, connection: Connection, key: str, used: Usage) -> dict[Need, int]:
        """Return the number of free slots of a key, by need: actors may have different limits."""
        free: dict[Need, int] = {}
        is_due, dues = time.monotonic() >= self._rates_due.get(key, 0.0), []
        for need in self._held.needs(key):
            limit = self.limit(need, used)
            if need.kind == SECTION:
                free[need] = limit - used.held
            elif is_due:
                limited = dataclasses.replace(need, limit=limit)
                allowance = connection.ask(
                    functools.partial(self._joblog.core.locks.rates.allowance, limited)
                )
                free[need] = allowance.free
                if not allowance.free:
                    dues.append(
                        RATE_EVERY if allowance.due is None else min(allowance.due, RATE_EVERY)
                    )
        if dues and max(free.values()) < 1:
            self._rates_due[key] = time.monotonic() + min(dues) / 1000
        return free

    def is_open(self, key: str, used: Usage) -> bool:
        """Return whether a key is not paused for the jobs that wait here."""
        sections = [need for need in self._held.needs(key) if need.kind == SECTION]
        return any(self.limit(need, used) > 0 for need in sections)

    def rate_due_in(self, key: str) -> float | None:
        """Return the milliseconds until a rate with waiters here allows more; None without such."""
        if all(need.kind != RATE for need in self._held.needs(key)):
            return None
        return 1000 * (self._rates_due.get(key, 0.0) - time.monotonic())
