"""Runs stored in addition to the jobs' rows: earlier ones, and interrupted ones."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from peewee import SQL, fn

from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import DeadReason, Outcome, State
from dramatiq_joblog.statistics.rollups import LATE
from dramatiq_joblog.statistics.watermarks import Marks

from .row_rules import failure_rule
from .tokens import mark_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dramatiq_joblog.schema.tables import Tables

#: The columns that a stored run copies from its job's row.
_KEPT_OF_A_RUN = (
    *("jid", "token", "attempt", "started_at", "finished_at", "duration"),
    *("error_type", "error_message", "worker"),
)
#: The state of a job after a run with each outcome.
_STATES_AFTER = {
    Outcome.FINISHED.value: State.FINISHED.value,
    Outcome.DEAD.value: State.DEAD.value,
    Outcome.RETRIED.value: State.RETRYING.value,
    Outcome.SKIPPED.value: State.SKIPPED.value,
}


class KeptRuns:
    """Stores runs that are not the last of their job, or did not finish.

    Parameters:
      tables: The tables.
    """

    def __init__(self, tables: Tables[Any]) -> None:
        # Any: peewee's queries are untyped.
        self._job: Any = tables.job
        self._run: Any = tables.failure
        self._marks = Marks(tables.mark)
        #: The statement that inserts them.
        self.upsert = dialect_of(tables.database).upsert(failure_rule(tables.failure))
        self._ran_before = Compiled(tables.database, self._selecting_ends)
        self._wait_no_longer = Compiled(tables.database, self._ending_waits)

    def insert(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert runs that did not finish, idempotently.

        A run that was presumed interrupted and then reported its end is corrected.
        """
        self.upsert.write(rows)
        self.note_late(rows)

    def note_late(self, rows: Sequence[dict[str, Any]]) -> None:
        """Mark the minutes for recounting in which runs of *rows* ended long ago."""
        recent = time.time() * 1000 - LATE
        ends = [row.get("finished_at") for row in rows]
        late = {end - end % 60_000 for end in ends if end is not None and end < recent}
        if late:
            self._marks.note_late(late)

    def recount(self, jid: str) -> None:
        """Recount the interruptions of a job."""
        job, failure = self._job, self._run
        count = failure.select(fn.COUNT(failure.id)).where(
            failure.jid == jid, failure.outcome == Outcome.INTERRUPTED.value
        )
        job.update(interruptions=fn.NULLIF(count, 0)).where(job.jid == jid).execute()

    def keep_end(self, row: Any) -> None:
        """Store how a job ended that continues with another delivery of its message."""
        if row.dead_reason == DeadReason.INTERRUPTED:
            # No run ends in this state, and interrupted runs are stored already.
            return
        values = {name: getattr(row, name) for name in _KEPT_OF_A_RUN}
        values["token"] = row.token or f"ended:{to_millis(row.finished_at or row.updated_at)}"
        values["error_message"] = row.error_message or row.skip_reason
        for name in ("started_at", "finished_at"):
            values[name] = None if values[name] is None else to_millis(values[name])
        self.insert([kept_run(values | {"state": row.state})])

    def ran_before(self, jids: Sequence[str]) -> set[str]:
        """Return those of *jids* with a stored earlier run."""
        return {jid for (jid,) in self._ran_before.execute(jids).fetchall()}

    def _selecting_ends(self, jids: Sequence[str]) -> Any:
        failure = self._run
        ends = ", ".join(f"'{outcome}'" for outcome in sorted(_STATES_AFTER))
        return failure.select(failure.jid).where(failure.jid.in_(jids), SQL(f"outcome IN ({ends})"))

    def before_retry(self, jid: str, instant: int) -> dict[str, Any]:
        """Return the columns of a job whose retry is due, from its last run.

        Parameters:
          jid: The job.
          instant: When it is due: now, in milliseconds since 1970.
        """
        run = self._run
        mine = run.select().where(run.jid == jid, run.outcome == Outcome.RETRIED.value)
        last = mine.order_by(run.id.desc()).first()
        if last is None:
            return {}
        kept = {name: getattr(last, name) for name in ("attempt", "token", "worker")}
        started_at = None if last.started_at is None else to_millis(last.started_at)
        return {**kept, "started_at": started_at, "state": State.RETRYING.value, "eta": instant}

    def end_of_delivery(self, jid: str, token: str) -> tuple[int, str | None]:
        """Return the attempt and the end of an earlier run with the same delivery as *token*."""
        failure, mark, ends = self._run, mark_of(token), _STATES_AFTER
        select = failure.select(failure.attempt, failure.outcome).where(
            failure.jid == jid,
            fn.substr(failure.token, 1, len(mark)) == mark,
            failure.outcome.in_(sorted(ends)),
        )
        found = select.order_by(failure.id.desc()).first()
        return (0, None) if found is None else (found.attempt, ends[found.outcome])

    def end_waiting(self, waiter: Mapping[str, Any], since: int, now: int) -> None:
        """Store how long a job waited for its section, and end its wait."""
        self.end_waiting_all([(waiter, since)], now)

    def end_waiting_all(self, waiters: Sequence[tuple[Mapping[str, Any], int]], now: int) -> None:
        """Do the same for pairs of a waiter and the time when its wait began."""
        if not waiters:
            return
        self.insert([_waited(waiter, since, now) for waiter, since in waiters])
        self._wait_no_longer.execute([waiter["jid"] for waiter, _ in waiters])

    def _ending_waits(self, jids: Sequence[str]) -> Any:
        job = self._job
        return job.update(waiting_since=SQL("NULL")).where(job.jid.in_(jids))


def kept_run(run: dict[str, Any]) -> dict[str, Any]:
    """Return the stored form of a run, from its job's row."""
    return {name: run.get(name) for name in _KEPT_OF_A_RUN} | {"outcome": str(run["state"])}


def _waited(waiter: Mapping[str, Any], since: int, now: int) -> dict[str, Any]:
    """Return the row of a finished wait for a section."""
    return {
        "jid": waiter["jid"],
        # Not the run's token, which may be stored with a failure of its own.
        "token": f"waited:{since}",
        "attempt": waiter["attempt"],
        "outcome": Outcome.WAITED.value,
        "started_at": since,
        "finished_at": now,
        "duration": max(0, now - since),
        "worker": waiter["worker"],
    }
