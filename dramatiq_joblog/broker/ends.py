"""How runs end: what their hooks record, and the outcome that is committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dramatiq.middleware import Retries

from dramatiq_joblog.errors import JobLogError, OutcomeNotKeptError
from dramatiq_joblog.recording.current import running
from dramatiq_joblog.recording.event_rows import freed_by

from .options import is_logged, throws
from .outcome_log import log_outcome
from .refusals import PutBack
from .verdict import verdict

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.broker import MessageProxy
    from dramatiq.middleware import Middleware

    from dramatiq_joblog.recording.events import Ended
    from dramatiq_joblog.recording.inbox import Receipt
    from dramatiq_joblog.recording.log import Log
    from dramatiq_joblog.recording.progress import Reports

    from .ahead import Ahead
    from .messages import Messages
    from .options import AnyMessage
    from .run import Run
    from .runs import Runs
    from .services import Services, Worked


class Ends:
    """Ends runs, each with a committed outcome before its message is acknowledged.

    Parameters:
      joblog: The log.
      messages: What is known of messages.
      runs: The runs of this process.
      services: What this process does for its workers.
      reports: The reports of the runs that have begun.
      ahead: The starts committed ahead.
      outcome_log: Whether outcomes are logged as well.
    """

    def __init__(
        self,
        joblog: Log[Worked],
        messages: Messages,
        runs: Runs,
        services: Services,
        reports: Reports,
        *,
        ahead: Ahead,
        outcome_log: bool,
    ) -> None:
        self._joblog = joblog
        self._messages = messages
        self._runs = runs
        self._services = services
        self._reports = reports
        self._ahead = ahead
        self._outcome_log = outcome_log

    def note_result(
        self,
        broker: Broker,
        message: MessageProxy,
        error: BaseException | None,
        middleware: Middleware,
    ) -> None:
        """Record how a body ended; its outcome is not known yet.

        Parameters:
          broker: The message's broker.
          message: The message.
          error: What the body raised.
          middleware: The one that is called, for its place in the broker's list.
        """
        run = self._runs.of_delivery(message)
        if run is None:
            # A middleware before this one failed the message, so no start was written.
            if error is None or not is_logged(broker, message):
                return
            run = self._late(broker, message)
            run.row["attempt"] -= _counted(broker, message, error, middleware)
        run.note_end(error)

    def note_skip(self, broker: Broker, message: MessageProxy, error: BaseException | None) -> None:
        """Record what dropped a message."""
        run, is_put_back = self._runs.of_delivery(message), isinstance(error, PutBack)
        if run is None:
            if is_put_back or not is_logged(broker, message):
                return
            run = self._late(broker, message)
        # By the middleware of another log, if this one had let it begin.
        run.note_skip(error, put_back=is_put_back)

    def commit(self, broker: Broker, message: MessageProxy, *, rejected: bool) -> None:
        """Commit the outcome of a run whose message is about to be acknowledged, or rejected."""
        self._end(broker, message, rejected=rejected)
        self._runs.forget_sent()

    def _end(self, broker: Broker, message: MessageProxy, *, rejected: bool) -> None:
        run = self._runs.of_delivery(message)
        if run is None:
            if not rejected or not is_logged(broker, message):
                return
            run = self._late(broker, message)
        if run.ended or run.refused:
            return
        live = running.get()
        if run.began is not None:
            self._ahead.note_run(message.actor_name, run.lasted)
        event = verdict(broker, message, run, live, rejected=rejected)
        run.end()
        self._runs.close(run)
        if run.start is not None:
            run.start.drop()
        if live is not None:
            self._reports.end(live)
        running.set(None)
        self._joblog.core.release()
        acks = self._services.acks
        if acks is not None and acks.takes(broker, message):
            acks.after(self._hand_over(event), message)
        else:
            try:
                self._joblog.core.writer.write(event)
            except JobLogError as e:
                # Dramatiq would swallow any other error, and acknowledge.
                raise OutcomeNotKeptError(f"the outcome of job {event.jid} is not kept: {e}") from e
        if self._outcome_log:
            log_outcome(event.row, self._messages.rows.user_column)

    def _hand_over(self, event: Ended) -> Receipt:
        """Submit the end of a run; sending the acknowledgement makes the writer write it."""
        waker = self._services.waker
        if event.section is not None and waker is not None and waker.waits_for(freed_by(event)):
            # Now, not with the next batch: it may release a key for the next job.
            return self._joblog.core.writer.put(event, awaited=True)
        return self._joblog.core.writer.ride(event)

    def _late(self, broker: Broker, message: AnyMessage) -> Run:
        self._ahead.drop(message)
        return self._runs.late(broker, message)


def _counted(
    broker: Broker, message: AnyMessage, error: BaseException, middleware: Middleware
) -> int:
    """Return 1 if ``Retries`` has already counted this failure, 0 if it runs later."""
    order = list(broker.middleware)
    counts = next((i for i, m in enumerate(order) if isinstance(m, Retries)), -1)
    after = order.index(middleware) < counts
    return int(after and not throws(broker, message, error))
