"""Running many jobs again, in batches: each batch is sent, then recorded.

A crash, or a lost answer of the broker, may come between the two.  So a new run has a jid that
is the same at each try: what the log knows by it was sent, and is only noted.  What it does not
know is sent once more, as a repetition of the same delivery, which is not run twice.
"""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peewee import SQL, Case, Value

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.compiled import Compiled
from dramatiq_joblog.errors import (
    DuplicateJob,
    JobLogError,
    RequeueError,
    RequeueInterruptedError,
)
from dramatiq_joblog.payload.sanitize import clean_optional, message_of
from dramatiq_joblog.schema.query import known_jids

from .deliveries import STAMP, moving
from .requeue import IN_TRANSACTION, Requeued, chunks
from .sending import Sending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dramatiq import Broker, Message

    from dramatiq_joblog.locking.turn import Turn
    from dramatiq_joblog.recording.writer import Writer
    from dramatiq_joblog.schema.tables import Tables

    from .arguments import Sent
    from .requeue import Sender

#: Jobs that are sent, and noted, together.
BATCH = 400
#: Milliseconds that a turn lasts unless it is renewed, and that one waits for another's.
TURN, PATIENCE = 5_000, 15_000
#: What is asked of a job's row.
_OF_A_JOB = (
    *("id", "jid", "state", "actor", "queue", "args", "kwargs", "options", "withheld", "sealed"),
    *("parent_jid", "root_jid", "replayed_by"),
)
#: What the jids of new runs are made in.
_NAMESPACE = uuid.UUID("5a4f4a52-9d0b-4f0e-8a37-6a6f626c6f67")


@dataclass
class _Batch:
    """Jobs that are run again together."""

    #: The rows of those that can be sent, each with its broker and its message, in order.
    ready: list[tuple[Any, Broker, Message[Any]]] = field(default_factory=list)
    #: Why others cannot be, by their jids.
    refused: dict[str, str] = field(default_factory=dict)
    #: Jids of new runs that the log knows: they were sent before.
    known: frozenset[str] = frozenset()


class BulkRequeue:
    """Runs jobs again, many at once; of all processes of a log one does so at a time.

    Parameters:
      tables: The log's tables.
      writer: Where events are written, and what is noted.
      turn: Taken for as long as jobs are sent.
      sender: Knows the log's brokers, and what is sent.
      brokers: Where the jobs may be sent.
      who: Who wants it.
      repeat: Whether jobs that were run again before are run once more.
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
        """Send jobs again in their order, named by id and jid.

        Raises:
          RequeueError: If another process does so for long.
          RequeueInterruptedError: If the broker or the database becomes unavailable.
        """
        if self._sender.is_in_transaction:
            self._result.refused |= dict.fromkeys(jids.values(), IN_TRANSACTION)
            return self._result
        # No connection of this thread is held: hooks of the application may want it.
        with self._turn.take(PATIENCE) as renew:
            if renew is None:
                raise RequeueError(
                    "of a query",
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
        """Run a batch again of which, with all behind it, so many are *left*."""
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
            # Brokers raise many kinds when they are unavailable; the next would fare no better.
            broken = e
        finally:
            # Also when the process is to stop: what was sent is noted.
            sent, unsent = self._sort(batch, sending)
            try:
                self._note(sent)
            except Exception as e:  # noqa: BLE001
                # The broker's error came first.
                broken = broken or e
                unsent = unsent or [first]
        if broken is not None:
            left -= len(sent) + len(batch.refused)
            raise self._interrupted(
                unsent[0] if unsent else first, max(left, 0), broken
            ) from broken

    def _load(self, ids: Sequence[int]) -> tuple[list[Any], frozenset[str]]:
        """Return the rows of jobs, and those of the jids of their new runs that the log knows.

        It is asked where events are written, so that all that this process has sent is known.
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
        """Return the messages of jobs, and why others have none."""
        rows, known = found
        batch = _Batch(known=known)
        restored: list[tuple[Any, Sent]] = []
        for job in rows:
            if job.replayed_by is not None and not self._repeat:
                # Another has run it again meanwhile.
                continue
            try:
                self._sender.check(job)
                restored.append((job, self._sender.restored(job)))
            except Exception as e:  # noqa: BLE001
                # The user's own encoder may raise anything.
                batch.refused[job.jid] = self._reason(e)
        targets = self._sender.known_targets([sent for _, sent in restored])
        for job, sent in restored:
            jid = replay_id(job)
            try:
                broker, message = self._sender.message(job, sent, self._brokers, targets, jid)
            except Exception as e:  # noqa: BLE001
                # Of one job: its actor, its queue, or what another version kept of it.
                batch.refused[job.jid] = self._reason(e)
            else:
                # However often it is sent, it is the same delivery of the same job.
                message.options[STAMP] = [f"again {jid}", None]
                batch.ready.append((job, broker, message))
        return batch

    def _send(self, batch: _Batch, sending: Sending) -> None:
        """Enqueue the messages of a batch that were not sent before."""
        fresh = [each for each in batch.ready if each[2].message_id not in batch.known]
        with moving():
            for broker, some in itertools.groupby(fresh, lambda each: each[1]):
                messages = [message for _, _, message in some]
                sending.send(broker, messages, self._sender.enqueue_of(broker))

    def _sort(
        self, batch: _Batch, sending: Sending
    ) -> tuple[list[tuple[Any, Message[Any]]], list[str]]:
        """Add what became of a batch to the result; return those sent, and the jids of others."""
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
        """Note which jobs were run again, and as which; in one transaction, with who did it."""
        if not sent:
            return

        def note() -> None:
            ids = [job.id for job, _ in sent]
            pairs = ((job.id, message.message_id) for job, message in sent)
            self._mark.execute([*itertools.chain.from_iterable(pairs), *ids])
            self._record.execute([self._who, *ids])

        self._writer.call(note)

    def _marking(self, values: Sequence[Any]) -> Any:
        """Return the statement that marks jobs: pairs of an id and a new jid, and the ids."""
        job, count = self._job, len(values) // 3
        pairs, ids = values[: 2 * count], values[2 * count :]
        new = Case(job.id, list(zip(pairs[::2], pairs[1::2], strict=True)))
        return job.update(replayed_by=new).where(job.id.in_(ids))

    def _recording(self, values: Sequence[Any]) -> Any:
        """Return the statement that records who ran marked jobs again: a name, and their ids."""
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
    """Return the jid of a job's next run by :class:`BulkRequeue`: the same at each try."""
    return str(uuid.uuid5(_NAMESPACE, f"{job.jid} {job.replayed_by or ''}"))
