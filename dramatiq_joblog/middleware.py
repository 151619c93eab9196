"""JobLogMiddleware: Dramatiq's hooks, read as the life of a job.

The outcome of a run is decided in ``before_ack`` and ``before_nack``: only then is it known
whether a failed job was retried, whatever the middleware's position in the broker's list.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger
from dramatiq.middleware import Middleware, MiddlewareError

from .broker.acks import ACKS
from .broker.ahead import Ahead
from .broker.claims import Claims
from .broker.deliveries import hold, is_move, only_moves, stamp
from .broker.ends import Ends
from .broker.labels import STARTS
from .broker.messages import Messages
from .broker.options import (
    DELAY_SUFFIX,
    DUPLICATE,
    OPTIONS,
    PARENT,
    ROOT,
    SECTION,
    UNIQUE,
    WAITS,
    bare,
    eta_of,
    is_given,
    option,
)
from .broker.requeue import Sender
from .broker.runs import Runs
from .broker.services import Services
from .broker.starts import Starts
from .database.address import Address
from .errors import (
    ConfigurationError,
    DuplicateJob,
    SectionUnknownError,
)
from .joblog import given_log
from .payload.given import given_flag, given_whole
from .recording.current import asked_outside, running
from .recording.events import Enqueued
from .recording.heartbeat import DEFAULT_HEARTBEAT, DEFAULT_HEARTBEAT_TIMEOUT
from .recording.log_lines import check_level
from .recording.progress import Reports
from .states import State

if TYPE_CHECKING:
    from dramatiq import Actor, Broker, Message
    from dramatiq.broker import MessageProxy

    from .broker.acks import Acks
    from .broker.labels import StartWritten
    from .joblog import JobLog


class JobLogMiddleware(Middleware):
    """A Dramatiq middleware that writes each job's life to a log.

    A job's start is committed before its body runs, and its outcome before its message is
    acknowledged.  Add the middleware before declaring actors that use its options; its position
    in the broker's list does not matter.

    Example:
      >>> broker.add_middleware(JobLogMiddleware(joblog))

    Parameters:
      joblog: The log to write to.
      acks: How acknowledgements are sent after the commit: ``"plain"``, by each worker thread,
        with any broker; ``"handed"``, by a separate thread, many in one round trip, with a
        ``RedisBroker`` only; ``"auto"``, handed if the broker supports it, otherwise plain.
      lines: The lowest level of log lines to keep; False for none.
      heartbeat: Milliseconds between two heartbeats of a worker process.
      heartbeat_timeout: Milliseconds without a heartbeat after which the process is considered
        gone, and its running jobs lost.
      outcome_log: Whether to log the end of each run as well, to the logger
        ``dramatiq_joblog.outcome``, with its columns as attributes of the record.
      start: When to write the start: always ``"before"`` the body; or ``"soon"``, once the run
        has lasted for 50 milliseconds or the job queries the log, and otherwise together with the
        outcome.  For jobs that are exclusive, unique, or have *max_interruptions*, the start is
        always written before the body.

    Raises:
      ConfigurationError: If an option's value is unknown; when a worker boots or an actor is
        declared, if the broker does not support ``acks="handed"``.
    """

    def __init__(
        self,
        joblog: JobLog[Any],
        *,
        acks: Acks = "auto",
        heartbeat: int = DEFAULT_HEARTBEAT,
        heartbeat_timeout: int = DEFAULT_HEARTBEAT_TIMEOUT,
        lines: str | int | bool = "INFO",
        outcome_log: bool = False,
        start: StartWritten = "before",
    ) -> None:
        for name, value, known in (
            ("acks", acks, ACKS),
            ("start", start, STARTS),
        ):
            if value not in known:
                raise ConfigurationError(f"{name}={value!r} is not known; use one of {known}")
        given_log(joblog)
        given_whole("heartbeat", heartbeat)
        given_whole("heartbeat_timeout", heartbeat_timeout)
        if not 0 < heartbeat < heartbeat_timeout:
            raise ConfigurationError(
                f"heartbeat={heartbeat!r} and heartbeat_timeout={heartbeat_timeout!r}: both are "
                "milliseconds, and the timeout must be the longer one"
            )
        self.joblog = joblog
        #: The arguments that it was made with, besides the log.
        self.settings: dict[str, Any] = {
            "acks": acks,
            "heartbeat": heartbeat,
            "heartbeat_timeout": heartbeat_timeout,
            "lines": lines,
            "outcome_log": outcome_log,
            "start": start,
        }
        self.logger = get_logger(__name__, type(self))
        level = check_level(lines, "lines")
        self._reports = Reports(joblog.core.transitions)
        self._messages = Messages(joblog, lines_level=level, start=start)
        self._sender = joblog.core.send_by(Sender(joblog, self._messages.arguments))
        self._runs = Runs(self._messages, joblog.core.worker_process)
        self._ahead = Ahead(joblog, self._messages, self._runs)
        self._services = Services(
            joblog,
            self._reports,
            self._ahead,
            acks=acks,
            heartbeat=heartbeat,
            heartbeat_timeout=heartbeat_timeout,
        )
        self._claims = Claims(joblog)
        self._starts = Starts(
            joblog,
            self._messages,
            self._runs,
            self._services,
            self._reports,
            ahead=self._ahead,
            outcome_log=outcome_log,
        )
        self._ends = Ends(
            joblog,
            self._messages,
            self._runs,
            self._services,
            self._reports,
            ahead=self._ahead,
            outcome_log=given_flag("outcome_log", outcome_log),
        )

    @property
    def actor_options(self) -> set[str]:
        """The options that actors and messages may have."""
        return {*OPTIONS, *self._messages.rows.own_fields}

    @property
    def declared(self) -> frozenset[str]:
        """The names of the actors declared since it was added, whose options were checked."""
        return frozenset(self._messages.declared)

    # Declaring and sending

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Refuse an actor with options that the log cannot use."""
        self._refuse_twins(broker)
        self._services.check_acks(broker)
        self._messages.declare(actor)
        self._claims.watch(broker)
        self._sender.add(broker, self._messages, self._claims.enqueue_of(broker))

    def before_declare_queue(self, broker: Broker, queue_name: str) -> None:
        """Refuse a second middleware of the log, before anything is sent."""
        self._refuse_twins(broker)

    def after_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Refuse a second middleware of the log; Dramatiq calls this when it is added."""
        self._refuse_twins(broker)
        self._sender.add(broker, self._messages, self._claims.enqueue_of(broker))

    def after_declare_queue(self, broker: Broker, queue_name: str) -> None:
        """Refuse a second middleware of the log; Dramatiq calls this when it is added."""
        self._refuse_twins(broker)

    def _refuse_twins(self, broker: Broker) -> None:
        mine = [
            m
            for m in broker.middleware
            if isinstance(m, JobLogMiddleware) and _is_same_log(m.joblog, self.joblog)
        ]
        if len(mine) > 1:
            raise ConfigurationError(
                f"the broker has {len(mine)} JobLogMiddleware of the log {self.joblog.name}: "
                "each would mistake the other's runs for its own; add only one"
            )

    def before_delay_message(self, broker: Broker, message: MessageProxy) -> None:
        """Stamp a delayed message with its delivery, and sanitise its bonds."""
        hold(bare(message))
        self._messages.bonds.fit(broker, message)
        waker = self._services.waker
        if waker is not None and message.options.get(WAITS) is not None:
            waker.expect()

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Refuse unusable options and duplicates; set the message's parent and root."""
        message = bare(message)
        run = self._runs.current(message)
        if run is not None:
            run.note_try()
        plan = self._messages.plan(broker, message)
        if not plan.is_logged:
            return
        if plan.is_bound:
            self._messages.refuse_unlogged(broker, message)
        stamp(message)
        live = running.get()
        is_child = live is not None and live.message_id != message.message_id
        if live is not None and is_child and PARENT not in message.options:
            message.options.update({PARENT: live.message_id, ROOT: live.root_jid})
        if plan.is_bound or plan.row is None:
            is_new = self._messages.bonds.bind(broker, message, plan)
            if UNIQUE in message.options and (is_new or DUPLICATE in message.options):
                self._claims.take(message)

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Record the retry of a running job; log any other message, without waiting."""
        if runs := self._runs.working_on(message):
            for run in runs:
                run.note_copy(message)
            return
        plan = self._messages.plan(broker, message)
        if not plan.is_logged:
            return
        if message.options.get(WAITS) is not None and is_move():
            # Its row stays waiting until its start decides.
            return
        self._runs.note_sent(message)
        row = self._messages.row(broker, message, plan)
        if message.queue_name.endswith(DELAY_SUFFIX):
            row |= {"state": State.DELAYED.value, "eta": eta_of(message)}
        else:
            row["state"] = State.ENQUEUED.value
        self.joblog.core.writer.put(Enqueued(row, unique=message.options.get(UNIQUE)))

    # Running

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Commit the start, or skip a message that may not run now."""
        self._runs.leave()
        if (left := running.get()) is not None:
            self._reports.end(left)
        running.set(None)
        # Another middleware may have failed it already: then nothing runs.
        if getattr(message, "failed", False):
            return
        ahead = self._ahead.take(message)
        if ahead is not None and self._starts.go_on(broker, message, ahead):
            return
        plan = self._messages.plan(broker, bare(message))
        if not plan.is_logged:
            return
        try:
            self._starts.begin(broker, message, plan)
        except MiddlewareError:
            raise
        except Exception as e:
            wanted = option(broker, message, "exclusive")
            if message.options.get(SECTION) is not None or is_given(wanted):
                # Dramatiq would swallow it, and run the job without its section.
                raise SectionUnknownError(str(e)) from e
            raise

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Only record the result: a time limit may still be raised here, and it may run twice."""
        self._ends.note_result(broker, message, exception, self)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Record what dropped the message: this runs while ``SkipMessage`` is being handled."""
        self._ends.note_skip(broker, message, sys.exc_info()[1])

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        """Commit the outcome of a run whose message is about to be acknowledged."""
        # A copy in the delay queue is neither a run nor an end; its consumer acknowledges it.
        if not message.queue_name.endswith(DELAY_SUFFIX):
            self._ends.commit(broker, message, rejected=False)

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        """Commit the end of a job whose message is about to be rejected."""
        self._ends.commit(broker, message, rejected=True)

    # The process

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        """Start the heartbeat, before the first job."""
        self._refuse_twins(broker)
        if sum(isinstance(m, JobLogMiddleware) for m in broker.middleware) > 1:
            # The other log's run hides that of this one, so queries of jobs are not noticed.
            self._ahead.stop()
        self._services.start(broker, worker)

    def after_worker_thread_boot(self, broker: Broker, thread: Any) -> None:
        """Begin to record what is enqueued on this worker thread."""
        self._runs.begin_thread()
        asked_outside.set(self._ahead.stop)

    def after_consumer_thread_boot(self, broker: Broker, thread: Any) -> None:
        """Begin to manage the waiting messages of this consumer."""
        only_moves()
        if (waker := self._services.waker) is not None:
            waker.attach(thread)

    def before_consumer_thread_shutdown(self, broker: Broker, thread: Any) -> None:
        """Leave the consumer's waiting messages to the broker."""
        if (waker := self._services.waker) is not None:
            waker.detach(thread)

    def before_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Write the submitted events."""
        self._services.stop_promoting(worker)
        self.joblog.core.writer.flush()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Write the events submitted since, and stop the heartbeat with the last worker."""
        if not self._services.stop(worker):
            self.logger.warning(
                "Acknowledgements could not be sent before the end. Their messages will be "
                "delivered again, and not run again."
            )


def _is_same_log(one: JobLog, other: JobLog) -> bool:
    """Return whether two logs write to the same tables."""
    if one is other:
        return True
    if one.Job._meta.table_name != other.Job._meta.table_name:
        return False
    return Address.of_peewee(one.database) == Address.of_peewee(other.database)


def enqueue_once(
    broker: Broker, message: Message[Any], *, delay: int | None = None
) -> Message[Any]:
    """Enqueue a unique message, unless another job holds its key.

    Unlike ``actor.send()``, it does not raise :class:`DuplicateJob`.

    Returns:
      The message; or, if another job holds the key, a copy with that job's jid.
    """
    try:
        return broker.enqueue(message, delay=delay)
    except DuplicateJob as e:
        return message.copy(message_id=e.jid)
