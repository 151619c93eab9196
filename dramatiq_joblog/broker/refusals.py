"""What happens to a message that may not run now: skipped, rejected, put back or failed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger
from dramatiq.middleware import GroupCallbacks, MiddlewareError, SkipMessage

from dramatiq_joblog.errors import SectionTakenError, SectionUnknownError
from dramatiq_joblog.recording.outage import AWAY_DELAY
from dramatiq_joblog.recording.waits import comes_back
from dramatiq_joblog.states import State

from .deliveries import hold, moving
from .options import DELAY_SUFFIX, WAITS, bare
from .outcome_log import log_outcome
from .requeue import GROUP

if TYPE_CHECKING:
    from dramatiq import Broker, Message
    from dramatiq.broker import MessageProxy

    from dramatiq_joblog.locking.admission import Refusal
    from dramatiq_joblog.recording.events import Answer, Started

    from .run import Run
    from .runs import Runs
    from .services import Services

_logger = get_logger(__name__)


class PutBack(SkipMessage):
    """Raised when the job of a skipped message goes on with a copy of it.

    The middleware of another log of the same broker sees that its job has not ended.
    """


class Refusals:
    """Refuses messages according to the answers to their starts.

    Parameters:
      runs: Records refused runs.
      services: Holds copies of messages in this process, and fetches those put back.
      outcome_log: Whether skipped jobs are logged as well.
      user_column: The column of the job's user.
    """

    def __init__(
        self,
        runs: Runs,
        services: Services,
        *,
        outcome_log: bool,
        user_column: str,
    ) -> None:
        self._runs = runs
        self._services = services
        self._outcome_log = outcome_log
        self._user_column = user_column

    def reject(self, broker: Broker, message: MessageProxy, error: Exception) -> None:
        """Reject a message that can never run correctly; its job is dead."""
        run = self._runs.new(broker, message)
        run.note_end(error)
        message.fail()
        raise SkipMessage(str(error))

    def refuse(
        self,
        broker: Broker,
        message: MessageProxy,
        run: Run,
        answer: Answer,
        *,
        needs_key: bool,
    ) -> None:
        """Skip, reject, put back or fail a message that may not run now.

        Parameters:
          broker: The message's broker.
          message: The message.
          run: Its run, which does not begin.
          answer: The answer to its start.
          needs_key: Whether it needs a key.
        """
        refusal = answer.refusal
        taken = None if refusal is None else str(refusal)
        if refusal is not None and answer.found is None:
            # The run fails like any other.
            raise SectionTakenError(refusal.need.key, refusal.why)
        run.refuse()
        delay = answer.delay
        if delay is None and needs_key and answer.found is None:
            # It is unknown whether its section is free, and it must never run without it.
            delay = AWAY_DELAY
        if delay is not None:
            self.put_back(broker, message, delay, refusal)
            raise PutBack(taken or "it is put back: its section may not be free")
        if answer.gave_way:
            # As for any duplicate: the newer job does the work.
            count_as_done(broker, message)
        if taken is None:
            _logger.info(
                "Job %s is %s already: this copy of its message is not run.",
                message.message_id,
                answer.found,
            )
            keep_its_result(message)
        if answer.found == State.DEAD:
            # Its rejection was lost with its worker; reject it again.
            message.fail()
        if self._outcome_log and taken:
            row = {**run.row, "state": answer.found, "skip_reason": taken}
            log_outcome(row, self._user_column)
        raise SkipMessage(taken or f"the job log already has this job as {answer.found}")

    def put_back(
        self, broker: Broker, message: MessageProxy, delay: int, refusal: Refusal | None = None
    ) -> None:
        """Put a message back for *delay* milliseconds, or until its turn comes."""
        waits = True if refusal is None else refusal.need.key
        copy = bare(message).copy(options={WAITS: waits})
        if not self._services.hold(broker, message, copy, delay):
            # It stays the same delivery, so that a redelivery is still recognised as a repetition.
            hold(copy)
            with moving():
                self._enqueue(broker, copy, delay)
        keep_its_result(message)

    def line_up(self, broker: Broker, message: MessageProxy, run: Run, start: Started) -> bool:
        """Hold a message here that joins a wait queue; return False if it cannot be held."""
        [need] = start.needs
        copy = bare(message).copy(options={WAITS: need.key})
        if not self._services.hold(broker, message, copy, comes_back(start, need.wait_for)):
            return False
        run.refuse()
        keep_its_result(message)
        return True

    def send_back(self, broker: Broker, message: MessageProxy, delay: int) -> None:
        """Put a message back for *delay* milliseconds whose run was about to begin."""
        self._enqueue(broker, bare(message).copy(options={WAITS: True}), delay)
        keep_its_result(message)

    def _enqueue(self, broker: Broker, copy: Message[Any], delay: int) -> None:
        """Enqueue a copy; it must be in the broker before the original is acknowledged."""
        while True:
            try:
                broker.enqueue(copy, delay=delay)
            except MiddlewareError:
                raise
            except Exception as e:  # noqa: BLE001
                # Brokers raise errors of their client libraries as well as Dramatiq's.
                _logger.warning("A waiting job cannot be put back yet: %s", e)
                time.sleep(1.0)
            else:
                break
        self._services.filled(f"{copy.queue_name}{DELAY_SUFFIX}")


def count_as_done(broker: Broker, message: MessageProxy) -> None:
    """Count a duplicate as a completed member of its group: another job does its work.

    Raises:
      SectionUnknownError: If it could not be counted; it is retried.
    """
    last = message.options
    while (target := last.get("pipe_target")) is not None:
        # The rest of a pipeline does not run; the group counts its last message.
        last = target["options"]
    member = message.copy(options={name: last.get(name) for name in GROUP})
    for middleware in broker.middleware:
        if isinstance(middleware, GroupCallbacks):
            try:
                middleware.after_process_message(broker, member)
            except Exception as e:
                raise SectionUnknownError(f"a duplicate is not counted in its group: {e}") from e


def keep_its_result(message: MessageProxy) -> None:
    """Keep ``Results`` from storing a result for a dropped copy: another run's result counts."""
    message.options["store_results"] = False
