"""Records in the log that this process holds the messages of its waiters."""

from __future__ import annotations

import functools
import math
import time
from typing import TYPE_CHECKING

from dramatiq_joblog.locking.presence import HEARTBEAT_EVERY

if TYPE_CHECKING:
    from dramatiq_joblog.database.connection import Connection
    from dramatiq_joblog.locking.needs import Need
    from dramatiq_joblog.recording.log import Log, Written

    from .held import Held, HeldMessages

#: Milliseconds for each waiting message, and in total at most, until all are parsed again, because
#: the limits of their actors may have changed.
READ_EACH, READ_EVERY = 60, 30_000
#: The maximum number of jobs in one query.
MAX_ASKED = 200


class WaiterHeartbeats:
    """Records, in batches, that this process holds the messages of the waiters here.

    There may be thousands, and promotions must not wait for all of them.

    Parameters:
      joblog: The log.
      held: The messages that wait here.
    """

    def __init__(self, joblog: Log[Written], held: HeldMessages) -> None:
        self._joblog = joblog
        self._held = held
        #: When the next batch is due, and when all messages are parsed again; monotonic seconds.
        self._due = self._read_due = 0.0
        #: Waiters not yet recorded as held by this process, and the seconds between two batches.
        self._left: list[str] = []
        self._every = HEARTBEAT_EVERY / 1000

    @property
    def next_due(self) -> float:
        """When the next batch is due, in monotonic seconds."""
        return self._due if self._held.keys else math.inf

    def record(self, connection: Connection) -> list[Held]:
        """Record a batch, if one is due; return its messages whose jobs need not wait any more.

        Their next start decides what happens.  Those whose waiting time is over come back by
        themselves, unless the clock of this host or of the one that put them back is wrong.
        """
        now = time.monotonic()
        if now < self._due:
            return []
        held = self._held.all()
        if not self._left:
            self._left = sorted(held)
            parts = max(1, math.ceil(len(held) / MAX_ASKED))
            self._every = HEARTBEAT_EVERY / 1000 / parts
            if now >= self._read_due:
                self._read_due = now + min(READ_EACH * len(held), READ_EVERY) / 1000
                self._held.look_anew()
        self._due = now + self._every
        jids = [jid for jid in self._left[:MAX_ASKED] if jid in held]
        self._left = self._left[MAX_ASKED:]
        if not jids:
            return []
        presence = self._joblog.core.locks.presence
        connection.ask(functools.partial(presence.heartbeat, jids))
        waited = connection.ask(functools.partial(presence.unsettled, jids))
        return [
            held[jid] for jid in jids if jid not in waited or _is_over(held[jid].need, waited[jid])
        ]


def _is_over(need: Need, waited: int) -> bool:
    """Return whether a job's waiting time is over."""
    return need.on_conflict == "wait" and need.wait_for is not None and waited > need.wait_for
