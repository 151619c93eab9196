"""Running a job again: a new message with the arguments and options of the old one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import dramatiq.broker
from dramatiq import Broker, Message
from dramatiq.logging import get_logger
from dramatiq.message import generate_unique_id

from dramatiq_joblog.errors import (
    DatabaseAwayError,
    DuplicateJob,
    RequeueError,
)
from dramatiq_joblog.payload.parameters import parameters_of
from dramatiq_joblog.payload.sanitize import fit_name, fold_jid
from dramatiq_joblog.payload.values import host_now, shown
from dramatiq_joblog.states import CANCELLABLE, FINAL, State

from .options import PARENT, REPLAY_OF, ROOT

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
    from typing import TypeVar

    from dramatiq_joblog.recording.log import Log, Written

    from .arguments import Arguments, Sent
    from .messages import Messages
    from .sending import Enqueue

    T = TypeVar("T")

#: The reason why a job cannot be sent inside a transaction.
IN_TRANSACTION = "inside a transaction, because the message would not wait for its end"
#: The number of jids in one condition; far below any database's limit.
_MOST_JIDS = 500

#: The options by which a group counts its members.
GROUP = ("group_completion_uuid", "group_completion_callbacks")


@dataclass
class Requeued:
    """The result of running jobs again."""

    #: The new messages, in order.
    sent: list[Message[Any]] = field(default_factory=list)
    #: The reasons of refusals, by jid.
    refused: dict[str, str] = field(default_factory=dict)


class Sender:
    """Requeues the jobs of one log.

    Parameters:
      joblog: The log.
      arguments: Restores what was sent.
    """

    def __init__(self, joblog: Log[Written], arguments: Arguments) -> None:
        self._joblog = joblog
        self._arguments = arguments
        self._readers: dict[Broker, Messages] = {}
        self._enqueues: dict[Broker, Enqueue | None] = {}
        self._logger = get_logger(__name__, type(self))
        self._brokers: list[Broker] = []

    @property
    def broker(self) -> Broker | None:
        """The broker on which this process last declared an actor, if any."""
        return self._brokers[0] if self._brokers else None

    @property
    def declares_actors(self) -> bool:
        """Whether this process has declared any actor."""
        return any(broker.actors for broker in self._known())

    def add(self, broker: Broker, messages: Messages, enqueue: Enqueue | None = None) -> None:
        """Add a broker on which an actor is declared; it takes precedence over the others.

        Parameters:
          broker: The broker.
          messages: Reads the messages sent there.
          enqueue: The middleware's wrapper around the broker's ``enqueue``, if any.
        """
        self._readers[broker] = messages
        self._enqueues[broker] = enqueue
        # A new list, because another thread may be reading the old one.
        self._brokers = [broker, *(other for other in self._brokers if other is not broker)]

    def describe(self, data: Mapping[str, Any], user_from: str | None = None) -> dict[str, Any]:
        """Return the columns that a message and the options of its actor determine.

        Parameters:
          data: The message as a dictionary.
          user_from: The parameter with the job's user; overrides the actor's *job_user*.

        Returns:
          Empty if this process has not declared the actor.
        """
        broker = next((b for b in self._readers if data["actor_name"] in b.actors), None)
        if broker is None:
            return {}
        options = dict(data.get("options") or {})
        args, kwargs = tuple(data.get("args") or ()), dict(data.get("kwargs") or {})
        if user_from is not None:
            names = self._arguments.positional(broker, data["actor_name"])
            options["job_user"] = {**dict(zip(names, args, strict=False)), **kwargs}.get(user_from)
        message: Message[Any] = Message(
            queue_name=data["queue_name"],
            actor_name=data["actor_name"],
            args=args,
            kwargs=kwargs,
            options=options,
        )
        return self._readers[broker].row(broker, message)

    def requeue(
        self,
        job: Any,
        *,
        who: str | None,
        broker: Broker | None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Message[Any]:
        """Send one job again; see :meth:`JobLog.requeue`."""
        brokers = self.brokers(job.jid, broker)
        self.check(job)
        sent = self._arguments.restore(job)
        if arguments:
            home = _home(job, brokers)
            name = _declared(job.actor, home.actors) or job.actor
            sent = with_arguments(job.jid, sent, arguments, home.get_actor(name).fn)
        where, message = self.message(job, sent, brokers, self.known_targets([sent]))
        try:
            message = where.enqueue(message)
        except DuplicateJob as e:
            raise RequeueError(job.jid, str(e)) from e
        self._mark(job, message, who)
        return message

    def brokers(self, jid: str, broker: Broker | None = None) -> list[Broker]:
        """Return the brokers that jobs may be sent to, or only *broker*.

        Raises:
          RequeueError: If no broker's jobs are in this log; *jid* is for its text.
        """
        if broker is None:
            return self._logged(jid, self._known())
        if not isinstance(broker, Broker):
            raise RequeueError(jid, f"broker={shown(broker)} is not a broker of Dramatiq")
        return self._logged(jid, [broker])

    def enqueue_of(self, broker: Broker) -> Enqueue | None:
        """Return the middleware's wrapper around a broker's ``enqueue``, if any."""
        return self._enqueues.get(broker)

    def redacted(self, text: str) -> str:
        """Return an error's text without secrets."""
        return self._joblog.core.redactor.error(text)

    def restored(self, job: Any) -> Sent:
        """Return a job's arguments and options; see :meth:`Arguments.restore`."""
        return self._arguments.restore(job)

    def _known(self) -> list[Broker]:
        """Return the brokers that jobs may be sent to."""
        # Read the global variable: get_broker() could create a broker.
        last = dramatiq.broker.global_broker
        return self._brokers if last is None or last in self._brokers else [*self._brokers, last]

    def _logged(self, jid: str, brokers: list[Broker]) -> list[Broker]:
        """Return those of *brokers* whose jobs are in this log."""
        if not brokers:
            raise RequeueError(jid, "this process declares no actors; import the module that does")
        logged = [
            broker
            for broker in brokers
            if any(getattr(m, "joblog", None) is self._joblog for m in broker.middleware)
        ]
        if not logged:
            raise RequeueError(jid, f"{brokers[0]!r} has no JobLogMiddleware of this log")
        return logged

    def check(self, job: Any) -> None:
        """Refuse a job that has not ended, and all jobs inside a transaction.

        Raises:
          RequeueError: If the job is refused.
        """
        if job.state not in FINAL:
            cure = "; if it will not end by itself, cancel it first"
            raise RequeueError(
                job.jid,
                f"it is {job.state}; only a job that is finished, dead or skipped can"
                + (cure if job.state in CANCELLABLE else ""),
            )
        if self.is_in_transaction:
            raise RequeueError(job.jid, IN_TRANSACTION)

    @property
    def is_in_transaction(self) -> bool:
        """Whether this thread is inside a transaction of the log's database."""
        database = self._joblog.core.database
        return not database.is_closed() and database.in_transaction()

    def message(
        self,
        job: Any,
        sent: Sent,
        brokers: Sequence[Broker],
        known: Container[str],
        jid: str | None = None,
    ) -> tuple[Broker, Message[Any]]:
        """Return the message of a job's new run, and the broker to send it to.

        Parameters:
          job: The job.
          sent: Its arguments and options.
          brokers: The brokers that it may be sent to.
          known: The jids of later messages in its pipeline that the log knows.
          jid: The jid of the new run; by default a new one.

        Raises:
          RequeueError: If no broker has its actor.
        """
        broker = _home(job, brokers)
        options = _renewed(sent.options, job, known)
        options[REPLAY_OF] = job.jid
        if job.parent_jid is not None:
            options |= {PARENT: job.parent_jid, ROOT: job.root_jid}
        actor = _declared(job.actor, broker.actors) or job.actor
        queue = _declared(job.queue, broker.get_declared_queues())
        if queue is None:
            # The actor's queue has changed since.
            queue = broker.get_actor(actor).queue_name
        message: Message[Any] = Message(
            queue_name=queue,
            actor_name=actor,
            args=tuple(sent.args),
            kwargs=sent.kwargs,
            options=options,
            message_id=jid or generate_unique_id(),
        )
        return broker, message

    def known_targets(self, sent: Iterable[Sent]) -> set[str]:
        """Return the jids of later messages in the pipelines of *sent* that the log knows."""
        jids = {
            fold_jid(target["message_id"]) for each in sent for target in _targets(each.options)
        }
        job: Any = self._joblog.core.tables.job
        known: set[str] = set()
        for some in chunks(sorted(jids), _MOST_JIDS):
            known |= {row.jid for row in job.select(job.jid).where(job.jid.in_(some))}
        return known

    def _mark(self, job: Any, message: Message[Any], who: str | None) -> None:
        model: Any = self._joblog.core.tables.job
        jid = fold_jid(message.message_id)

        def mark() -> None:
            model.update(replayed_by=jid).where(model.jid == job.jid).execute()
            self._joblog.core.record("requeue", who=who or "", jid=job.jid, detail=f"as {jid}")

        try:
            self._joblog.core.writer.call(mark)
        except DatabaseAwayError as e:
            # It was sent; after an error, the caller would send it twice.
            self._logger.warning("Job %s runs again as %s, unmarked: %s", job.jid, jid, e)


def with_arguments(jid: str, sent: Sent, arguments: Mapping[str, Any], function: Any) -> Sent:
    """Return *sent* with some arguments changed, checked against the actor's signature.

    Raises:
      RequeueError: If the actor has no such parameter, or cannot be called with them.
    """
    parameters = parameters_of(function)
    args, kwargs = list(sent.args), dict(sent.kwargs)
    names = parameters.positional if parameters.known else ()
    for name, value in arguments.items():
        if name in names and names.index(name) < len(args):
            args[names.index(name)] = value
        elif name in kwargs or (parameters.known and parameters.accepts(name)):
            kwargs[name] = value
        else:
            raise RequeueError(
                jid, f"its actor takes no argument {name!r}; use one of {parameters}"
            )
    if parameters.known and not parameters.guessed:
        try:
            parameters.signature.bind(*args, **kwargs)
        except TypeError as e:
            raise RequeueError(jid, f"its actor cannot be called like this: {e}") from e
    return replace(sent, args=args, kwargs=kwargs)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Split a sequence into parts of *size*."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _renewed(options: dict[str, Any], job: Any, known: Container[str]) -> dict[str, Any]:
    """Return options that let the rest of the job's pipeline follow its new run."""
    if job.state == State.FINISHED or job.replayed_by is not None:
        # Its group has already counted it.
        options = {name: value for name, value in options.items() if name not in GROUP}
    fresh_ids = any(fold_jid(target["message_id"]) in known for target in _targets(options))
    return _with_targets(options, fresh_ids=fresh_ids)


def _home(job: Any, brokers: Sequence[Broker]) -> Broker:
    """Return the broker that declares a job's actor, preferring one with its queue.

    Raises:
      RequeueError: If there is none.
    """
    having = [broker for broker in brokers if _declared(job.actor, broker.actors) is not None]
    if not having:
        where = "this process" if len(brokers) < 2 else f"any of the {len(brokers)} brokers here"
        raise RequeueError(job.jid, f"no actor {job.actor!r} is declared in {where}")
    with_queue = (b for b in having if _declared(job.queue, b.get_declared_queues()) is not None)
    return next(with_queue, having[0])


def _declared(stored: str, names: Collection[str]) -> str | None:
    """Return the declared name that is stored as *stored*, or None."""
    if stored in names:
        return stored
    return next((name for name in names if fit_name(name) == stored), None)


def _targets(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the later messages of a pipeline."""
    while (target := _target(options)) is not None:
        yield target
        options = target["options"]


def _target(options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the next message of a pipeline; None if there is none or it is unreadable."""
    target = options.get("pipe_target")
    if isinstance(target, dict) and isinstance(target.get("options"), dict):
        return target if "message_id" in target else None
    return None


def _with_targets(options: dict[str, Any], *, fresh_ids: bool) -> dict[str, Any]:
    """Return *options* with renewed messages for the rest of the pipeline."""
    target = _target(options)
    if target is None:
        return dict(options)
    renewed: dict[str, Any] = {"message_timestamp": host_now()}
    if fresh_ids:
        # With its old ID, the log would treat it as a job already done.
        renewed["message_id"] = generate_unique_id()
    following = _with_targets(target["options"], fresh_ids=fresh_ids)
    return {**options, "pipe_target": {**target, **renewed, "options": following}}
