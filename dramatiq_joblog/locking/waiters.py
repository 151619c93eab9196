"""The jobs that wait for a key: which of them are alive, and in which order they come in.

A waiter's message lies in the memory of a worker process, which looks after it and says so by
the waiter's ``eta``.  One whose ``eta`` is over is absent: it keeps its place, and nobody waits
for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peewee import SQL

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import FINAL, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peewee import Database

#: Milliseconds that a waiter is expected for after its process looked after it.
ATTENDED = 10_000
#: Milliseconds between two times that a process says which waiters it looks after.
ATTEND_EVERY = 3_000
#: Milliseconds that a waiter may be late before it is taken to be absent.
PATIENCE = 5_000
#: Milliseconds after which a waiter's message comes back by itself, at most.
COMES_BACK = 300_000


@dataclass(frozen=True)
class Place:
    """A place in the line of a key.

    Jobs that have begun before come first; of the others, those that wait longest.
    """

    #: Whether the job has begun before: its worker vanished, or its retry came late.
    begun: bool = False
    #: Since when it waits, in milliseconds by the database's clock; None for a newcomer.
    since: int | None = None


NEWCOMER = Place()


class Waiters:
    """The questions on who waits for a key.

    Parameters:
      job: The bound job model.
    """

    def __init__(self, job: Any) -> None:
        self.job = job
        self._database: Database = job._meta.database
        self._waited_for = Compiled(self._database, self._selecting_waited_for)

    def all_of(self, key: str) -> Any:
        """Return a select of the jobs that wait for a key, the one that is next first."""
        job = self.job
        waiting = self._is_waiting() & (job.section == key)
        return job.select().where(waiting).order_by(*self._order())

    def next_of(self, key: str, count: int) -> list[Any]:
        """Return the *count* living waiters of a key that come in next."""
        return list(self.all_of(key).where(self._is_alive()).limit(count))

    def first_ahead(self, key: str, jid: str, place: Place) -> Any:
        """Return the first living waiter that comes before the one at *place*, or None."""
        return self._ahead(key, jid, place).first()

    def count_ahead(self, key: str, jid: str, place: Place, most: int) -> int:
        """Return how many living waiters come before the one at *place*: *most*, if it is more."""
        rows = self._ahead(key, jid, place).order_by().select(self.job.id).limit(most)
        return len(rows.tuples())

    def waited_for(self, keys: Sequence[str]) -> set[str]:
        """Return those of *keys* that a living waiter wants."""
        return {section for (section,) in self._waited_for.execute(keys).fetchall()}

    def attend(self, jids: Sequence[str]) -> None:
        """Say that this process has the messages of these waiters, and looks after them."""
        job, until = self.job, database_now(self._database) + ATTENDED
        job.update(eta=until).where(job.jid.in_(jids), self._is_waiting()).execute()

    def settled(self, jids: Sequence[str]) -> list[str]:
        """Return those of *jids* that wait for nothing any more: cancelled, or ended by a copy."""
        job = self.job
        still_open = job.state.not_in(literal_states(FINAL))
        rows = job.select(job.jid).where(job.jid.in_(jids), still_open)
        still_waiting = {jid for (jid,) in rows.tuples()}
        return [jid for jid in jids if jid not in still_waiting]

    def _ahead(self, key: str, jid: str, place: Place) -> Any:
        job = self.job
        ahead = self.all_of(key).where(job.jid != jid, self._is_alive())
        begun = job.started_at.is_null(False)
        if place.since is not None:
            longer = job.waiting_since < place.since
            return ahead.where(begun & longer if place.begun else begun | longer)
        return ahead.where(begun) if place.begun else ahead

    def _selecting_waited_for(self, keys: Sequence[str]) -> Any:
        job = self.job
        waiting = self._is_waiting() & job.section.in_(keys)
        return job.select(job.section).where(waiting, self._is_alive()).distinct()

    def _order(self) -> tuple[Any, ...]:
        # A waiter that has begun before keeps the start of its last run.
        job = self.job
        return job.started_at.is_null(), job.waiting_since, job.id

    def _is_waiting(self) -> Any:
        return self.job.state.in_(literal_states([State.WAITING]))

    def _is_alive(self) -> Any:
        # An eta that is too far away is of before the database's clock went back.
        now = database_now(self._database).sql
        # Without parameters, for statements that are compiled.
        first, last = SQL(f"{now} - {PATIENCE}"), SQL(f"{now} + {COMES_BACK + PATIENCE}")
        return (self.job.eta > first) & (self.job.eta < last)
