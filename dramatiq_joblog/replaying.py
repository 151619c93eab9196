"""Running jobs again, as it is asked of a log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from .broker.bulk import BATCH, TURN, BulkRequeue
from .broker.requeue import chunks
from .errors import JobNotFound, RequeueError
from .locking.turn import Turn
from .payload.sanitize import fold_jid
from .schema.query import J, count_asked
from .states import FINAL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dramatiq import Broker, Message

    from .broker.requeue import Requeued, Sender
    from .recording.transitions import Transitions
    from .recording.writer import Writer
    from .schema.query import JobQuery
    from .schema.tables import Tables


class Replaying(Generic[J]):
    """What runs jobs again: a part of :class:`JobLog`."""

    # What the log has.
    Job: type[J]
    tables: Tables[J]
    transitions: Transitions
    writer: Writer

    #: What sends them, for all brokers of the log; the log itself knows none.
    sender: Sender | None = None

    def send_by(self, sender: Sender) -> Sender:
        """Return what sends the log's jobs again: *sender*, if it is the first."""
        if self.sender is None:
            self.sender = sender
        return self.sender

    def get(self, jid: str) -> J:
        """Return a job."""
        raise NotImplementedError

    def requeue(
        self, jid: str, *, who: str | None = None, broker: Broker | None = None
    ) -> Message[Any]:
        """Run a job again: send a new message with the same actor, arguments and options.

        The new job's ``replay_of`` is the old one's jid, and the old one's ``replayed_by`` the
        new one's.  The message is enqueued before that is written.

        Parameters:
          jid: A job that is finished, dead or skipped.
          who: Who wants it, for ``joblog.actions``.
          broker: Where to send it; by default where this process declared its actor.  If
            several brokers have one of this name and this queue, it is the one that declared an
            actor last.

        Raises:
          JobNotFound: If the log has no such job.
          RequeueError: If it cannot be run again as it was; nothing was sent.

        Returns:
          The new message.
        """
        return self.checked_sender(jid).requeue(self.get(jid), who=who, broker=broker)

    def requeue_all(
        self,
        query: JobQuery[J],
        *,
        limit: int = 1000,
        who: str | None = None,
        broker: Broker | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Requeued:
        """Run the jobs of a query again, oldest first, as :meth:`requeue` does.

        Jobs that have not ended, and those that were run again already, are left out.  They are
        sent in batches, each in one round trip where the broker can, and noted together.  One
        process of a log does so at a time; another waits for it.

        Example:
          >>> joblog.requeue_all(joblog.jobs.dead().of_actor("index"), limit=100).sent
          []

        Parameters:
          query: Which jobs.
          limit: How many at most.
          who: Who wants it, for ``joblog.actions``.
          broker: Where to send them; by default where this process declared its actors.
          progress: Is called after each job, with how many are done and of how many.

        Raises:
          RequeueError: If this process has no broker to send them by, or another process runs
            jobs again for long.
          RequeueInterruptedError: If it broke off, as when the broker or the database is
            unavailable; its ``sent`` and ``refused`` are those until then.  To repeat the call
            sends those that are ``left``.

        Returns:
          What was ``sent``, new messages in order, and what was ``refused``: the reasons by jid.
        """
        limit = count_asked("limit", limit, least=0)
        sender = self.checked_sender("of a query")
        brokers = sender.brokers("of a query", broker)
        job = self.Job
        found = query.in_state(*FINAL).where(job.replayed_by.is_null())
        columns: Any = found.order_by(job.id).limit(limit).columns(job.id, job.jid).tuples()
        return self._bulk(sender, brokers, who).run(dict(columns), progress)

    def requeue_named(
        self,
        jids: Sequence[str],
        *,
        who: str | None = None,
        broker: Broker | None = None,
        repeat: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> Requeued:
        """Run the jobs of *jids* again, as :meth:`requeue_all` does.

        Those that cannot be run again, or are not known, are among the refused.

        Parameters:
          jids: The jobs.
          who: Who wants it, for ``joblog.actions``.
          broker: Where to send them; by default where this process declared their actors.
          repeat: Whether those that were run again before are run once more.
          progress: Is called after each job, with how many are done and of how many.

        Raises:
          RequeueError: If this process has no broker to send them by.
          RequeueInterruptedError: If the broker or the database became unavailable.
        """
        sender = self.checked_sender("that is named")
        brokers = sender.brokers("that is named", broker)
        job = self.Job
        found: dict[int, str] = {}
        jids = list(dict.fromkeys(map(fold_jid, jids)))
        for some in chunks(jids, BATCH):
            columns: Any = job.select(job.id, job.jid).where(job.jid.in_(some)).tuples()
            found |= dict(columns)
        bulk = self._bulk(sender, brokers, who, repeat=repeat)
        result = bulk.run(dict(sorted(found.items())), progress)
        unknown = sorted({*jids} - {*found.values()})
        result.refused |= {jid: str(JobNotFound(jid)) for jid in unknown}
        return result

    def _bulk(
        self, sender: Sender, brokers: Sequence[Broker], who: str | None, *, repeat: bool = False
    ) -> BulkRequeue:
        turn = Turn(self.transitions.locks, "requeue", lasts=TURN)
        return BulkRequeue(self.tables, self.writer, turn, sender, brokers, who=who, repeat=repeat)

    def checked_sender(self, jid: str) -> Sender:
        """Return what sends the log's jobs again.

        Raises:
          RequeueError: If this process has no broker to send them by; *jid* is for its text.
        """
        if self.sender is None:
            raise RequeueError(
                jid,
                "this process has no broker with a JobLogMiddleware of this log; import the "
                "module that sets it up (on the command line: --app module:joblog)",
            )
        return self.sender
