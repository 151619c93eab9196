"""Which waiters are present: their messages are in the memory of a worker process.

That process regularly extends their ``eta``.  A waiter whose ``eta`` has passed is absent: it keeps
its position, but others go first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import SQL

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peewee import Database

#: Milliseconds that a waiter counts as present after its process has extended it.
HELD_FOR = 10_000
#: Milliseconds between two extensions of a process's waiters.
HEARTBEAT_EVERY = 3_000
#: Milliseconds that a waiter may be late before it is considered absent.
PATIENCE = 5_000
#: Milliseconds after which a waiter's message comes back without a promotion, at most.
COMES_BACK = 300_000


class Presence:
    """The statements on which waiters are present.

    Parameters:
      job: The bound job model.
    """

    # Any: peewee's queries are untyped.
    def __init__(self, job: Any) -> None:
        self._job = job
        self._database: Database = job._meta.database
        self._dialect = dialect_of(self._database)
        self._heartbeat = Compiled(self._database, self._extending)
        self._waited = Compiled(self._database, self._selecting_waited)

    def is_waiting(self) -> Any:
        """Return the condition for waiters, present or not."""
        return self._job.state.in_(literal_states([State.WAITING]))

    def is_recent(self) -> Any:
        """Return the condition that makes waiters present ones."""
        # An eta too far in the future dates from before the database's clock was set back.
        now = database_now(self._database).sql
        # Without parameters, for precompiled statements.
        first, last = SQL(f"{now} - {PATIENCE}"), SQL(f"{now} + {COMES_BACK + PATIENCE}")
        return (self._job.eta > first) & (self._job.eta < last)

    def heartbeat(self, jids: Sequence[str]) -> None:
        """Extend the eta of these waiters, whose messages this process holds."""
        self._heartbeat.execute(jids)

    def unsettled(self, jids: Sequence[str]) -> dict[str, int]:
        """Return how long those of *jids* have waited, in milliseconds, by jid.

        Jobs that no longer wait are left out: cancelled, ended by a copy, or running.
        """
        return {jid: int(waited) for jid, waited in self._waited.execute(jids).fetchall()}

    def _extending(self, jids: Sequence[str]) -> Any:
        job, until = self._job, SQL(f"{database_now(self._database).sql} + {HELD_FOR}")
        mine = job.jid.in_(jids) & self.is_waiting()
        # The order in which concurrent starts lock them.
        return job.update(eta=until).where(self._dialect.in_order(job, mine, job.jid))

    def _selecting_waited(self, jids: Sequence[str]) -> Any:
        job = self._job
        waited = SQL(f"coalesce({database_now(self._database).sql} - waiting_since, 0)")
        return job.select(job.jid, waited).where(job.jid.in_(jids), self.is_waiting())
