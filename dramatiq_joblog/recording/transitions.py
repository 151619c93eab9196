"""One guarded statement for each transition: events become rows, whatever their order.

Starts and ends use the same upsert of the job's row; the guard in its ``WHERE`` decides whether it
applies.  Late, repeated and reordered events therefore change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import SQL, Value, fn

from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.database.upsert import write_all
from dramatiq_joblog.locking.leases import Claim
from dramatiq_joblog.locking.locks import Locks
from dramatiq_joblog.locking.needs import SECTION, UNIQUE
from dramatiq_joblog.locking.release import freeing
from dramatiq_joblog.schema.models import Job, to_millis
from dramatiq_joblog.states import FINAL, DeadReason, Outcome, Start, State

from .event_rows import EventRows, Statements, freed_by, kept_for_retry, keys_of, order_of
from .events import GRANTED, Answer, Ended, Enqueued, Started
from .interruptions import Interruptions, interruption
from .judge import Judge, Known
from .kept_lines import KeptLines
from .kept_runs import KeptRuns, kept_run
from .row_rules import default_of, enqueue_rule, run_rule
from .tokens import same_delivery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peewee import Database

    from dramatiq_joblog.database.upsert import Part
    from dramatiq_joblog.schema.tables import Tables

    from .events import Amended, Event

#: The answer to a run whose job was interrupted too often.
DEAD_OF_INTERRUPTIONS = Answer(granted=False, found=State.DEAD.value)
#: Columns that a message may change when it is enqueued again, and the mark of a handled end.
_OF_ONE_DELIVERY = ("args", "kwargs", "options", "withheld", "sealed", "dismissed_at")


class Transitions:
    """The statements that write events to one log's tables.

    Parameters:
      tables: The tables.
    """

    def __init__(self, tables: Tables[Any]) -> None:
        # Any: peewee's queries are untyped.
        self.job: Any = tables.job
        self.failure: Any = tables.failure
        self.worker: Any = tables.worker
        self.database: Database = tables.database
        self.locks = Locks(tables)
        #: The earlier runs of jobs.
        self.kept = KeptRuns(tables)
        #: The log lines of runs.
        self.lines = KeptLines(tables)
        self.interruptions = Interruptions(tables, self.kept, self.locks)
        #: Decides what starts may do.
        self.judge = Judge(tables, self.kept)
        self._dialect = dialect_of(self.database)
        #: Writes the rows of starts and ends.
        self.runs: Part = self._dialect.upsert(run_rule(tables.job))
        self._statements = Statements(
            runs=self.runs,
            enqueues=self._dialect.upsert(enqueue_rule(tables.job)),
            failures=self.kept.upsert,
            lines=self.lines.upsert,
            freeing=freeing(tables.lock),
        )
        self._locked_all = Compiled(self.database, self._locking)
        self._own_fields = [
            f for f in self.job._meta.sorted_fields if f.name not in Job._meta.fields
        ]

    def own_defaults(self) -> dict[str, Any]:
        """Return the defaults of a custom model's columns."""
        return {f.column_name: f.db_value(default_of(f)) for f in self._own_fields}

    def fill(self, event: Event, columns: dict[str, Any]) -> None:
        """Set *columns* of the row that *event* was written to, if it has not changed since."""
        job, token = self.job, event.row.get("token")
        mine = job.token.is_null() if token is None else job.token == token
        self._set(columns).where(job.jid == event.jid, mine).execute()

    def _set(self, columns: dict[str, Any]) -> Any:
        """Return an update of jobs to values that are already converted for the database."""
        known = self.job._meta.columns
        return self.job.update({known[n]: Value(v, converter=False) for n, v in columns.items()})

    def _amend(self, event: Amended) -> None:
        """Change the row of a run, if it has not ended."""
        job, token = self.job, event.row["token"]
        mine = (job.jid == event.jid) & (job.token == token) & (job.state == State.STARTED)
        columns = event.columns
        if event.is_withdrawal and event.row.get("attempt", 1) > 1:
            columns = columns | self.kept.before_retry(event.jid, columns["updated_at"])
        self._set(columns).where(mine).execute()
        for key in freed_by(event):
            self.locks.release(SECTION, key, event.jid, token)

    def write(self, events: Sequence[Event]) -> dict[str, Answer]:
        """Write *events*, each of a different job.

        Not for starts in a section: see :class:`Sections`.  Everything is
        committed when this returns.

        Raises:
          peewee.DatabaseError: Nothing was written, or the batch may be retried.

        Returns:
          The answers to starts, by jid; a start without an answer may run.
        """
        # All processes lock rows in the same order, so that batches cannot deadlock: the order of
        # sending, which the rows' ids then follow.
        events = sorted(events, key=order_of)
        rows = EventRows(events, self._statements)
        if rows.is_one_statement:
            written = self._write(rows)
        else:
            with self.atomic():
                written = self._write(rows)
        answers: dict[str, Answer] = {}
        for event in events:
            if event.jid in written:
                continue
            if isinstance(event, Started):
                answers[event.jid] = self._contest(event)
            elif isinstance(event, Ended):
                self._end_unknown(event)
        begun = [e for e in events if isinstance(e, Started) and e.cut_off]
        self._lose([e for e in begun if answers.get(e.jid, GRANTED).granted])
        self.kept.note_late([event.row for event in events if isinstance(event, Ended)])
        return answers

    def _end_unknown(self, event: Ended) -> None:
        """Write the end of a run whose start is not on the row, if that run might have begun."""
        with self.atomic():
            if self._revive(event) or self._begins_late(event.start):
                self._write_all([event])
            elif event.failure is None and event.row.get("started_at") is not None:
                self._keep_overtaken(event)

    def _begins_late(self, start: Started | None) -> bool:
        """Return whether a run whose start is not written yet might have begun."""
        return start is not None and self._contest(start).granted

    def _keep_overtaken(self, event: Ended) -> None:
        """Store a run that finished after a run of another delivery replaced it on the row."""
        row = self.locked(event.jid)
        if row is not None and not same_delivery(row.token, event.row["token"]):
            self.kept.insert([kept_run(event.row)])
            # What was taken for an interruption has ended by itself.
            self.kept.recount(event.jid)

    def _revive(self, event: Ended) -> bool:
        """Reopen a cancelled job for a run that ended nevertheless.

        Its worker was wrongly considered gone, or could not query the log.  The real outcome takes
        precedence over the cancellation; a retry does not.
        """
        if event.row["state"] not in FINAL or event.row.get("started_at") is None:
            return False
        row = self.locked(event.jid)
        if row is None or row.dead_reason != DeadReason.CANCELLED:
            return False
        job, failure, token = self.job, self.failure, event.row["token"]
        job.update(state=State.STARTED, token=token).where(job.jid == event.jid).execute()
        taken_for_gone = failure.get_or_none(
            failure.jid == event.jid,
            failure.token == token,
            failure.outcome == Outcome.INTERRUPTED.value,
        )
        counted = [row]
        if taken_for_gone is not None:
            taken_for_gone.delete_instance()
            self.kept.recount(event.jid)
            counted.append(taken_for_gone)
        self.kept.note_late([{"finished_at": to_millis(each.finished_at)} for each in counted])
        return True

    def _write_all(self, events: Sequence[Event]) -> set[str]:
        """Write *events* in the open transaction."""
        return self._write(EventRows(events, self._statements))

    def _write(self, rows: EventRows) -> set[str]:
        self.lines.forget(rows.forgetting)
        written = write_all(rows.portions)
        for change in rows.amended:
            self._amend(change)
        if rows.failures:
            self.kept.note_late(rows.failures)
            self._write_overtaken([e for e in rows.failing if e.jid not in written])
        for event in sorted(rows.holding, key=keys_of):
            self._hold(event, written=isinstance(event, Enqueued) or event.jid in written)
        return written

    def _write_overtaken(self, events: Sequence[Ended]) -> None:
        """Store the failures of runs that are no longer their jobs' current runs."""
        if events:
            with self.atomic():
                self.kept.insert([e.failure for e in events if e.failure])
                for event in events:
                    # What was taken for an interruption has ended by itself.
                    self.kept.recount(event.jid)

    def _hold(self, event: Event, *, written: bool) -> None:
        """Keep the job's sections or release its unique key, depending on its new state."""
        locks, row = self.locks, event.row
        if isinstance(event, Ended):
            locks.leases.forget(row["token"])
            if not written:
                return
        final = row["state"] in FINAL
        for need in kept_for_retry(event):
            grace = need.lasts + max(0, row["eta"] - row["updated_at"])
            locks.keep(need.key, event.jid, row["token"], grace)
        if event.unique is not None:
            key, until = event.unique["key"], event.unique["until"]
            if isinstance(event, Enqueued):
                # A unique period begins when the message is sent, even if it is put back later.
                if until is not None:
                    locks.confirm(key, event.jid, event.unique["ttl"])
            elif (isinstance(event, Started) and until == "started") or (
                final and until is not None
            ):
                locks.release(UNIQUE, key, event.jid, None)
            elif until == "finished" and written:
                # The period begins again; another job may hold the key if the old one expired.
                locks.take(Claim(UNIQUE, key, event.jid, None, event.unique["ttl"]))
            elif until == "started" and written:
                # It may still be waiting for its section.
                locks.confirm(key, event.jid, event.unique["ttl"])

    def _lose(self, events: Sequence[Event]) -> None:
        """Mark runs as lost that are reported only now, after their process is gone."""
        if events:
            job, tokens = self.job, [event.row["token"] for event in events]
            job.update(state=State.LOST).where(
                job.state == State.STARTED, job.token.in_(tokens)
            ).execute()

    def _contest(self, event: Started) -> Answer:
        """Answer a start that the upsert's guard refused."""
        with self.atomic():
            row = self.locked(event.jid)
            verdict = self.judge.verdict(event, row)
            if verdict.start is Start.KNOWN:
                return GRANTED
            if verdict.start is Start.REFUSE:
                if event.cut_off:
                    self.kept.insert([interruption(event.row, event.row["updated_at"])])
                    self.kept.recount(event.jid)
                return verdict.refused()
            if verdict.start is Start.TAKE_OVER and self.interruptions.close(event, row):
                return DEAD_OF_INTERRUPTIONS
            self.put(event, row)
            return GRANTED

    def locked_all(self, jids: Sequence[str]) -> dict[str, Known]:
        """Lock the rows of several jobs, and return what decides about their starts."""
        rows = map(Known._make, self._locked_all.execute(jids).fetchall())
        return {row.jid: row for row in rows}

    def _locking(self, jids: Sequence[str]) -> Any:
        job = self.job
        select = job.select(*(getattr(job, name) for name in Known._fields))
        return self._dialect.lock(select.where(job.jid.in_(jids)).order_by(job.jid))

    def write_rows(self, events: Sequence[Event]) -> set[str]:
        """Write events in the open transaction, and return the jids of the rows written."""
        return self._write_all(events) if events else set()

    def locked(self, jid: str, *, wait: bool = True) -> Any:
        """Return the row of a job, locked until the transaction ends.

        Without *wait*, fail if another transaction has locked it.
        """
        select = self.job.select().where(self.job.jid == jid)
        return self._dialect.lock(select, wait=wait).get_or_none()

    def locked_rows(self, ids: Sequence[int]) -> list[Any]:
        """Return the rows of jobs by id, locked until the transaction ends.

        They are locked in the order in which batches of events are written, to avoid deadlocks.
        """
        job = self.job
        order = fn.COALESCE(job.enqueued_at, 0), job.jid
        return list(self._dialect.lock(job.select().where(job.id.in_(ids)).order_by(*order)))

    def put(self, event: Event, row: Any) -> None:
        """Write an event to a locked row, whatever its state."""
        # A state in which any run may begin, to reuse the upsert's rule.
        beginning = {"state": State.ENQUEUED, "attempt": event.row["attempt"], "token": None}
        if row is not None and any(getattr(row, n) != value for n, value in beginning.items()):
            job = self.job
            if row.state in FINAL and row.token != event.row["token"]:
                self.kept.keep_end(row)
                beginning |= dict.fromkeys(_OF_ONE_DELIVERY)
            job.update(beginning).where(job.jid == event.jid).execute()
        self._write_all([event])

    def rehearse(self) -> None:
        """Check the tables, columns and privileges that writing needs, without changing anything.

        Raises:
          peewee.PeeweeException: If events could not be written now.
        """
        # It matches no row, and databases check privileges before they read rows.
        nothing = SQL("1 = 0")
        with self.atomic():
            for model in (self.job, self.failure, self.locks.lock, self.lines.line):
                fields = model._meta.sorted_fields
                model.insert_from(model.select(*fields).where(nothing), fields).execute()
                self._dialect.check_rights(self.database, model._meta.table_name)
            for column in (self.job.state, self.failure.outcome, self.locks.lock.owner):
                column.model.update({column: column}).where(nothing).execute()
            self.locks.lock.delete().where(nothing).execute()
            list(self.worker.select(self.worker.id).where(nothing))

    def atomic(self) -> Any:
        """Return a transaction, or a savepoint in the open one."""
        return self._dialect.begin(self.database)
