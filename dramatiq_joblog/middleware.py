"""JobLogMiddleware: Dramatiq's hooks, read as the life of a job.

The verdict on a run is taken in ``before_ack`` and ``before_nack``: only there is it known
whether a failed job was retried, wherever the middleware stands in the broker's list.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq import Broker
from dramatiq.errors import ActorNotFound
from dramatiq.logging import get_logger
from dramatiq.middleware import AgeLimit, Middleware, Retries, SkipMessage

from .current import CurrentJob, running
from .errors import ConfigurationError
from .query import user_field
from .states import DeadReason, Outcome, State
from .text import (
    MAX_MESSAGE,
    MAX_TRACEBACK,
    clean,
    clean_optional,
    document,
    fold_jid,
)
from .transitions import Event, default_of, new_token
from .workers import DEFAULT_HEARTBEAT, DEFAULT_HEARTBEAT_TIMEOUT, HOST, Heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable

    from dramatiq import Actor, Message
    from dramatiq.broker import MessageProxy

    from .joblog import JobLog

    AnyMessage = Message[Any] | MessageProxy

_DELAY_SUFFIX = ".DQ"
_PARENT = "joblog_parent"
_ROOT = "joblog_root"


@dataclass
class _Run:
    """What this thread knows of the message it works on."""

    message_id: str
    attempt: int
    token: str
    row: dict[str, Any]
    rerun: bool
    #: Monotonic, in seconds; None while the body has not begun.
    began: float | None = None
    duration: int | None = None
    exception: BaseException | None = None
    #: Who dropped the message, if anyone did.
    skipped_by: str | None = None
    skipped_in_actor: bool = False
    skipped_error: BaseException | None = None
    #: The copy of the message that was enqueued while it was worked on.
    requeued: Any = None
    refused: bool = False
    ended: bool = False


class JobLogMiddleware(Middleware):
    """Writes each job's life to a log.

    A job's start is committed before its body runs, and its outcome before its message is
    acknowledged.  Its place in the broker's list does not matter; it must be added before
    the actors that use its options are declared.

    Example:
      >>> broker.add_middleware(JobLogMiddleware(joblog))

    Parameters:
      joblog: The log to write to.
      acks: How acknowledgements wait for the commit: ``"plain"``, on the worker's thread, or
        ``"auto"``, the best way that the broker allows; for now these are the same.
      heartbeat: Milliseconds between two signs of life of a worker process.
      heartbeat_timeout: Milliseconds without one after which the process is taken to be gone,
        and the jobs it ran to be lost.
      start: When the start is written: ``"before"``, always and before the body.

    Raises:
      ConfigurationError: If an option has no known value.
    """

    def __init__(
        self,
        joblog: JobLog,
        *,
        acks: str = "auto",
        heartbeat: int = DEFAULT_HEARTBEAT,
        heartbeat_timeout: int = DEFAULT_HEARTBEAT_TIMEOUT,
        start: str = "before",
    ) -> None:
        for name, value, known in (
            ("acks", acks, ("auto", "plain")),
            ("start", start, ("before",)),
        ):
            if value not in known:
                raise ConfigurationError(f"{name}={value!r} is not known; use one of {known}")
        if not 0 < heartbeat < heartbeat_timeout:
            raise ConfigurationError(
                f"heartbeat={heartbeat!r} and heartbeat_timeout={heartbeat_timeout!r}: both are "
                "milliseconds, and the timeout must be the longer one"
            )
        self.joblog = joblog
        self._heartbeat_interval = heartbeat
        self._heartbeat_timeout = heartbeat_timeout
        self._heartbeat: Heartbeat | None = None
        self.logger = get_logger(__name__, type(self))
        self._local = threading.local()
        self._user_column: str = user_field(joblog.Job).column_name
        self._own = {name: f for name, f in joblog.own_fields.items() if name != "user"}
        self._readers: dict[str, Callable[[Any], Any]] = {}

    @property
    def actor_options(self) -> set[str]:
        """The options that actors and messages may carry."""
        return {"job_type", "job_user", "log_job", "max_interruptions", "rerun", *self._own}

    # Declaring and sending

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Refuse what the log could not use."""
        where = f"actor {actor.actor_name!r}"
        self.joblog.check_job_type(actor.options.get("job_type"), where)
        job_user = actor.options.get("job_user")
        if job_user is not None:
            self._readers[actor.actor_name] = _user_reader(job_user, actor.fn, where)

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Refuse an unknown job type, and let a message know its family."""
        if "job_type" in message.options:
            where = f"message {message.message_id!r} of actor {message.actor_name!r}"
            self.joblog.check_job_type(message.options["job_type"], where)
        job = running.get()
        if job is not None and job.jid != message.message_id and _PARENT not in message.options:
            message.options.update({_PARENT: job.jid, _ROOT: job.root_jid})

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Note a retry of the job at work here; log any other message, without waiting."""
        run = self._current(message)
        if run is not None and not run.ended:
            run.requeued = message
            return
        if not self._logged(broker, message):
            return
        row = self._row(broker, message)
        if message.queue_name.endswith(_DELAY_SUFFIX):
            row |= {"state": State.DELAYED.value, "eta": message.options.get("eta")}
        else:
            row["state"] = State.ENQUEUED.value
        self.joblog.writer.put(Event("enqueue", row))

    # Running

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Commit the start, or skip a message whose job has already ended."""
        self._local.run = None
        running.set(None)
        # Another middleware may have failed it already: then nothing will run.
        if getattr(message, "failed", False) or not self._logged(broker, message):
            return
        run = self._local.run = self._new_run(broker, message)
        now = _now()
        run.row |= {
            "state": State.STARTED.value,
            "started_at": now,
            "queue_time": max(0, now - run.row["enqueued_at"]),
        }
        start = Event(
            "start",
            dict(run.row),
            max_interruptions=self._option(broker, message, "max_interruptions"),
            redelivered=bool(getattr(message, "redelivered", False)),
            rerun=run.rerun,
        )
        if not self.joblog.writer.write(start):
            run.refused = True
            self.logger.info(
                "Job %s is %s already: this copy of its message is not run.",
                message.message_id,
                start.found,
            )
            if start.found == State.DEAD:
                # Its rejection was lost with its worker: to the dead letters with it.
                message.fail()
            raise SkipMessage(f"the job log knows this job as {start.found} already")
        root = message.options.get(_ROOT) or message.message_id
        running.set(CurrentJob(message.message_id, run.attempt, root))
        run.began = time.monotonic()

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Only note what happened: a time limit may still strike here, and it may come twice."""
        run = self._current(message)
        if run is None:
            # A middleware before this one failed the message, so no start was written.
            if exception is None or not self._logged(broker, message):
                return
            run = self._local.run = self._new_run(broker, message)
            run.row["attempt"] = run.attempt = run.attempt - self._counted(
                broker, message, exception
            )
        run.exception = exception
        run.duration = _elapsed(run)
        if exception is not None and _raised_before_body(exception):
            run.began = run.duration = None

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Note who dropped the message: this runs while ``SkipMessage`` is being handled."""
        run = self._current(message)
        if run is None:
            if not self._logged(broker, message):
                return
            run = self._local.run = self._new_run(broker, message)
        run.duration = _elapsed(run)
        run.skipped_error = error = sys.exc_info()[1]
        run.skipped_in_actor = error is None or not _raised_before_body(error)
        run.skipped_by = _skipper(error)

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        """Commit the outcome of a run whose message is about to be acknowledged."""
        self._end(broker, message, rejected=False)

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        """Commit the end of a job whose message is about to be rejected."""
        self._end(broker, message, rejected=True)

    # The process

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        """Begin to give signs of life, before the first job."""
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(
                self.joblog.Job, self.joblog.Worker, timeout=self._heartbeat_timeout
            )
            self.joblog.writer.every(self._heartbeat_interval, self._heartbeat.beat)
        self._heartbeat.threads += worker.worker_threads
        self._heartbeat.queues |= worker.consumer_whitelist or broker.get_declared_queues()

    def before_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Write what was handed over."""
        self.joblog.writer.flush()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Write what was handed over since, and say that this process has ended its work."""
        if self._heartbeat is not None:
            self.joblog.writer.end_chore(self._heartbeat.beat, self._heartbeat.end)
            self._heartbeat = None
        self.joblog.writer.flush()

    def _end(self, broker: Broker, message: AnyMessage, *, rejected: bool) -> None:
        # The delay queue's copy is no run and no end; it is acknowledged on another thread.
        if message.queue_name.endswith(_DELAY_SUFFIX) and not rejected:
            return
        run = self._current(message)
        if run is None:
            if not rejected or not self._logged(broker, message):
                return
            run = self._local.run = self._new_run(broker, message)
        if run.ended or run.refused:
            return
        event = self._verdict(broker, message, run, rejected=rejected)
        run.ended = True
        running.set(None)
        self.joblog.release()
        self.joblog.writer.write(event)
        run.exception = run.skipped_error = None

    def _verdict(self, broker: Broker, message: AnyMessage, run: _Run, *, rejected: bool) -> Event:
        """Tell how the run ended, from what its hooks noted and from what becomes of it."""
        now = _now()
        row = run.row | {"updated_at": now, "duration": run.duration, "eta": None}
        outcome: Outcome | None = None
        error = run.exception
        if rejected:
            reason = self._dead_reason(broker, message, run)
            row |= {"state": State.DEAD.value, "dead_reason": reason.value, "finished_at": now}
            outcome = Outcome.DEAD
            if error is None and reason is DeadReason.UNKNOWN_ACTOR:
                error = getattr(message, "_exception", None)
        elif run.requeued is not None and (error is not None or run.skipped_by is not None):
            delayed = run.requeued.queue_name.endswith(_DELAY_SUFFIX)
            row["eta"] = run.requeued.options.get("eta") if delayed else now
            if error is not None and _attempt(run.requeued) > run.attempt:
                row["state"] = State.RETRYING.value
            else:
                # Put back as it was: its next run is of the same attempt.
                row["state"] = (State.DELAYED if delayed else State.ENQUEUED).value
            outcome = Outcome.RETRIED if error is not None else Outcome.SKIPPED
        elif run.skipped_by is not None:
            row |= {
                "state": State.SKIPPED.value,
                "skip_reason": clean(run.skipped_by, MAX_MESSAGE),
                "finished_at": now,
            }
            outcome = Outcome.SKIPPED
        elif error is not None:
            # Acknowledged after an error, and no retry was seen: the job is gone.
            row |= {
                "state": State.DEAD.value,
                "dead_reason": DeadReason.NOT_RETRIED.value,
                "finished_at": now,
            }
            outcome = Outcome.DEAD
        else:
            row |= {"state": State.FINISHED.value, "finished_at": now}
        if error is not None:
            row |= {
                "error_type": clean_optional(type(error).__name__),
                "error_message": clean(_message_of(error), MAX_MESSAGE),
            }
        job = running.get()
        if job is not None and job.jid == message.message_id and job.meta:
            row["meta"], note = document(job.meta)
            row["note"] = row.get("note") or note
        if run.began is None or (run.skipped_by is not None and not run.skipped_in_actor):
            # The body never ran, whatever was written when another middleware still might let it.
            row |= {"started_at": None, "duration": None, "queue_time": None}
        failed = run.exception or (run.skipped_error if run.skipped_in_actor else None)
        failure = None if outcome is None or failed is None else _failure(row, outcome, failed)
        return Event("end", row, failure)

    def _dead_reason(self, broker: Broker, message: AnyMessage, run: _Run) -> DeadReason:
        if run.skipped_by is not None and run.skipped_by.startswith(AgeLimit.__name__):
            return DeadReason.AGE_LIMIT
        error = run.exception
        if error is None:
            unknown = message.actor_name not in broker.actors
            return DeadReason.UNKNOWN_ACTOR if unknown else DeadReason.NOT_RETRIED
        if isinstance(error, ActorNotFound) and message.actor_name not in broker.actors:
            return DeadReason.UNKNOWN_ACTOR
        throws = self._option(broker, message, "throws")
        if throws and isinstance(error, throws):
            return DeadReason.THROWS
        return DeadReason.RETRIES_EXHAUSTED if run.attempt > 1 else DeadReason.NOT_RETRIED

    def _counted(self, broker: Broker, message: AnyMessage, error: BaseException) -> int:
        """Return 1 if ``Retries`` has already counted this failure, 0 if it comes after us."""
        order = [type(m) for m in broker.middleware]
        after = Retries in order and order.index(type(self)) < order.index(Retries)
        throws = self._option(broker, message, "throws")
        return int(after and not (throws and isinstance(error, throws)))

    # What is known of a message

    def _current(self, message: AnyMessage) -> _Run | None:
        run: _Run | None = getattr(self._local, "run", None)
        return run if run is not None and run.message_id == message.message_id else None

    def _new_run(self, broker: Broker, message: AnyMessage) -> _Run:
        row = self._row(broker, message)
        # Redis keeps this id through redeliveries, and makes a new one for each enqueue.
        token = row["token"] = new_token(message.options.get("redis_message_id"))
        row["worker"] = clean_optional(f"{HOST}:{os.getpid()}:{threading.get_native_id()}")
        row["process"] = self._heartbeat.process if self._heartbeat is not None else None
        rerun = bool(self._option(broker, message, "rerun"))
        return _Run(message.message_id, row["attempt"], token, row, rerun)

    def _logged(self, broker: Broker, message: AnyMessage) -> bool:
        return bool(self._option(broker, message, "log_job", default=True))

    def _row(self, broker: Broker, message: AnyMessage) -> dict[str, Any]:
        """Return the columns that a message alone decides."""
        options = message.options
        now = _now()
        row: dict[str, Any] = {
            "jid": fold_jid(message.message_id),
            "actor": clean_optional(message.actor_name),
            "queue": clean_optional(message.queue_name.removesuffix(_DELAY_SUFFIX)),
            "job_type": clean_optional(self._option(broker, message, "job_type")),
            "attempt": _attempt(message),
            "max_retries": self._max_retries(broker, message),
            "enqueued_at": message.message_timestamp,
            "created_at": now,
            "updated_at": now,
            "parent_jid": fold_jid(options[_PARENT]) if _PARENT in options else None,
            "root_jid": fold_jid(options[_ROOT]) if _ROOT in options else None,
        }
        notes: list[str] = []
        if self.joblog.store_args:
            row["args"], note = document(list(message.args))
            row["kwargs"], other = document(dict(message.kwargs))
            notes += [text for text in (note or other,) if text]
        try:
            row[self._user_column] = self._user(message)
            for name, field in self._own.items():
                value = self._option(broker, message, name)
                row[field.column_name] = field.db_value(
                    default_of(field) if value is None else value
                )
        except Exception as e:  # noqa: BLE001
            # The user's own callable or column: the job must not notice.
            notes.append(f"a column of {message.actor_name} could not be filled: {_message_of(e)}")
            self.logger.warning("Job %s: %s", message.message_id, notes[-1])
        row["note"] = clean("; ".join(notes), 1000) if notes else None
        return row

    def _user(self, message: AnyMessage) -> Any:
        value = message.options.get("job_user")
        if value is None:
            reader = self._readers.get(message.actor_name)
            value = None if reader is None else reader(message)
        value = user_field(self.joblog.Job).db_value(value)
        return clean_optional(value) if isinstance(value, str) else value

    def _max_retries(self, broker: Broker, message: AnyMessage) -> int | None:
        retries = next((m for m in broker.middleware if isinstance(m, Retries)), None)
        if retries is None:
            return 0
        value = self._option(broker, message, "max_retries", default=retries.max_retries)
        return value if isinstance(value, int) else None

    @staticmethod
    def _option(broker: Broker, message: AnyMessage, name: str, default: Any = None) -> Any:
        """Look *name* up as everywhere in Dramatiq: the message's, the actor's, the default."""
        value = message.options.get(name)
        if value is None:
            actor = broker.actors.get(message.actor_name)
            value = None if actor is None else actor.options.get(name)
        return default if value is None else value


def _user_reader(job_user: Any, function: Any, where: str) -> Callable[[Any], Any]:
    """Return what reads the user's id from a message of this actor."""
    if callable(job_user):
        return lambda message: job_user(*message.args, **message.kwargs)
    parameters = inspect.signature(function).parameters
    names = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    takes_any = len(names) < len(parameters)
    if not isinstance(job_user, str) or (job_user not in names and not takes_any):
        raise ConfigurationError(
            f"{where} has job_user={job_user!r}, which is none of its parameters "
            f"({', '.join(parameters) or 'it has none'}); name one of them, or give a callable"
        )
    index = names.index(job_user) if job_user in names else sys.maxsize
    default = parameters[job_user].default if job_user in parameters else None
    default = None if default is inspect.Parameter.empty else default

    def read(message: Any) -> Any:
        if job_user in message.kwargs:
            return message.kwargs[job_user]
        return message.args[index] if index < len(message.args) else default

    return read


def _raised_before_body(error: BaseException) -> bool:
    """Tell whether *error* came from a middleware's hook, so that the actor was not called."""
    # The worker's own frame comes first, and what it called comes next; deeper ones may be
    # those of a message that the actor was sending.
    called = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)][1:2]
    return called == [Broker.emit_before.__code__]


def _skipper(error: BaseException | None) -> str:
    """Name what raised ``SkipMessage``: a middleware, or the actor."""
    by = "actor"
    if error is not None and _raised_before_body(error):
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name == "before_process_message":
                by = type(frame.f_locals.get("self")).__name__
    text = _message_of(error) if error is not None else ""
    return f"{by}: {text}" if text else by


def _failure(row: dict[str, Any], outcome: Outcome, error: BaseException) -> dict[str, Any]:
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    text = clean("".join(lines), MAX_TRACEBACK)
    return {
        "jid": row["jid"],
        "token": row["token"],
        "attempt": row["attempt"],
        "outcome": outcome.value,
        "started_at": row["started_at"],
        "finished_at": row["updated_at"],
        "duration": row["duration"],
        "error_type": clean_optional(type(error).__name__),
        "error_message": clean(_message_of(error), MAX_MESSAGE),
        "traceback": text,
        "worker": row["worker"],
    }


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as e:  # noqa: BLE001
        # An error's own __str__ may fail; its name is still worth keeping.
        return f"<{type(error).__name__} whose text raised {type(e).__name__}>"


def _attempt(message: Any) -> int:
    return int(message.options.get("retries", 0)) + 1


def _elapsed(run: _Run) -> int | None:
    return None if run.began is None else round((time.monotonic() - run.began) * 1000)


def _now() -> int:
    return time.time_ns() // 1_000_000
