"""One guarded statement a transition: events of jobs become rows, whatever their order.

Starts and ends are the same upsert of a job's row as one run knows it; the guard in its
``WHERE`` decides.  Late, repeated and reordered events then change nothing.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from peewee import SQL, Value, fn

from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.database.upsert import Portion, Rule, is_one_statement, write_all
from dramatiq_joblog.locking.admission import in_order
from dramatiq_joblog.locking.leases import Claim
from dramatiq_joblog.locking.locks import UNIQUE, Locks
from dramatiq_joblog.locking.needs import SECTION
from dramatiq_joblog.locking.release import freeing
from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.schema.models import Job, to_millis
from dramatiq_joblog.states import (
    FINAL,
    OPEN,
    STARTABLE,
    DeadReason,
    Outcome,
    Start,
    State,
    judge_start,
)
from dramatiq_joblog.statistics.rollups import LATE
from dramatiq_joblog.statistics.watermarks import Marks

from .events import GAVE_WAY, GRANTED, Answer, Ended, Enqueued, Started
from .heartbeat import is_gone
from .repair import NOT_STORED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from peewee import Database

    from dramatiq_joblog.locking.needs import Need
    from dramatiq_joblog.schema.tables import Tables

    from .events import Event

#: Milliseconds that two clocks may differ: what a question and its answer take.
MAX_SKEW = 1_000
#: A job that lost its worker this often may be what kills it.
SUSPICIOUS = 3


#: As many characters of a token are the mark of its run's delivery.
_MARK = 12
#: How the mark of a delivery begins that the broker has no name for: no hexadecimal digit.
_STAMPED = "s"


class Known(NamedTuple):
    """What a start in a section is judged by, of the job's row."""

    jid: str
    state: str
    attempt: int
    token: str | None
    dead_reason: str | None
    #: Whether it waits, and since when: in milliseconds.
    waiting_since: int | None
    #: When its last run began, if one did: in milliseconds.
    started_at: int | None


class Verdict(NamedTuple):
    """What a start may do, and what it was judged by."""

    start: Start
    #: The state that the job is in, or that it was in after an earlier run of the same delivery.
    found: str | None = None
    #: Whether a newer message took its place.
    gave_way: bool = False

    def refused(self, *, delay: int | None = None) -> Answer:
        """Return the answer to a run that may not go on, or not before *delay* milliseconds."""
        return Answer(granted=False, found=self.found, delay=delay, gave_way=self.gave_way)


#: To a run whose job has lost its worker too often.
DEAD_OF_INTERRUPTIONS = Answer(granted=False, found=State.DEAD.value)


def _in(states: Iterable[State]) -> str:
    return "(" + ", ".join(f"'{state.value}'" for state in states) + ")"


#: A run may begin in the common case; :func:`judge_start` decides every other.
_MAY_START = f"""(
    coalesce(job.token, '') <> excluded.token AND (
      (job.state IN {_in(STARTABLE)} AND excluded.attempt >= job.attempt AND (
        job.state = 'waiting' OR job.token IS NULL))
      OR (job.state = 'retrying' AND excluded.attempt > job.attempt)))"""

#: Only the holder of the token ends an open run.  An end without a known start applies
#: to a job that has not begun, or not yet begun this attempt.
_MAY_END = f"""(
    (job.token = excluded.token AND job.state IN {_in(OPEN)})
    OR (job.state IN ('enqueued', 'delayed', 'waiting', 'retrying') AND (
      job.token IS NULL OR excluded.attempt > job.attempt
      OR (excluded.started_at IS NULL AND excluded.attempt = job.attempt))))"""

_RUN_GUARD = f"CASE WHEN excluded.state = 'started' THEN {_MAY_START} ELSE {_MAY_END} END"

#: A delay has run out; any other enqueue changes nothing on a row that is there.
_ENQUEUE_GUARD = """job.state = 'delayed' AND excluded.state = 'enqueued'
    AND excluded.attempt >= job.attempt"""

#: Taken as the run says.
_REPLACED = (
    "state",
    "attempt",
    "eta",
    "started_at",
    "finished_at",
    "updated_at",
    "dead_reason",
    "skip_reason",
    "worker",
    "process",
    "token",
)
#: What a beginning run leaves as the last one left it.
KEPT_AT_START = ("duration", "error_type", "error_message")
#: Set once.
_FIRST = (
    "enqueued_at",
    "args",
    "kwargs",
    "options",
    "withheld",
    "sealed",
    "parent_jid",
    "root_jid",
    "replay_of",
    "trace_id",
)
_NEVER = ("jid", "created_at")
#: What a message may say otherwise when it is enqueued again, and what was said of its end.
_OF_ONE_DELIVERY = ("args", "kwargs", "options", "withheld", "sealed", "dismissed_at")
#: What a run that is kept has in common with its job's row.
_KEPT_OF_A_RUN = (
    *("jid", "token", "attempt", "started_at", "finished_at", "duration"),
    *("error_type", "error_message", "worker"),
)
#: What a job was in after a run that ended so.
_STATES_AFTER = {
    Outcome.FINISHED.value: State.FINISHED.value,
    Outcome.DEAD.value: State.DEAD.value,
    Outcome.RETRIED.value: State.RETRYING.value,
    Outcome.SKIPPED.value: State.SKIPPED.value,
}


# By two hosts' clocks, so it may come out below nothing.
_WAITED = "(excluded.started_at - coalesce(job.enqueued_at, excluded.enqueued_at))"

#: What replaces what the last run left, though the event says nothing of it.
_REPLACES = {
    **{column: f"excluded.{column}" for column in _REPLACED},
    **{
        column: f"CASE WHEN excluded.state = 'started' THEN job.{column} ELSE excluded.{column} END"
        for column in KEPT_AT_START
    },
    # What could not be stored may be by now.
    "note": (
        f"CASE WHEN substr(job.note, 1, {len(NOT_STORED)}) = '{NOT_STORED}' "
        "THEN excluded.note ELSE coalesce(job.note, excluded.note) END"
    ),
    # Each run begins its own.
    "progress": (
        "CASE WHEN excluded.state = 'started' THEN NULL "
        "ELSE coalesce(excluded.progress, job.progress) END"
    ),
    # A job that was dropped before its body ran has not waited for its first run.
    "queue_time": (
        "CASE WHEN excluded.started_at IS NULL AND excluded.attempt = 1 "
        f"THEN NULL ELSE coalesce(job.queue_time, ({_WAITED} + abs({_WAITED})) / 2) END"
    ),
}


def _fills(job: Any) -> dict[str, str]:
    """Return what becomes of the other columns of a job, of a model of the user's own too."""
    columns = {f.column_name for f in job._meta.sorted_fields} - {"id", *_NEVER, *_REPLACES}
    first = {c: f"coalesce(job.{c}, excluded.{c})" for c in sorted(columns & {*_FIRST})}
    last = {c: f'coalesce(excluded."{c}", job."{c}")' for c in sorted(columns - {*_FIRST})}
    return first | last


def _run_rule(job: Any) -> Rule:
    """Return the rule of starts and ends."""
    return Rule(job, "job", ("jid",), _RUN_GUARD, _REPLACES, _fills(job))


def _enqueue_rule(job: Any) -> Rule:
    """Return the rule of what was sent."""
    sets = {column: f"excluded.{column}" for column in ("state", "eta", "updated_at")}
    return Rule(job, "job", ("jid",), _ENQUEUE_GUARD, sets, {})


def _failure_rule(failure: Any) -> Rule:
    """Return the rule of runs that are not the last of their job, or did not finish."""
    columns = [f.column_name for f in failure._meta.sorted_fields]
    sets = {c: f"excluded.{c}" for c in columns if c not in ("id", "jid", "token")}
    guard = f"run.outcome = '{Outcome.INTERRUPTED.value}'"
    return Rule(failure, "run", ("jid", "token"), guard, sets, {})


def _line_rule(line: Any) -> Rule:
    """Return the rule of log lines: one that is there stays."""
    key = ("jid", "token", "number")
    return Rule(line, "line", key, "1 = 0", {"text": "excluded.text"}, {})


def default_of(field: Any) -> Any:
    """Return the default of a field of a model, or None."""
    return field.default() if callable(field.default) else field.default


#: Our own, whatever jobs seed theirs with.  To ask the system each time gives the interpreter away.
_random = random.Random()  # noqa: S311
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_token(delivery: str | None, *, stamped: bool = False) -> str:
    """Return a token for a run; those of one *delivery* of the broker begin alike.

    Parameters:
      delivery: The delivery's name, if it has one.
      stamped: Whether it has its name from us, and not from the broker.
    """
    if delivery is None:
        return f"{_random.getrandbits(112):028x}"
    mark = hashlib.sha256(fold_jid(delivery).encode()).hexdigest()[:_MARK]
    if stamped:
        mark = _STAMPED + mark[1:]
    return f"{mark}{_random.getrandbits(64):016x}"


def same_delivery(token: str | None, other: str) -> bool:
    """Return whether two runs were of one delivery, so that the second is a redelivery."""
    return token is not None and token[:_MARK] == other[:_MARK]


def random_bits(number: int) -> int:
    """Return a random number of so many bits, whatever jobs seed theirs with."""
    return _random.getrandbits(number)


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
        self.line: Any = tables.line
        job, failure, lock, line = tables.job, tables.failure, tables.lock, tables.line
        self.locks = Locks(lock, job)
        self._marks = Marks(tables.mark)
        self.database: Database = tables.database
        self._dialect = dialect_of(self.database)
        self._enqueues = self._dialect.upsert(_enqueue_rule(job))
        self._runs = self._dialect.upsert(_run_rule(job))
        self._failures = self._dialect.upsert(_failure_rule(failure))
        self._lines = self._dialect.upsert(_line_rule(line))
        self._freeing = freeing(lock)
        self._locked_all = Compiled(self.database, self._locking)
        self._ran_before = Compiled(self.database, self._selecting_ends)
        self._wait_no_longer = Compiled(self.database, self._ending_waits)
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
        events = sorted(events, key=_order_of)
        batch = self._batch(events)
        if batch.is_one_statement:
            written = self._write(batch)
        else:
            with self.atomic():
                written = self._write(batch)
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
        self._note_late([event.row for event in events if isinstance(event, Ended)])
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
            self.insert_failures([kept_run(event.row)])
            # What was taken for an interruption has ended by itself.
            self._recount(event.jid)

    def _revive(self, event: Ended) -> bool:
        """Give a cancelled job back to a run that came to its end all the same.

        Its worker was only taken to be gone, or could not ask the log.  What really became of
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
            self._recount(event.jid)
            counted.append(taken_for_gone)
        self._note_late([{"finished_at": to_millis(each.finished_at)} for each in counted])
        return True

    def _batch(self, events: Sequence[Event]) -> _Batch:
        """Return the rows of *events*, sorted by what becomes of them."""
        batch = _Batch(events)
        batch.portions = (
            Portion(self._runs, batch.runs),
            Portion(self._enqueues, batch.enqueues),
            Portion(self._failures, batch.failures, follows=True),
            Portion(self._lines, batch.lines),
            Portion(self._freeing, batch.freed, follows=True),
        )
        return batch

    def _write_all(self, events: Sequence[Event]) -> set[str]:
        """Write *events* in the transaction that is open."""
        return self._write(self._batch(events))

    def _write(self, batch: _Batch) -> set[str]:
        self._forget_lines(batch.forgetting)
        written = write_all(batch.portions)
        if batch.failures:
            self._note_late(batch.failures)
            self._write_overtaken([e for e in batch.failing if e.jid not in written])
        for event in sorted(batch.holding, key=keys_of):
            self._hold(event, written=isinstance(event, Enqueued) or event.jid in written)
        return written

    def _write_overtaken(self, events: Sequence[Ended]) -> None:
        """Keep the failures of runs that no longer are their jobs'."""
        if events:
            with self.atomic():
                self.insert_failures([e.failure for e in events if e.failure])
                for event in events:
                    # What was taken for an interruption has ended by itself.
                    self._recount(event.jid)

    def _hold(self, event: Event, *, written: bool) -> None:
        """Keep what the job holds, or free what it is unique by, as its new state wants it."""
        locks, row = self.locks, event.row
        if isinstance(event, Ended):
            locks.forget(row["token"])
            if not written:
                return
        final = row["state"] in FINAL
        for need in _kept(event):
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

    def insert_failures(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert runs that did not finish, once each.

        A run that was presumed interrupted and then ended by itself is corrected.
        """
        self._failures.write(rows)
        self._note_late(rows)

    def _note_late(self, rows: Sequence[dict[str, Any]]) -> None:
        """Have the minutes counted again in which something of *rows* ended long before now."""
        recent = time.time() * 1000 - LATE
        ends = [row.get("finished_at") for row in rows]
        late = {end - end % 60_000 for end in ends if end is not None and end < recent}
        if late:
            self._marks.note_late(late)

    def _recount(self, jid: str) -> None:
        """Count the interruptions of a job anew."""
        job, failure = self.job, self.failure
        count = failure.select(fn.COUNT(failure.id)).where(
            failure.jid == jid, failure.outcome == Outcome.INTERRUPTED.value
        )
        job.update(interruptions=fn.NULLIF(count, 0)).where(job.jid == jid).execute()

    def _lose(self, events: Sequence[Event]) -> None:
        """Mark runs as lost that are only reported now, and whose process is gone."""
        if events:
            job, tokens = self.job, [event.row["token"] for event in events]
            job.update(state=State.LOST).where(
                job.state == State.STARTED, job.token.in_(tokens)
            ).execute()

    def insert_lines(self, logged: Sequence[Any]) -> None:
        """Insert lines of runs, once each, and delete those that went out of bounds.

        Each of *logged* has ``lines`` and ``forget`` as an :class:`Ended` has them.
        """
        self._forget_lines(logged)
        self._lines.write([row for each in logged for row in each.lines])

    def _forget_lines(self, logged: Sequence[Any]) -> None:
        line = self.line
        for each in logged:
            if each.forget is not None:
                jid, token, first, last = each.forget
                mine = line.jid == jid, line.token == token
                line.delete().where(*mine, line.number.between(first, last)).execute()

    def _contest(self, event: Started) -> Answer:
        """Answer a start that the fast guard did not let through."""
        with self.atomic():
            row = self.locked(event.jid)
            verdict = self.judge(event, row)
            if verdict.start is Start.KNOWN:
                return GRANTED
            if verdict.start is Start.REFUSE:
                if event.cut_off:
                    self.insert_failures([_interruption(event.row, event.row["updated_at"])])
                    self._recount(event.jid)
                return verdict.refused()
            if verdict.start is Start.TAKE_OVER and self.close(event, row):
                return DEAD_OF_INTERRUPTIONS
            self.put(event, row)
            return GRANTED

    def locked_all(self, jids: Sequence[str]) -> dict[str, Known]:
        """Return what there is to know of the rows of several jobs, alike."""
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

    def judge(self, event: Started, row: Any) -> Verdict:
        """Decide what a start may do, by the job's row or None if it has none."""
        if row is None:
            return Verdict(Start.BEGIN)
        ended, gave_way = self._ended(event, row), row.token == GAVE_WAY
        start = judge_start(
            state=row.state,
            attempt=row.attempt,
            token=row.token,
            new_attempt=event.row["attempt"],
            new_token=event.row["token"],
            repeated=ended is not None,
            rerun=event.rerun,
            cancelled=row.dead_reason == DeadReason.CANCELLED or gave_way,
            late=event.replayed and self._is_late(event, row),
        )
        return Verdict(start, ended or row.state, gave_way)

    def _ended(self, event: Started, row: Any) -> str | None:
        """Return how a run of the same delivery ended; None if none did, as far as is known."""
        attempt, token = event.row["attempt"], event.row["token"]
        if row.token is None and row.state in STARTABLE and attempt >= row.attempt:
            # No run of it was ever.
            return None
        stamped = token.startswith(_STAMPED)
        if same_delivery(row.token, token):
            may_run = row.state in OPEN or row.state == State.WAITING
            of, ended = row.attempt, None if may_run else str(row.state)
        elif event.redelivered and not stamped:
            # Nobody says of which delivery it is a repetition.
            return _ended_before(row.state, row.attempt, attempt)
        else:
            of, ended = self._kept_end(event.jid, token)
        if ended is None or of != attempt:
            # Code that counts its retries anew has put it back on purpose.
            return None
        if ended == State.DEAD and stamped and not event.redelivered:
            # A dead letter that is put back as it is carries the stamp too.
            return None
        return ended

    def ran_before(self, jids: Sequence[str]) -> set[str]:
        """Return those of *jids* of which the end of an earlier run is kept."""
        return {jid for (jid,) in self._ran_before.execute(jids).fetchall()}

    def _selecting_ends(self, jids: Sequence[str]) -> Any:
        failure = self.failure
        ends = ", ".join(f"'{outcome}'" for outcome in sorted(_STATES_AFTER))
        return failure.select(failure.jid).where(failure.jid.in_(jids), SQL(f"outcome IN ({ends})"))

    def _kept_end(self, jid: str, token: str) -> tuple[int, str | None]:
        """Return the attempt and the end of an earlier run of the delivery of *token*."""
        failure = self.failure
        ends = _STATES_AFTER
        select = failure.select(failure.attempt, failure.outcome).where(
            failure.jid == jid,
            fn.substr(failure.token, 1, _MARK) == token[:_MARK],
            failure.outcome.in_(sorted(ends)),
        )
        found = select.order_by(failure.id.desc()).first()
        return (0, None) if found is None else (found.attempt, ends[found.outcome])

    def _is_late(self, event: Started, row: Any) -> bool:
        """Return whether a start that was kept on disk is of before what the row shows."""
        if row.state in FINAL:
            # A row that was copied from elsewhere may not say.
            ended = row.finished_at or row.updated_at
            return bool(event.row["started_at"] < to_millis(ended))
        if event.cut_off:
            # Of two runs that are over, whichever was first, the row has one already.
            return True
        if row.state != State.STARTED:
            return row.started_at is not None and _began_before(event.row, row)
        seen = self.worker.get_or_none(self.worker.process == row.process)
        if seen is not None and is_gone(seen):
            return False
        return _began_before(event.row, row)

    def close(self, event: Started, row: Any) -> bool:
        """Close the open run of *row*, as interrupted; return whether the job is dead of it."""
        if not row.token or not self._interrupt(row, event):
            return False
        if event.unique is not None and event.unique["until"] is not None:
            self.locks.release(UNIQUE, event.unique["key"], event.jid, None)
        return True

    def put(self, event: Event, row: Any) -> None:
        """Write an event on a locked row, whatever its state."""
        if row is not None:
            # Back to where every run may begin from, so that the rule stands once.
            job = self.job
            beginning = {"state": State.ENQUEUED, "attempt": event.row["attempt"], "token": None}
            if row.state in FINAL and row.token != event.row["token"]:
                self._keep_end(row)
                beginning |= dict.fromkeys(_OF_ONE_DELIVERY)
            job.update(beginning).where(job.jid == event.jid).execute()
        self._write_all([event])

    def _keep_end(self, row: Any) -> None:
        """Keep how a job ended that goes on with another delivery of its message."""
        if row.dead_reason == DeadReason.INTERRUPTED:
            # No run ended so, and those that were cut off are kept already.
            return
        values = {name: getattr(row, name) for name in _KEPT_OF_A_RUN}
        values["token"] = row.token or f"ended:{to_millis(row.finished_at or row.updated_at)}"
        values["error_message"] = row.error_message or row.skip_reason
        for name in ("started_at", "finished_at"):
            values[name] = None if values[name] is None else to_millis(values[name])
        self.insert_failures([kept_run(values | {"state": row.state})])

    def interrupt(self, row: Any) -> int:
        """Close the open run of a locked row; return how many of its runs lost their worker."""
        return self.interrupt_all([row])[row.jid]

    def interrupt_all(self, rows: Sequence[Any]) -> dict[str, int]:
        """Close the open runs of locked rows; return how many runs of each lost their worker."""
        if not rows:
            return {}
        job, failure = self.job, self.failure
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
                    f"{count} runs of it lost their worker: it may be a poison pill, that "
                    "kills the process it runs in"
                )
            jids = [jid for jid, known in interruptions.items() if known == count]
            job.update(update).where(job.jid.in_(jids)).execute()
        return interruptions

    def processes_of(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Return the rows of the processes that jobs ran in, by name, as far as they are known."""
        worker = self.worker
        names = {row.process for row in rows if row.process}
        if not names:
            return {}
        return {seen.process: seen for seen in worker.select().where(worker.process.in_(names))}

    def _presume_interrupted(self, runs: Sequence[tuple[Any, Any]]) -> None:
        """Keep the open runs of locked rows as interrupted, until they end by themselves.

        Each comes with the row of its process, or None.
        """
        self.insert_failures([_presumed(row, seen) for row, seen in runs])

    def _interrupt(self, row: Any, event: Started) -> bool:
        """Close the open run of *row*; return whether the job is dead of it."""
        token = event.row["token"]
        told = event.redelivered and not token.startswith(_STAMPED)
        if not told and not same_delivery(row.token, token):
            seen = self.processes_of([row]).get(row.process)
            if seen is not None and not is_gone(seen):
                # Its message was enqueued again while it runs: it has lost nothing.
                self._presume_interrupted([(row, seen)])
                return False
        interruptions, limit = self.interrupt(row), event.max_interruptions
        if limit is None or interruptions < limit:
            return False
        job, now = self.job, event.row["updated_at"]
        update = {
            "state": State.DEAD.value,
            "dead_reason": DeadReason.INTERRUPTED.value,
            "finished_at": now,
            "updated_at": now,
        }
        job.update(update).where(job.jid == event.jid).execute()
        return True

    def end_waiting(self, waiter: Mapping[str, Any], since: int, now: int) -> None:
        """Keep how long a job waited for its section, and say that it waits no longer."""
        self.end_waiting_all([(waiter, since)], now)

    def end_waiting_all(self, waiters: Sequence[tuple[Mapping[str, Any], int]], now: int) -> None:
        """Keep how long jobs waited for their sections, since when each has beside it."""
        if not waiters:
            return
        self.insert_failures([_waited(waiter, since, now) for waiter, since in waiters])
        self._wait_no_longer.execute([waiter["jid"] for waiter, _ in waiters])

    def _ending_waits(self, jids: Sequence[str]) -> Any:
        job = self.job
        return job.update(waiting_since=SQL("NULL")).where(job.jid.in_(jids))

    def rehearse(self) -> None:
        """Ask for all that writing needs, its tables, columns and rights, and change nothing.

        Raises:
          peewee.PeeweeException: If events could not be written now.
        """
        # No row fulfils it, and no database looks at one before it has checked the rights.
        nothing = SQL("1 = 0")
        with self.atomic():
            for model in (self.job, self.failure, self.locks.lock, self.line):
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


class _Batch:
    """The rows of a batch of events, sorted by what becomes of them in one look at each event."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.runs: list[dict[str, Any]] = []
        self.enqueues: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        #: The sections that are free once their runs have ended.
        self.freed: list[dict[str, Any]] = []
        #: The events that have a failure, those whose lines went out of bounds, and those whose
        #: jobs hold a key.
        self.failing: list[Ended] = []
        self.forgetting: list[Ended] = []
        self.holding: list[Event] = []
        #: Whether a key is held on, which is a statement of its own.
        self._holds_on = False
        self.portions: tuple[Portion, ...] = ()
        for event in events:
            (self.enqueues if isinstance(event, Enqueued) else self.runs).append(event.row)
            if isinstance(event, Ended):
                self._add_end(event)
            if event.section is not None or event.unique is not None:
                self._add_holding(event)

    def _add_end(self, event: Ended) -> None:
        if event.failure is not None:
            self.failing.append(event)
            self.failures.append(event.failure)
        if event.lines:
            self.lines += event.lines
        if event.forget is not None:
            self.forgetting.append(event)

    def _add_holding(self, event: Event) -> None:
        self.holding.append(event)
        self.freed += [_held(event, key) for key in freed_by(event)]
        if event.unique is not None or _kept(event):
            self._holds_on = True

    @property
    def is_one_statement(self) -> bool:
        """Whether it needs no transaction around it."""
        return not (self._holds_on or self.forgetting) and is_one_statement(self.portions)


def _order_of(event: Event) -> tuple[int, str]:
    row = event.row
    return row.get("enqueued_at") or 0, row["jid"]


def _began_before(run: dict[str, Any], row: Any) -> bool:
    """Return whether a run began before that of a row; within a millisecond attempts decide."""
    began = to_millis(row.started_at), row.attempt
    return bool((run["started_at"], run["attempt"]) < began)


def freed_by(event: Event) -> list[str]:
    """Return the sections that are free once an event is written."""
    if not isinstance(event, Ended):
        return []
    goes_on = event.row["state"] == State.RETRYING
    return [n.key for n in event.needs if n.kind == SECTION and not (goes_on and n.is_kept)]


def _kept(event: Event) -> list[Need]:
    """Return the sections that are kept for the next run of a job."""
    if not isinstance(event, Ended) or event.row["state"] != State.RETRYING:
        return []
    return [need for need in event.needs if need.is_kept]


def _held(event: Event, key: str) -> dict[str, Any]:
    """Return a section that a run holds, for what frees it."""
    return {"key": key, "owner": event.jid, "token": event.row["token"]}


def keys_of(event: Event) -> tuple[bool, str, str]:
    """Return the keys that an event is about, for an order that all processes keep."""
    unique = (event.unique or {}).get("key", "")
    return (*in_order(event.needs[0]), unique) if event.needs else (False, "", unique)


def _ended_before(state: str, attempt: int, new_attempt: int) -> str | None:
    """Return how a run of *new_attempt*, which is delivered again, has ended, by the row alone."""
    if state in FINAL or state == State.RETRYING:
        return str(state) if new_attempt <= attempt else None
    return State.RETRYING.value if new_attempt < attempt else None


def kept_run(run: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a run that is not the last of its job, from what its row says."""
    return {name: run.get(name) for name in _KEPT_OF_A_RUN} | {"outcome": str(run["state"])}


def _waited(waiter: Mapping[str, Any], since: int, now: int) -> dict[str, Any]:
    """Return the row of a wait for a section, which is over."""
    return {
        "jid": waiter["jid"],
        # Not the run's: that may fail by itself.
        "token": f"waited:{since}",
        "attempt": waiter["attempt"],
        "outcome": Outcome.WAITED.value,
        "started_at": since,
        "finished_at": now,
        "duration": max(0, now - since),
        "worker": waiter["worker"],
    }


def _presumed(row: Any, seen: Any) -> dict[str, Any]:
    """Return the row of the open run of a job as interrupted, by what its process said last."""
    values = {name: getattr(row, name) for name in ("jid", "token", "attempt", "worker")}
    values["started_at"] = to_millis(row.started_at)
    last_sign = to_millis(seen.heartbeat_at if seen else row.updated_at)
    # The start is by the clock of its host, and the heartbeat by the database's.
    skew = (seen and seen.skew) or 0
    last_sign += skew if abs(skew) > MAX_SKEW else 0
    return _interruption(values, last_sign)


def _interruption(run: dict[str, Any], last_sign: int) -> dict[str, Any]:
    """Return the row of a run whose worker vanished; *last_sign* is of its life."""
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
