"""Running jobs again, as it is asked of a log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from .errors import RequeueError
from .schema.query import J, count_asked

if TYPE_CHECKING:
    from collections.abc import Callable

    from dramatiq import Broker, Message

    from .broker.requeue import Requeued, Sender
    from .schema.query import JobQuery


class Replaying(Generic[J]):
    """What runs jobs again: a part of :class:`JobLog`."""

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
        return self._checked_sender(jid).requeue(self.get(jid), who=who, broker=broker)

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

        Jobs that have not ended, and those that were run again already, are left out.

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
          RequeueError: If this process has no broker to send them by.
          RequeueInterruptedError: If it broke off, as when the broker is unavailable; its
            ``sent`` and ``refused`` are those until then.

        Returns:
          What was ``sent``, new messages in order, and what was ``refused``: the reasons by jid.
        """
        limit = count_asked("limit", limit, least=0)
        sender = self._checked_sender("of a query")
        return sender.requeue_all(query, limit=limit, who=who, broker=broker, progress=progress)

    def _checked_sender(self, jid: str) -> Sender:
        if self.sender is None:
            raise RequeueError(
                jid,
                "this process has no broker with a JobLogMiddleware of this log; import the "
                "module that sets it up (on the command line: --app module:joblog)",
            )
        return self.sender
