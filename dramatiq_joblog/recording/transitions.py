"""One guarded statement a transition: events of jobs become rows, whatever their order.

Starts and ends are the same upsert of a job's row as one run knows it; the guard in its
``WHERE`` decides.  Late, repeated and reordered events then change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import SQL, Value, fn

from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.database.upsert import write_all
from dramatiq_joblog.locking.leases import Claim
from dramatiq_joblog.locking.locks import UNIQUE, Locks
from dramatiq_joblog.locking.release import freeing
from dramatiq_joblog.schema.models import Job, to_millis
from dramatiq_joblog.states import FINAL, DeadReason, Outcome, Start, State

from .event_rows import EventRows, Statements, kept_for_retry, keys_of, order_of
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

    from .events import Event

#: To a run whose job has lost its worker too often.
DEAD_OF_INTERRUPTIONS = Answer(granted=False, found=State.DEAD.value)
#: What a message may say otherwise when it is enqueued again, and what was said of its end.
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
        self.locks = Locks(tables.lock, tables.job)
        #: The runs of jobs before their last.
        self.kept = KeptRuns(tables)
        #: What runs have logged.
        self.lines = KeptLines(tables)
        self.interruptions = Interruptions(tables, self.kept, self.locks)
        #: What starts may do.
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
        """Return what stands in the columns of a model of the user's own when nothing is said."""
        return {f.column_name: f.db_value(default_of(f)) for f in self._own_fields}

    def fill(self, event: Event, columns: dict[str, Any]) -> None:
        """Set *columns* of the row that *event* was written to, if nothing has changed it since."""
        job, token = self.job, event.row.get("token")
        mine = job.token.is_null() if token is None else job.token == token
        # They are as the database takes them.
        values = {job._meta.columns[n]: Value(v, converter=False) for n, v in columns.items()}
        job.update(values).where(job.jid == event.jid, mine).execute()

    def write(self, events: Sequence[Event]) -> dict[str, Answer]:
        """Write *events*, which are of different jobs.

        Starts in a section are not for this: see :class:`Sections`.  Everything is
        committed when this returns.

        Raises:
          peewee.DatabaseError: Nothing was written, or it may be written again.

        Returns:
          What the starts are answered, by their jobs; those that are not in it may go on.
        """
        # One order of rows for all processes, so that no two batches wait for each other; it is
        # that of sending, which the rows then keep.
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
        """Write the end of a run on a row that does not know of its start, if it might begin."""
        with self.atomic():
            if self._revive(event) or self._begins_late(event.start):
                self._write_all([event])
            elif event.failure is None and event.row.get("started_at") is not None:
                self._keep_overtaken(event)

    def _begins_late(self, start: Started | None) -> bool:
        """Return whether a run whose start was not written yet may begin all the same."""
        return start is not None and self._contest(start).granted

    def _keep_overtaken(self, event: Ended) -> None:
        """Keep a run that finished after one of another delivery took its place on the row."""
        row = self.locked(event.jid)
        if row is not None and not same_delivery(row.token, event.row["token"]):
            self.kept.insert([kept_run(event.row)])
            # What was taken for an interruption has ended by itself.
            self.kept.recount(event.jid)

    def _revive(self, event: Ended) -> bool:
        """Give a cancelled job back to a run that came to its end all the same.

        Its worker was wrongly considered gone, or could not ask the log.  What really became of
        the job is worth more than that someone gave it up; a retry that follows is not.
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
        """Write *events* in the transaction that is open."""
        return self._write(EventRows(events, self._statements))

    def _write(self, rows: EventRows) -> set[str]:
        self.lines.forget(rows.forgetting)
        written = write_all(rows.portions)
        if rows.failures:
            self.kept.note_late(rows.failures)
            self._write_overtaken([e for e in rows.failing if e.jid not in written])
        for event in sorted(rows.holding, key=keys_of):
            self._hold(event, written=isinstance(event, Enqueued) or event.jid in written)
        return written

    def _write_overtaken(self, events: Sequence[Ended]) -> None:
        """Keep the failures of runs that no longer are their jobs'."""
        if events:
            with self.atomic():
                self.kept.insert([e.failure for e in events if e.failure])
                for event in events:
                    # What was taken for an interruption has ended by itself.
                    self.kept.recount(event.jid)

    def _hold(self, event: Event, *, written: bool) -> None:
        """Keep what the job holds, or free what it is unique by, as its new state wants it."""
        locks, row = self.locks, event.row
        if isinstance(event, Ended):
            locks.forget(row["token"])
            if not written:
                return
        final = row["state"] in FINAL
        for need in kept_for_retry(event):
            grace = need.lasts + max(0, row["eta"] - row["updated_at"])
            locks.keep(need.key, event.jid, row["token"], grace)
        if event.unique is not None:
            key, until = event.unique["key"], event.unique["until"]
            if isinstance(event, Enqueued):
                # One that is unique for a time is so from its send on, however it is moved.
                if until is not None:
                    locks.confirm(key, event.jid, event.unique["ttl"])
            elif (isinstance(event, Started) and until == "started") or (
                final and until is not None
            ):
                locks.release(UNIQUE, key, event.jid, None)
            elif until == "finished" and written:
                # Its time begins anew, and another may have the key if it was over.
                locks.take(Claim(UNIQUE, key, event.jid, None, event.unique["ttl"]))
            elif until == "started" and written:
                # It waits yet for its section, perhaps.
                locks.confirm(key, event.jid, event.unique["ttl"])

    def _lose(self, events: Sequence[Event]) -> None:
        """Mark runs as lost that are only reported now, and whose process is gone."""
        if events:
            job, tokens = self.job, [event.row["token"] for event in events]
            job.update(state=State.LOST).where(
                job.state == State.STARTED, job.token.in_(tokens)
            ).execute()

    def _contest(self, event: Started) -> Answer:
        """Answer a start that the fast guard did not let through."""
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
        """Return what there is to know of the rows of several jobs."""
        rows = map(Known._make, self._locked_all.execute(jids).fetchall())
        return {row.jid: row for row in rows}

    def _locking(self, jids: Sequence[str]) -> Any:
        job = self.job
        select = job.select(*(getattr(job, name) for name in Known._fields))
        return self._dialect.lock(select.where(job.jid.in_(jids)).order_by(job.jid))

    def write_rows(self, events: Sequence[Event]) -> set[str]:
        """Write events in the transaction that is open, and return the jobs that they were of."""
        return self._write_all(events) if events else set()

    def locked(self, jid: str) -> Any:
        """Return the row of a job, which nobody else changes until the transaction ends."""
        select = self.job.select().where(self.job.jid == jid)
        return self._dialect.lock(select).get_or_none()

    def locked_rows(self, ids: Sequence[int]) -> list[Any]:
        """Return the rows of jobs by their ids, which nobody else changes until then, too.

        They are locked in the order in which batches of events are written, so that no two wait
        for each other.
        """
        job = self.job
        order = fn.COALESCE(job.enqueued_at, 0), job.jid
        return list(self._dialect.lock(job.select().where(job.id.in_(ids)).order_by(*order)))

    def put(self, event: Event, row: Any) -> None:
        """Write an event on a locked row, whatever its state."""
        if row is not None:
            # Back to where every run may begin from, so that the rule stands once.
            job = self.job
            beginning = {"state": State.ENQUEUED, "attempt": event.row["attempt"], "token": None}
            if row.state in FINAL and row.token != event.row["token"]:
                self.kept.keep_end(row)
                beginning |= dict.fromkeys(_OF_ONE_DELIVERY)
            job.update(beginning).where(job.jid == event.jid).execute()
        self._write_all([event])

    def rehearse(self) -> None:
        """Ask for all that writing needs, its tables, columns and rights, and change nothing.

        Raises:
          peewee.PeeweeException: If events could not be written now.
        """
        # No row fulfils it, and no database looks at one before it has checked the rights.
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
        """Return a transaction, or a part of the one that is open."""
        return self._dialect.begin(self.database)
