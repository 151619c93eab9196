"""What runs in a worker process, from the boot of its first worker to the end of its last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.recording.log import Written
from dramatiq_joblog.recording.log_handler import capture

from .acks import HandedAcks, why_not
from .promotion import Waker
from .worker_process import Place, Workers

if TYPE_CHECKING:
    from dramatiq import Broker, Message
    from dramatiq.broker import MessageProxy

    from dramatiq_joblog.recording.log import Log
    from dramatiq_joblog.recording.progress import Reports

    from .acks import Acks
    from .ahead import Ahead
    from .worker_process import WorkerProcess


class Worked(Written, Protocol):
    """The parts of a log that its workers use."""

    @property
    def worker_process(self) -> WorkerProcess:
        """The presence of this process in the log."""

    def release(self) -> None:
        """Return this thread's connection to the pool, if the log created its database."""


class Services:
    """Promotion, acknowledgements, live reports and the capture of log lines, for some workers.

    Parameters:
      joblog: The log.
      reports: The reports of the jobs that run.
      acks: How acknowledgements are sent.
      heartbeat: Milliseconds between two heartbeats, and between two writes of reports.
      heartbeat_timeout: Milliseconds without a heartbeat after which the process is considered
        gone.
    """

    def __init__(
        self,
        joblog: Log[Worked],
        reports: Reports,
        ahead: Ahead,
        *,
        acks: Acks,
        heartbeat: int,
        heartbeat_timeout: int,
    ) -> None:
        self._joblog = joblog
        self._reports = reports
        self._ahead = ahead
        self._how_to_ack = acks
        self._heartbeat = heartbeat
        self._heartbeat_timeout = heartbeat_timeout
        self._workers = Workers()
        #: Sends acknowledgements; None if each worker thread sends its own.
        self.acks: HandedAcks | None = None
        #: Promotes waiting messages; None while there is no worker.
        self.waker: Waker | None = None

    def check_acks(self, broker: Broker) -> None:
        """Refuse a broker that does not support the required acknowledgements.

        Raises:
          ConfigurationError: If it does not.
        """
        if self.acks is not None or self._how_to_ack != "handed":
            return
        reason = why_not(broker)
        if reason is not None:
            raise ConfigurationError(
                f"acks='handed' is not possible with this broker: {reason}; use acks='auto'"
            )

    def start(self, broker: Broker, worker: Any) -> None:
        """Start the heartbeat, and with the first worker everything else, before its first job."""
        self.check_acks(broker)
        core = self._joblog.core
        if self.acks is None and self._how_to_ack != "plain" and why_not(broker) is None:
            self.acks = HandedAcks(broker, core.writer.wake, self._ahead)
        place = Place(
            worker.worker_threads,
            frozenset(worker.consumer_whitelist or broker.get_declared_queues()),
        )
        core.worker_process.enter(
            worker, place, interval=self._heartbeat, timeout=self._heartbeat_timeout
        )
        first = self._workers.add(worker, place)
        self._serve()
        if first:
            core.writer.every(self._heartbeat, self._reports.write)
            capture.enter()
            self.waker = Waker(self._joblog, broker)
            self.waker.start()
            core.locks.freed.listen(self.waker.look)

    def _serve(self) -> None:
        self._ahead.serve(sum(place.threads for place in self._workers.here.values()))

    def stop_promoting(self, worker: Any) -> None:
        """Stop promoting waiting messages before the last worker ends."""
        # Its threads take no more.
        self._ahead.serve(0)
        if self.waker is not None and self._workers.are_only(worker):
            self._joblog.core.locks.freed.ignore(self.waker.look)
            self.waker.stop()
            self.waker = None

    def stop(self, worker: Any) -> bool:
        """Stop everything after the last worker has ended, and write what was submitted.

        Returns:
          Whether all acknowledgements could be sent.
        """
        core = self._joblog.core
        last = self._workers.remove(worker)
        self._serve()
        if last:
            core.writer.end_chore(self._reports.write, self._reports.write)
            capture.leave()
        core.worker_process.leave(worker)
        core.writer.flush()
        return self.acks is None or self.acks.flush()

    def hold(self, broker: Broker, message: MessageProxy, copy: Message[Any], delay: int) -> bool:
        """Hold a copy of a message here for *delay* milliseconds, without acknowledging it.

        Returns:
          False if that is not possible; the caller must enqueue the copy with that delay.
        """
        acks, waker = self.acks, self.waker
        if acks is None or waker is None or not acks.takes(broker, message):
            return False
        if not waker.hold(copy, delay):
            return False
        acks.keep(message)
        return True

    def filled(self, queue: str) -> None:
        """Fetch soon from a delay queue on which a waiting message was enqueued."""
        if self.waker is not None:
            self.waker.filled(queue)
