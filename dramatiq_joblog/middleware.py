"""JobLogMiddleware: Dramatiq's hooks, read as the life of a job.

The verdict on a run is taken in ``before_ack`` and ``before_nack``: only there is it known
whether a failed job was retried, wherever the middleware stands in the broker's list.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from dramatiq import Broker, group
from dramatiq.logging import get_logger
from dramatiq.middleware import (
    GroupCallbacks,
    Middleware,
    MiddlewareError,
    Retries,
    SkipMessage,
)

from .broker.acks import ACKS, HandedAcks, why_not
from .broker.deliveries import delivery_of, hold, only_moves, stamp
from .broker.labels import STARTS
from .broker.messages import (
    DELAY_SUFFIX,
    DUPLICATE,
    MALFORMED,
    OPTIONS,
    PARENT,
    ROOT,
    SECTION,
    UNIQUE,
    WAITS,
    Messages,
    age_left,
    bare,
    eta_of,
    is_given,
    is_logged,
    now,
    option,
    throws,
)
from .broker.outcome_log import tell
from .broker.promotion import Waker
from .broker.requeue import GROUP, Sender
from .broker.verdict import OpenRuns, Run, verdict
from .broker.worker_process import Place, Workers
from .errors import (
    ConfigurationError,
    DatabaseAwayError,
    DuplicateJob,
    JobLogError,
    OutcomeNotKeptError,
    SectionTakenError,
    SectionUnknownError,
)
from .locking.locks import UNIQUE as UNIQUE_KIND
from .locking.locks import Claim
from .payload.sanitize import fold_jid, text_of
from .recording.current import LiveRun, running
from .recording.heartbeat import DEFAULT_HEARTBEAT, DEFAULT_HEARTBEAT_TIMEOUT, here
from .recording.log_handler import capture
from .recording.log_lines import check_level
from .recording.newest import SENDING, keeps_newest
from .recording.progress import Reports
from .recording.transitions import Event, new_token
from .recording.writer import AWAY_DELAY
from .states import State

if TYPE_CHECKING:
    from dramatiq import Actor, Message
    from dramatiq.broker import MessageProxy

    from .broker.acks import Acks
    from .broker.labels import StartWritten
    from .broker.messages import AnyMessage
    from .broker.plan import Plan
    from .broker.sending import Enqueue
    from .joblog import JobLog
    from .locking.admission import Refusal

#: Milliseconds until a job comes back whose section was lost before it began.
_AT_ONCE = 250
#: Milliseconds that a uniqueness is held for a message that is on its way to the broker.
_ON_ITS_WAY = 60_000


#: What a run says of its job, before it has.
_OF_A_RUN: dict[str, Any] = dict.fromkeys(
    (
        "dead_reason",
        "duration",
        "error_message",
        "error_type",
        "eta",
        "finished_at",
        "queue_time",
        "skip_reason",
        "started_at",
        "state",
    )
)


class _Claimed(NamedTuple):
    """A key that was taken for a message which is being sent."""

    claim: Claim
    #: Milliseconds that it is for, once the message is sent.
    ttl: int
    #: The job that it was taken from, as this one is newer.
    former: str | None


class JobLogMiddleware(Middleware):
    """Writes each job's life to a log.

    A job's start is committed before its body runs, and its outcome before its message is
    acknowledged.  Its place in the broker's list does not matter; it must be added before
    the actors that use its options are declared.

    Example:
      >>> broker.add_middleware(JobLogMiddleware(joblog))

    Parameters:
      joblog: The log to write to.
      acks: How acknowledgements wait for the commit: ``"plain"``, on the worker's thread, as
        any broker can; ``"handed"``, on a thread of ours, many in one round trip, as only a
        ``RedisBroker`` can; ``"auto"``, handed if the broker can, and plain if not.
      lines: From which level on the lines that jobs log are kept; False for none.
      heartbeat: Milliseconds between two signs of life of a worker process.
      heartbeat_timeout: Milliseconds without one after which the process is taken to be gone,
        and the jobs it ran to be lost.
      outcome_log: Whether each run that ends is logged as well, by the logger
        ``dramatiq_joblog.outcome``, with its columns as fields of the record.
      start: When the start is written: ``"before"`` the body, always; or ``"soon"``, once the
        run has lasted for 50 milliseconds or the job asks the log anything, and otherwise only
        with the outcome.  A job that is exclusive or unique, or has *max_interruptions*, has
        its start written before in any case.

    Raises:
      ConfigurationError: If an option has no known value; when a worker boots or an actor is
        declared, if ``"handed"`` was asked of a broker that cannot.
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
        if not 0 < heartbeat < heartbeat_timeout:
            raise ConfigurationError(
                f"heartbeat={heartbeat!r} and heartbeat_timeout={heartbeat_timeout!r}: both are "
                "milliseconds, and the timeout must be the longer one"
            )
        self.joblog = joblog
        self.logger = get_logger(__name__, type(self))
        self._how_to_ack = acks
        self._acks: HandedAcks | None = None
        self._heartbeat_interval = heartbeat
        self._heartbeat_timeout = heartbeat_timeout
        self._workers = Workers()
        self._outcome_log = outcome_log
        self._start = start
        self._lines_level = check_level(lines, "lines")
        self._reports = Reports(joblog.transitions)
        self._waker: Waker | None = None
        self._messages = Messages(joblog, lines_level=self._lines_level, start=start)
        self._sender = joblog.send_by(Sender(joblog, self._messages.arguments))
        self._local = threading.local()
        self._open = OpenRuns()
        #: What stands around the ``enqueue`` of brokers whose sends are watched.
        self._watched: weakref.WeakKeyDictionary[Broker, Enqueue] = weakref.WeakKeyDictionary()

    @property
    def actor_options(self) -> set[str]:
        """The options that actors and messages may carry."""
        return {*OPTIONS, *self._messages.own_fields}

    @property
    def declared(self) -> frozenset[str]:
        """Names of the actors whose options were checked: those declared since it was added."""
        return frozenset(self._messages.declared)

    # Declaring and sending

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Refuse what the log could not use."""
        self._refuse_twins(broker)
        if self._acks is None:
            self._check_acks(broker)
        self._messages.declare(actor)
        self._watch_sends(broker)
        self._sender.add(broker, self._messages, self._watched.get(broker))

    def before_declare_queue(self, broker: Broker, queue_name: str) -> None:
        """Refuse a second middleware of the log, before anything is sent."""
        self._refuse_twins(broker)

    def after_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Refuse a second middleware of the log as it is added: the host calls this then."""
        self._refuse_twins(broker)
        self._sender.add(broker, self._messages, self._watched.get(broker))

    def after_declare_queue(self, broker: Broker, queue_name: str) -> None:
        """Refuse a second middleware of the log, as it is added: the host calls this then."""
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
                "each would take the other's runs for its own; add one"
            )

    def before_delay_message(self, broker: Broker, message: MessageProxy) -> None:
        """Let a message that is held back keep its delivery's name, and be of use to who looks."""
        hold(bare(message))
        self._messages.fit(broker, message)

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Refuse what the log could not use and duplicates; let a message know its family."""
        message = bare(message)
        run = self._current(message)
        if run is not None:
            run.tried = True
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
            is_new = self._messages.bind(broker, message)
            if UNIQUE in message.options and (is_new or DUPLICATE in message.options):
                self._claim(message)

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Note that a job at work here goes on; log any other message, without waiting."""
        if runs := self._working_on(message):
            for run in runs:
                run.requeued = message
            return
        plan = self._messages.plan(broker, message)
        if not plan.is_logged:
            return
        sent = getattr(self._local, "sent", None)
        if sent is not None:
            # Perhaps the retry of a message that was refused before the log knew of its run.
            sent[message.message_id] = message
        row = self._messages.row(broker, message, plan)
        if message.queue_name.endswith(DELAY_SUFFIX):
            row |= {"state": State.DELAYED.value, "eta": eta_of(message)}
        else:
            row["state"] = State.ENQUEUED.value
        self.joblog.writer.put(Event("enqueue", row, unique=message.options.get(UNIQUE)))

    def _claim(self, message: Message[Any]) -> None:
        """Take the key that a message is unique by, before it is sent."""
        unique = message.options[UNIQUE]
        self.joblog.refuse_behind_transaction(unique["key"])
        # A group is run again, or its member's delay is over.
        was_duplicate = message.options.pop(DUPLICATE, None) is not None
        is_newest = keeps_newest(unique)
        for_good = unique["until"] is None and not is_newest
        ttl = unique["ttl"] if for_good else min(unique["ttl"], _ON_ITS_WAY)
        owner, former = fold_jid(message.message_id), None
        process = SENDING if is_newest else None
        claim = Claim(UNIQUE_KIND, unique["key"], owner, None, ttl, process=process)
        try:
            holder = self.joblog.claim(claim)
            if holder is not None and is_newest and self.joblog.take_place(claim, holder.owner):
                former, holder = holder.owner, None
        except Exception as e:
            # Dramatiq would swallow it, and send what may be a duplicate.
            raise SectionUnknownError(f"key {unique['key']!r} may not be unique: {e}") from e
        if holder is None:
            self._local.claimed = _Claimed(claim, unique["ttl"], former)
        elif was_duplicate or _is_sent_with_others():
            # An error would be swallowed, or keep the rest of a group from being sent: its row
            # says it instead.
            message.options[DUPLICATE] = f"the key {unique['key']!r} is held by job {holder.owner}"
        else:
            raise DuplicateJob(unique["key"], holder.owner)

    def _watch_sends(self, broker: Broker) -> None:
        """Free the key of a message that could not be sent: no hook tells of that."""
        if broker in self._watched:
            return
        enqueue = broker.enqueue

        @functools.wraps(enqueue)
        def watched(message: Message[Any], *, delay: int | None = None) -> Message[Any]:
            # A hook may send another message while this one is on its way.
            outer = getattr(self._local, "claimed", None)
            self._local.claimed = None
            try:
                sent = enqueue(message, delay=delay)
                self._confirm(self._local.claimed)
            except BaseException:
                self._give_back(self._local.claimed)
                raise
            else:
                return sent
            finally:
                self._local.claimed = outer

        self._watched[broker] = watched
        broker.enqueue = watched  # type: ignore[method-assign]

    def _confirm(self, claimed: _Claimed | None) -> None:
        """Give the key of a message its whole time: the broker has it, whatever becomes of us."""
        if claimed is None:
            return
        claim, former = claimed.claim, claimed.former
        locks, newest = self.joblog.transitions.locks, self.joblog.newest

        def confirm() -> None:
            locks.confirm(claim.key, claim.owner, claimed.ttl)
            if former is not None:
                newest.give_way(claim.key, claim.owner, former)

        try:
            if claim.ttl < claimed.ttl or claim.process is not None:
                self.joblog.writer.call(confirm)
        except JobLogError as e:
            # It is confirmed with its row, and by its start; the message is sent already.
            self.logger.warning("Key %r is held for %d ms at first: %s", claim.key, claim.ttl, e)

    def _give_back(self, claimed: _Claimed | None) -> None:
        if claimed is None:
            return
        claim, former = claimed.claim, claimed.former
        locks, newest = self.joblog.transitions.locks, self.joblog.newest

        def give_back() -> None:
            if former is None:
                locks.release(claim.kind, claim.key, claim.owner, None)
            else:
                newest.give_back(claim.key, claim.owner, former, claimed.ttl)

        try:
            self.joblog.writer.call(give_back)
        except DatabaseAwayError as e:
            self.logger.warning("Key %r stays held for %d ms: %s", claim.key, claim.ttl, e)

    # Running

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Commit the start, or skip a message that may not run now."""
        self._leave()
        if (left := running.get()) is not None:
            self._reports.end(left)
        running.set(None)
        # Another middleware may have failed it already: then nothing will run.
        if getattr(message, "failed", False):
            return
        plan = self._messages.plan(broker, bare(message))
        if not plan.is_logged:
            return
        try:
            self._begin(broker, message, plan)
        except MiddlewareError:
            raise
        except Exception as e:
            wanted = option(broker, message, "exclusive")
            if message.options.get(SECTION) is not None or is_given(wanted):
                # Dramatiq would swallow it, and run the job without its section.
                raise SectionUnknownError(str(e)) from e
            raise

    def _begin(self, broker: Broker, message: MessageProxy, plan: Plan) -> None:
        inner = bare(message)
        options = inner.options
        age = None
        if plan.row is None or plan.is_bound:
            if DUPLICATE in options:
                # Another producer may have written anything there.
                self._messages.fit(broker, message)
            if options.get(DUPLICATE) is not None:
                _count_as_done(broker, message)
                raise SkipMessage(text_of(options[DUPLICATE]))
            options.pop(WAITS, None)
            # Whoever sent it may not know of sections.
            self._messages.bind(broker, message, begins=True)
            if MALFORMED in options:
                self._reject(broker, message, ConfigurationError(text_of(options[MALFORMED])))
            age = age_left(broker, message) if SECTION in options else None
            if age is not None and age <= 0:
                # AgeLimit comes after us and drops it: it must not be put back before that.
                return
        run = self._local.run = self._new_run(broker, message, plan)
        instant = now()
        row = run.row
        row["state"] = State.STARTED.value
        row["started_at"] = instant
        row["queue_time"] = _passed(row["enqueued_at"], instant)
        start = Event(
            "start",
            row.copy(),
            max_interruptions=plan.max_interruptions,
            redelivered=bool(getattr(message, "redelivered", False)),
            rerun=plan.rerun,
            section=options.get(SECTION),
            comes_back_within=age,
            unique=options.get(UNIQUE),
        )
        unguarded = start.section is None and start.unique is None
        if plan.starts_soon and unguarded and not start.redelivered:
            run.start = start
            self.joblog.writer.put_soon(start)
        elif not self._is_let_in(start):
            self._refuse(broker, message, run, start)
        elif start.lease is not None and start.lease.lost:
            # The commit, or the news of it, took longer than the lease: another may be inside.
            self._put_back(broker, message, _AT_ONCE)
            raise SkipMessage("it comes back: its section was lost before it began")
        self._open.add(run)
        if plan.lines_level is not None:
            # A job before this one may have set up logging anew.
            capture.attach()
        live = LiveRun(
            run.message_id,
            inner.actor_name,
            row.get("root_jid") or run.message_id,
            row,
            run.redactor,
            lease=start.lease,
            lines_level=plan.lines_level,
            start=run.start,
        )
        self._reports.begin(live)
        running.set(live)
        run.began = time.monotonic()

    def _is_let_in(self, start: Event) -> bool:
        """Commit a start, and return whether its run may go on."""
        if self._waker is not None:
            for need in start.needs:
                if need.is_asked:
                    self._waker.heard(need)
        return self.joblog.writer.write(start)

    def _reject(self, broker: Broker, message: MessageProxy, error: Exception) -> None:
        """Let a job be dead whose message could not be run rightly at any time."""
        run = self._local.run = self._new_run(broker, message)
        run.exception = error
        message.fail()
        raise SkipMessage(str(error))

    def _refuse(self, broker: Broker, message: MessageProxy, run: Run, start: Event) -> None:
        """Skip, reject, put back or fail a message that may not run now."""
        refusal = start.refusal
        taken = None if refusal is None else str(refusal)
        if refusal is not None and start.found is None:
            # The run fails like any other.
            raise SectionTakenError(refusal.need.key, refusal.why)
        run.refused = True
        delay = start.delay
        if delay is None and start.is_begin and start.found is None:
            # Nobody knows whether its section is free: it never runs unguarded.
            delay = AWAY_DELAY
        if delay is not None:
            self._put_back(broker, message, delay, refusal)
            raise SkipMessage(taken or "it comes back: its section is not free for certain")
        if start.gave_way:
            # As of any other duplicate: the newer one does its work.
            _count_as_done(broker, message)
        if taken is None:
            self.logger.info(
                "Job %s is %s already: this copy of its message is not run.",
                message.message_id,
                start.found,
            )
            _keep_its_result(message)
        if start.found == State.DEAD:
            # If its rejection was lost with its worker, to the dead letters with it.
            message.fail()
        if self._outcome_log and taken:
            row = {**start.row, "state": start.found, "skip_reason": taken}
            tell(row, self._messages.user_column)
        raise SkipMessage(taken or f"the job log knows this job as {start.found} already")

    def _put_back(
        self, broker: Broker, message: MessageProxy, delay: int, refusal: Refusal | None = None
    ) -> None:
        """Enqueue a copy; it must be in the broker before this one is acknowledged."""
        waits = True if refusal is None else refusal.need.key
        while True:
            try:
                broker.enqueue(message.copy(options={WAITS: waits}), delay=delay)
            except MiddlewareError:
                raise
            except Exception as e:  # noqa: BLE001
                # Brokers raise the errors of their clients' as well as the host's own.
                self.logger.warning("A waiting job cannot be put back yet: %s", e)
                time.sleep(1.0)
            else:
                break
        if self._waker is not None:
            self._waker.filled(f"{message.queue_name}{DELAY_SUFFIX}")
        _keep_its_result(message)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Only note what happened: a time limit may still strike here, and it may come twice."""
        run = self._of_delivery(message)
        if run is None:
            # A middleware before this one failed the message, so no start was written.
            if exception is None or not is_logged(broker, message):
                return
            run = self._late_run(broker, message)
            run.row["attempt"] -= self._counted(broker, message, exception)
        run.note_end(exception)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Note who dropped the message: this runs while ``SkipMessage`` is being handled."""
        run = self._of_delivery(message)
        if run is None:
            if not is_logged(broker, message):
                return
            run = self._late_run(broker, message)
        run.note_skip(sys.exc_info()[1])

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        """Commit the outcome of a run whose message is about to be acknowledged."""
        # The delay queue's copy is no run and no end; it is acknowledged on another thread.
        if not message.queue_name.endswith(DELAY_SUFFIX):
            self._end(broker, message, rejected=False)
            self._forget_sent()

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        """Commit the end of a job whose message is about to be rejected."""
        self._end(broker, message, rejected=True)
        self._forget_sent()

    def _end(self, broker: Broker, message: MessageProxy, *, rejected: bool) -> None:
        run = self._of_delivery(message)
        if run is None:
            if not rejected or not is_logged(broker, message):
                return
            run = self._late_run(broker, message)
        if run.ended or run.refused:
            return
        live = running.get()
        event = verdict(broker, message, run, live, rejected=rejected)
        run.ended = True
        self._open.remove(run)
        if run.start is not None:
            run.start.drop()
            event.start = run.start
        if live is not None:
            self._reports.end(live)
        running.set(None)
        self.joblog.release()
        if self._acks is not None and self._acks.takes(broker, message):
            # Its acknowledgement sees to it that it is written.
            self._acks.after(self.joblog.writer.ride(event), message)
        else:
            try:
                self.joblog.writer.write(event)
            except JobLogError as e:
                # Dramatiq would swallow any other error, and acknowledge.
                raise OutcomeNotKeptError(f"the outcome of job {event.jid} is not kept: {e}") from e
        if self._outcome_log:
            tell(event.row, self._messages.user_column)
        # An error holds on to all that its frames hold on to.
        run.exception = run.skipped_error = None

    # The process

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        """Begin to give signs of life, before the first job."""
        self._refuse_twins(broker)
        if self._acks is None:
            self._check_acks(broker)
            if self._how_to_ack != "plain" and why_not(broker) is None:
                self._acks = HandedAcks(broker, self.joblog.writer.wake)
        queues = worker.consumer_whitelist or broker.get_declared_queues()
        self.joblog.worker_process.enter(
            worker,
            worker.worker_threads,
            queues,
            interval=self._heartbeat_interval,
            timeout=self._heartbeat_timeout,
        )
        if self._workers.add(worker, Place(worker.worker_threads, frozenset(queues))):
            self.joblog.writer.every(self._heartbeat_interval, self._reports.write)
            capture.enter()
            self._waker = Waker(self.joblog, broker)
            self._waker.start()
            self.joblog.worker_process.on_freed(self._waker.look)

    def after_worker_thread_boot(self, broker: Broker, thread: Any) -> None:
        """Note what is enqueued on a worker's thread; this is it."""
        self._local.sent = {}

    def after_consumer_thread_boot(self, broker: Broker, thread: Any) -> None:
        """Look after what waits in a consumer; this is its thread."""
        only_moves()
        if self._waker is not None:
            self._waker.attach(thread)

    def before_consumer_thread_shutdown(self, broker: Broker, thread: Any) -> None:
        """Leave what waits there to the broker."""
        if self._waker is not None:
            self._waker.detach(thread)

    def before_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Write what was handed over."""
        if self._waker is not None and self._workers.are_only(worker):
            self.joblog.worker_process.off_freed(self._waker.look)
            self._waker.stop()
            self._waker = None
        self.joblog.writer.flush()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Write what was handed over since, and end the heartbeat with the last worker."""
        if self._workers.remove(worker):
            self.joblog.writer.end_chore(self._reports.write, self._reports.write)
            capture.leave()
        self.joblog.worker_process.leave(worker)
        self.joblog.writer.flush()
        if self._acks is not None and not self._acks.flush():
            self.logger.warning(
                "Acknowledgements could not be sent before the end. Their jobs will be delivered "
                "again, and not run again."
            )

    def _check_acks(self, broker: Broker) -> None:
        reason = why_not(broker) if self._how_to_ack == "handed" else None
        if reason is not None:
            raise ConfigurationError(
                f"acks='handed' is not possible with this broker: {reason}; use acks='auto'"
            )

    # What this thread works on

    def _current(self, message: AnyMessage) -> Run | None:
        run: Run | None = getattr(self._local, "run", None)
        return run if run is not None and run.message_id == message.message_id else None

    def _of_delivery(self, message: AnyMessage) -> Run | None:
        """Return the run of this very delivery: an earlier one of the message may be left here."""
        run = self._current(message)
        return run if run is not None and run.given is message else None

    def _working_on(self, message: AnyMessage) -> list[Run]:
        """Return the runs here, on any thread, whose job goes on with what was enqueued now."""
        runs = self._open.of(message.message_id)
        mine = self._current(message)
        if mine is not None and not mine.ended and mine not in runs:
            runs.append(mine)
        if not runs:
            return runs
        # A message that was moved twice is no other than the one at work.
        name = delivery_of(message).name
        return [run for run in runs if name is None or run.delivery.name != name]

    def _leave(self) -> None:
        """Forget the run before, should its end not have come."""
        run: Run | None = getattr(self._local, "run", None)
        if run is not None and not run.ended:
            self._open.remove(run)
        self._local.run = None
        self._forget_sent()

    def _forget_sent(self) -> None:
        sent = getattr(self._local, "sent", None)
        if sent:
            sent.clear()

    def _late_run(self, broker: Broker, message: AnyMessage) -> Run:
        """Return a run whose message was dropped or failed before the log knew of it."""
        run = self._local.run = self._new_run(broker, message)
        run.requeued = (getattr(self._local, "sent", None) or {}).get(message.message_id)
        return run

    def _new_run(self, broker: Broker, message: AnyMessage, plan: Plan | None = None) -> Run:
        inner = bare(message)
        # All rows of runs have the same columns, whose values are then taken together.
        row = _OF_A_RUN | self._messages.row(broker, inner, plan)
        delivery = delivery_of(inner)
        row["token"] = new_token(delivery.name, stamped=delivery.stamped)
        row["worker"] = here()
        row["process"] = self.joblog.worker_process.name
        redactor = self._messages.arguments.redactor(broker, inner, row)
        noted = inner.options.get("traceback")
        return Run(inner.message_id, row, redactor, message, delivery, noted)

    def _counted(self, broker: Broker, message: AnyMessage, error: BaseException) -> int:
        """Return 1 if ``Retries`` has already counted this failure, 0 if it comes after us."""
        order = list(broker.middleware)
        counts = next((i for i, m in enumerate(order) if isinstance(m, Retries)), -1)
        after = order.index(self) < counts
        return int(after and not throws(broker, message, error))


def _passed(since: int | None, instant: int) -> int | None:
    """Return the milliseconds that have passed, by two hosts' clocks; None if not known."""
    return None if since is None else max(0, instant - since)


def _is_sent_with_others() -> bool:
    """Tell whether a group is being sent, or a hook is at work in which errors are swallowed."""
    codes = Broker.emit_after.__code__, group.run.__code__
    frame = inspect.currentframe()
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    return frame is not None


def _is_same_log(one: JobLog, other: JobLog) -> bool:
    """Return whether two logs write to the same tables."""
    if one is other:
        return True
    return one.name == other.name and one.Job._meta.table_name == other.Job._meta.table_name


def _count_as_done(broker: Broker, message: MessageProxy) -> None:
    """Count a duplicate as done where its group counts its members: another does its work.

    Raises:
      SectionUnknownError: It could not be counted, and is retried.
    """
    last = message.options
    while (target := last.get("pipe_target")) is not None:
        # Of a pipeline nothing follows; the group counts by the last of it.
        last = target["options"]
    member = message.copy(options={name: last.get(name) for name in GROUP})
    for middleware in broker.middleware:
        if isinstance(middleware, GroupCallbacks):
            try:
                middleware.after_process_message(broker, member)
            except Exception as e:
                raise SectionUnknownError(f"a duplicate is not counted in its group: {e}") from e


def _keep_its_result(message: MessageProxy) -> None:
    """Let ``Results`` store nothing for a copy that is dropped: the job's result is another's."""
    message.options["store_results"] = False


def enqueue_once(
    broker: Broker, message: Message[Any], *, delay: int | None = None
) -> Message[Any]:
    """Enqueue a message that is unique, or return the one that is there already.

    The quiet way to send: ``actor.send()`` raises :class:`DuplicateJob` instead.

    Returns:
      The message; with the jid of the job that holds the key, if there is one.
    """
    try:
        return broker.enqueue(message, delay=delay)
    except DuplicateJob as e:
        return message.copy(message_id=e.jid)
