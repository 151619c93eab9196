"""Requeueing many jobs, in batches: each batch is sent, then recorded.

A crash, or a lost reply of the broker, may happen between the two.  Each new run therefore has the
same jid in every attempt.  If the log knows that jid, the message was sent and is only recorded.
Otherwise it is sent again as a repetition of the same delivery, which does not run twice.
"""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from peewee import SQL, Case, Value

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.errors import (
    DuplicateJob,
    JobLogError,
    JobNotFound,
    RequeueError,
    RequeueInterruptedError,
)
from dramatiq_joblog.locking.turn import Turn
from dramatiq_joblog.payload.sanitize import clean_optional, fold_jid, message_of
from dramatiq_joblog.recording.log import Written
from dramatiq_joblog.schema.query import known_jids
from dramatiq_joblog.states import FINAL

from .deliveries import STAMP, moving
from .requeue import IN_TRANSACTION, Requeued, chunks
from .sending import Sending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dramatiq import Broker, Message

    from dramatiq_joblog.recording.writer import Writer
    from dramatiq_joblog.schema.query import J, JobQuery
    from dramatiq_joblog.schema.tables import Tables

    from .arguments import Sent
    from .requeue import Sender

#: The number of jobs that are sent and recorded together.
BATCH = 400
#: Milliseconds: the lease of the turn, and the time to wait for it.
TURN, PATIENCE = 5_000, 15_000
#: The columns read from a job's row.
_OF_A_JOB = (
    *("id", "jid", "state", "actor", "queue", "args", "kwargs", "options", "withheld", "sealed"),
    *("parent_jid", "root_jid", "replayed_by"),
)
#: The UUID namespace of new runs' jids.
_NAMESPACE = uuid.UUID("5a4f4a52-9d0b-4f0e-8a37-6a6f626c6f67")


class Bulk(Written, Protocol):
    """The parts of a log with which many jobs are run again."""

    def checked_sender(self) -> Sender:
        """Return the log's sender, or raise RequeueError."""


@dataclass
class _Batch:
    """A batch of jobs to run again."""

    #: The rows of jobs that can be sent, each with its broker and message, in order.
    ready: list[tuple[Any, Broker, Message[Any]]] = field(default_factory=list)
    #: Why others cannot be sent, by jid.
    refused: dict[str, str] = field(default_factory=dict)
    #: The jids of new runs that the log knows, because they were sent before.
    known: frozenset[str] = frozenset()


def requeue_all(
    log: Bulk,
    query: JobQuery[J],
    limit: int,
    *,
    who: str | None,
    broker: Broker | None,
    progress: Callable[[int, int], None] | None,
) -> Requeued:
    """Run the jobs of a query again that have ended and were not run again, oldest first.

    Raises:
      RequeueError: If this process has no broker to send them with.
      RequeueInterruptedError: If the broker or the database became unavailable.
    """
    bulk = _bulk(log, broker, who=who, repeat=False)
    job: Any = log.tables.job
    found = query.in_state(*FINAL).where(job.replayed_by.is_null())
    columns: Any = found.order_by(job.id).limit(limit).columns(job.id, job.jid).tuples()
    return bulk.run(dict(columns), progress)


def requeue_named(
    log: Bulk,
    jids: Sequence[str],
    *,
    who: str | None,
    broker: Broker | None = None,
    repeat: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Requeued:
    """Run the jobs with these jids again; those that cannot be, or are unknown, are refused.

    With *repeat*, also those that were already run again.

    Raises:
      RequeueError: If this process has no broker to send them with.
      RequeueInterruptedError: If the broker or the database became unavailable.
    """
    bulk = _bulk(log, broker, who=who, repeat=repeat)
    job: Any = log.tables.job
    found: dict[int, str] = {}
    jids = list(dict.fromkeys(map(fold_jid, jids)))
    for some in chunks(jids, BATCH):
        found |= dict(job.select(job.id, job.jid).where(job.jid.in_(some)).tuples())
    result = bulk.run(dict(sorted(found.items())), progress)
    unknown = sorted({*jids} - {*found.values()})
    refused = result.refused | {jid: str(JobNotFound(jid)) for jid in unknown}
    return replace(result, refused=refused)


def _bulk(log: Bulk, broker: Broker | None, *, who: str | None, repeat: bool) -> BulkRequeue:
    sender = log.checked_sender()
    turn = Turn(log.locks, "requeue", lasts=TURN)
    brokers = sender.brokers("", broker)
    return BulkRequeue(log.tables, log.writer, turn, sender, brokers, who=who, repeat=repeat)


class BulkRequeue:
    """Runs many jobs again; only one process of a log does so at a time.

    Parameters:
      tables: The log's tables.
      writer: Writes the events and the records.
      turn: The lock that is held while jobs are sent.
      sender: Knows the log's brokers and messages.
      brokers: The brokers that jobs may be sent to.
      who: The user who requested it.
      repeat: Whether jobs that were already run again are run once more.
    """

    def __init__(
        self,
        tables: Tables[Any],
        writer: Writer,
        turn: Turn,
        sender: Sender,
        brokers: Sequence[Broker],
        *,
        who: str | None,
        repeat: bool = False,
    ) -> None:
        # Any: peewee's queries are untyped.
        self._job: Any = tables.job
        self._writer = writer
        self._turn = turn
        self._sender = sender
        self._brokers = brokers
        self._action: Any = tables.action
        self._who = clean_optional(who) or "unknown"
        self._record = Compiled(tables.database, self._recording)
        self._mark = Compiled(tables.database, self._marking)
        self._repeat = repeat
        self._result = Requeued()

    def run(
        self, jids: Mapping[int, str], progress: Callable[[int, int], None] | None = None
    ) -> Requeued:
        """Requeue jobs in order, given as a mapping of id to jid.

        Raises:
          RequeueError: If another process holds the turn for too long.
          RequeueInterruptedError: If the broker or the database becomes unavailable.
        """
        if self._sender.is_in_transaction:
            self._result.refused |= dict.fromkeys(jids.values(), IN_TRANSACTION)
            return self._result
        # This thread holds no connection here: hooks of the application may need it.
        with self._turn.take(PATIENCE) as renew:
            if renew is None:
                raise RequeueError(
                    "",
                    "another process runs jobs of this log again now; repeat it once that is done",
                )
            done = 0
            for ids in chunks(list(jids), BATCH):
                self._run_batch({number: jids[number] for number in ids}, len(jids) - done, renew)
                if progress is not None:
                    for each in range(done + 1, done + len(ids) + 1):
                        progress(each, len(jids))
                done += len(ids)
        return self._result

    def _run_batch(self, jids: Mapping[int, str], left: int, renew: Callable[[], bool]) -> None:
        """Requeue a batch; *left* is the number of jobs in it and all later batches."""
        first = next(iter(jids.values()))
        try:
            _check_turn(renew)
            batch = self._prepare(self._load(list(jids)))
        except Exception as e:
            raise self._interrupted(first, left, e) from e
        sending, broken = Sending(), None
        try:
            self._send(batch, sending)
        except Exception as e:  # noqa: BLE001
            # Brokers raise various errors when unavailable; the next batch would fail too.
            broken = e
        finally:
            # Also when the process is stopping: record what was sent.
            sent, unsent = self._sort(batch, sending)
            try:
                self._note(sent)
            except Exception as e:  # noqa: BLE001
                # The broker's error, if any, came first.
                broken = broken or e
                unsent = unsent or [first]
        if broken is not None:
            left -= len(sent) + len(batch.refused)
            raise self._interrupted(
                unsent[0] if unsent else first, max(left, 0), broken
            ) from broken

    def _load(self, ids: Sequence[int]) -> tuple[list[Any], frozenset[str]]:
        """Return the rows of jobs, and which jids of their new runs the log knows.

        The query runs on the writer's thread, after all events of this process.
        """
        job = self._job

        def load() -> tuple[list[Any], frozenset[str]]:
            columns = [getattr(job, name) for name in _OF_A_JOB]
            select = job.select(*columns).where(job.id.in_(ids)).order_by(job.id)
            rows = list(select.namedtuples())
            return rows, known_jids(job, [replay_id(row) for row in rows])

        found: tuple[list[Any], frozenset[str]] = self._writer.call(load)
        return found

    def _prepare(self, found: tuple[list[Any], frozenset[str]]) -> _Batch:
        """Return a batch with the messages of jobs, and the reasons of refusals."""
        rows, known = found
        batch = _Batch(known=known)
        restored: list[tuple[Any, Sent]] = []
        for job in rows:
            if job.replayed_by is not None and not self._repeat:
                # It was run again elsewhere meanwhile.
                continue
            try:
                self._sender.check(job)
                restored.append((job, self._sender.restored(job)))
            except Exception as e:  # noqa: BLE001
                # The user's encoder may raise anything.
                batch.refused[job.jid] = self._reason(e)
        targets = self._sender.known_targets([sent for _, sent in restored])
        for job, sent in restored:
            jid = replay_id(job)
            try:
                broker, message = self._sender.message(job, sent, self._brokers, targets, jid)
            except Exception as e:  # noqa: BLE001
                # An error of this job alone: its actor, its queue, or data of another version.
                batch.refused[job.jid] = self._reason(e)
            else:
                # The same stamp makes each attempt the same delivery of the same job.
                message.options[STAMP] = [f"again {jid}", None]
                batch.ready.append((job, broker, message))
        return batch

    def _send(self, batch: _Batch, sending: Sending) -> None:
        """Enqueue the messages of a batch that have not been sent before."""
        fresh = [each for each in batch.ready if each[2].message_id not in batch.known]
        with moving():
            for broker, some in itertools.groupby(fresh, lambda each: each[1]):
                messages = [message for _, _, message in some]
                sending.send(broker, messages, self._sender.enqueue_of(broker))

    def _sort(
        self, batch: _Batch, sending: Sending
    ) -> tuple[list[tuple[Any, Message[Any]]], list[str]]:
        """Add a batch's results; return the jobs sent, and the jids of the others."""
        sent, unsent = [], []
        for job, _, message in batch.ready:
            jid = message.message_id
            if jid in batch.known or jid in sending.sent:
                sent.append((job, sending.sent.get(jid, message)))
            elif jid in sending.refused:
                batch.refused[job.jid] = self._reason(sending.refused[jid])
            else:
                unsent.append(job.jid)
        self._result.sent += [message for _, message in sent]
        self._result.refused |= batch.refused
        return sent, unsent

    def _note(self, sent: Sequence[tuple[Any, Message[Any]]]) -> None:
        """Record, in one transaction, which jobs were run again, their new jids, and by whom."""
        if not sent:
            return

        def note() -> None:
            ids = [job.id for job, _ in sent]
            pairs = ((job.id, message.message_id) for job, message in sent)
            self._mark.execute([*itertools.chain.from_iterable(pairs), *ids])
            self._record.execute([self._who, *ids])

        self._writer.call(note)

    def _marking(self, values: Sequence[Any]) -> Any:
        """Return the statement that marks jobs: pairs of an id and a new jid, then the ids."""
        job, count = self._job, len(values) // 3
        pairs, ids = values[: 2 * count], values[2 * count :]
        new = Case(job.id, list(zip(pairs[::2], pairs[1::2], strict=True)))
        return job.update(replayed_by=new).where(job.id.in_(ids))

    def _recording(self, values: Sequence[Any]) -> Any:
        """Return the statement that audits marked jobs: a name, then their ids."""
        job, action = self._job, self._action
        columns = {
            action.at: database_now(job._meta.database),
            action.who: Value(values[0]),
            action.what: SQL("'requeue'"),
            action.jid: job.jid,
            action.detail: SQL("'as '").concat(job.replayed_by),
        }
        return action.insert_from(
            job.select(*columns.values()).where(job.id.in_(values[1:])).order_by(job.id),
            list(columns),
        )

    def _reason(self, error: Exception) -> str:
        """Return why one job was refused."""
        if isinstance(error, RequeueError):
            return error.reason
        if isinstance(error, DuplicateJob):
            return str(error)
        text: str = self._sender.redacted(f"{type(error).__name__}: {message_of(error)}")
        return text

    def _interrupted(self, jid: str, left: int, error: Exception) -> RequeueInterruptedError:
        result, cause = self._result, self._reason(error)
        return RequeueInterruptedError(jid, result.sent, result.refused, cause, left)


def _check_turn(renew: Callable[[], bool]) -> None:
    if not renew():
        raise JobLogError("another process took this one's turn, which was not renewed in time")


def replay_id(job: Any) -> str:
    """Return the jid of a job's next run by :class:`BulkRequeue`; the same in each attempt."""
    return str(uuid.uuid5(_NAMESPACE, f"{job.jid} {job.replayed_by or ''}"))
