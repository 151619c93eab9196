"""Runs whose worker is gone: closed and recorded as interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import fn

from dramatiq_joblog.locking.needs import UNIQUE
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import DeadReason, Outcome, State

from .heartbeat import MAX_SKEW, is_gone
from .tokens import is_stamped, same_delivery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog.locking.locks import Locks
    from dramatiq_joblog.schema.tables import Tables

    from .events import Started
    from .kept_runs import KeptRuns

#: A job with this many interrupted runs may itself be killing its workers.
SUSPICIOUS = 3


class Interruptions:
    """Closes runs whose worker is gone, in the caller's transaction.

    Parameters:
      tables: The tables.
      kept: Stores such runs.
      locks: The statements on keys.
    """

    def __init__(self, tables: Tables[Any], kept: KeptRuns, locks: Locks) -> None:
        # Any: peewee's queries are untyped.
        self._job: Any = tables.job
        self._run: Any = tables.failure
        self._worker: Any = tables.worker
        self._kept = kept
        self._locks = locks

    def close(self, event: Started, row: Any) -> bool:
        """Close the open run of *row* as interrupted; return whether that makes the job dead."""
        if not row.token or not self._interrupt(row, event):
            return False
        if event.unique is not None and event.unique["until"] is not None:
            self._locks.release(UNIQUE, event.unique["key"], event.jid, None)
        return True

    def _interrupt(self, row: Any, event: Started) -> bool:
        """Close the open run of *row*; return whether that makes the job dead."""
        token = event.row["token"]
        reported = event.redelivered and not is_stamped(token)
        if not reported and not same_delivery(row.token, token):
            seen = self.processes_of([row]).get(row.process)
            if seen is not None and not is_gone(seen):
                # Its message was enqueued again while it runs, so nothing was lost.  Its process
                # may still be killed before the run reports its end.
                self._presume_interrupted([(row, seen)])
                self._kept.recount(row.jid)
                return False
        interruptions, limit = self.interrupt(row), event.max_interruptions
        if limit is None or interruptions < limit:
            return False
        job, now = self._job, event.row["updated_at"]
        update = {
            "state": State.DEAD.value,
            "dead_reason": DeadReason.INTERRUPTED.value,
            "finished_at": now,
            "updated_at": now,
        }
        job.update(update).where(job.jid == event.jid).execute()
        return True

    def interrupt(self, row: Any) -> int:
        """Close the open run of a locked row; return the job's number of interrupted runs."""
        return self.interrupt_all([row])[row.jid]

    def interrupt_all(self, rows: Sequence[Any]) -> dict[str, int]:
        """Close the open runs of locked rows; return each job's number of interrupted runs."""
        if not rows:
            return {}
        job, failure = self._job, self._run
        seen = self.processes_of(rows)
        self._presume_interrupted([(row, seen.get(row.process)) for row in rows])
        counts = (
            failure.select(failure.jid, fn.COUNT(failure.id))
            .where(
                failure.jid.in_([row.jid for row in rows]),
                failure.outcome == Outcome.INTERRUPTED.value,
            )
            .group_by(failure.jid)
            .tuples()
        )
        interruptions: dict[str, int] = {row.jid: 0 for row in rows} | dict(counts)
        for count in sorted({*interruptions.values()}):
            update: dict[str, Any] = {"interruptions": count}
            if count >= SUSPICIOUS:
                update["note"] = (
                    f"{count} runs of it lost their worker: it may be a poison pill, which "
                    "kills its process"
                )
            jids = [jid for jid, known in interruptions.items() if known == count]
            job.update(update).where(job.jid.in_(jids)).execute()
        return interruptions

    def processes_of(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Return the known rows of the processes that jobs ran in, by process name."""
        worker = self._worker
        names = {row.process for row in rows if row.process}
        if not names:
            return {}
        return {seen.process: seen for seen in worker.select().where(worker.process.in_(names))}

    def _presume_interrupted(self, runs: Sequence[tuple[Any, Any]]) -> None:
        """Record the open runs of locked rows as interrupted, until they report an end.

        Each run comes with the row of its process, or None.
        """
        self._kept.insert([_presumed(row, seen) for row, seen in runs])


def _presumed(row: Any, seen: Any) -> dict[str, Any]:
    """Return a job's open run as interrupted, ended at its process's last heartbeat."""
    values = {name: getattr(row, name) for name in ("jid", "token", "attempt", "worker")}
    values["started_at"] = to_millis(row.started_at)
    last_sign = to_millis(seen.heartbeat_at if seen else row.updated_at)
    # The start is by the host's clock, the heartbeat by the database's.
    skew = (seen and seen.skew) or 0
    last_sign += skew if abs(skew) > MAX_SKEW else 0
    return interruption(values, last_sign)


def interruption(run: dict[str, Any], last_sign: int) -> dict[str, Any]:
    """Return the row of a run whose worker is gone; *last_sign* is its last heartbeat."""
    last_sign = max(last_sign, run["started_at"])
    return {
        "jid": run["jid"],
        "token": run["token"],
        "attempt": run["attempt"],
        "outcome": Outcome.INTERRUPTED.value,
        "started_at": run["started_at"],
        "finished_at": last_sign,
        "duration": last_sign - run["started_at"],
        "worker": run.get("worker"),
        "error_message": "the worker vanished, or the message was delivered again",
    }
