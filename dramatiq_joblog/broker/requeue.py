"""Running a job again: a new message with the arguments and options of the old one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dramatiq.broker
from dramatiq import Message
from dramatiq.logging import get_logger
from dramatiq.message import generate_unique_id

from dramatiq_joblog.errors import (
    DatabaseAwayError,
    DuplicateJob,
    RequeueError,
    RequeueInterruptedError,
)
from dramatiq_joblog.payload.sanitize import fit_name, fold_jid, message_of
from dramatiq_joblog.states import CANCELLABLE, FINAL, State

from .messages import PARENT, REPLAY_OF, ROOT, now

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from dramatiq import Broker

    from dramatiq_joblog.joblog import JobLog
    from dramatiq_joblog.schema.query import JobQuery

    from .arguments import Arguments
    from .messages import Messages

#: A group counts its members by these.
GROUP = ("group_completion_uuid", "group_completion_callbacks")


@dataclass
class Requeued:
    """What became of jobs that were to be run again."""

    #: The new messages, in order.
    sent: list[Message[Any]] = field(default_factory=list)
    #: Why a job could not be run again, by its jid.
    refused: dict[str, str] = field(default_factory=dict)


class Sender:
    """Sends the jobs of one log again.

    Parameters:
      joblog: The log.
      arguments: Knows what was sent.
    """

    def __init__(self, joblog: JobLog, arguments: Arguments) -> None:
        self._joblog = joblog
        self._arguments = arguments
        self._readers: dict[Broker, Messages] = {}
        self._logger = get_logger(__name__, type(self))
        self._brokers: list[Broker] = []

    @property
    def broker(self) -> Broker | None:
        """Where this process declared an actor last, if it did."""
        return self._brokers[0] if self._brokers else None

    @property
    def declares_actors(self) -> bool:
        """Whether this process has declared any actor."""
        return any(broker.actors for broker in self._known())

    def add(self, broker: Broker, messages: Messages) -> None:
        """Let jobs be sent by a broker, before all others, as an actor is declared there.

        *messages* reads what is sent there.
        """
        self._readers[broker] = messages
        # A new list: another thread may be reading the old one.
        self._brokers = [broker, *(other for other in self._brokers if other is not broker)]

    def describe(self, data: Mapping[str, Any], user_from: str | None = None) -> dict[str, Any]:
        """Return the columns that a message alone decides, by the options of its actor.

        Parameters:
          data: The message as a dictionary.
          user_from: The parameter with the job's user, before the actor's *job_user*.

        Returns:
          Nothing if this process has declared no such actor.
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

    def requeue(self, job: Any, *, who: str | None, broker: Broker | None) -> Message[Any]:
        """Send one job again; see :meth:`JobLog.requeue`."""
        logged = self._logged(job.jid, [broker] if broker is not None else self._known())
        self._check(job)
        broker = _home(job, logged)
        message = self._message(job, broker)
        try:
            message = broker.enqueue(message)
        except DuplicateJob as e:
            raise RequeueError(job.jid, str(e)) from e
        self._mark(job, message, who)
        return message

    def requeue_all(
        self,
        query: JobQuery[Any],
        *,
        limit: int,
        who: str | None,
        broker: Broker | None,
        progress: Callable[[int, int], None] | None,
    ) -> Requeued:
        """Send the jobs of a query again; see :meth:`JobLog.requeue_all`."""
        model = self._joblog.Job
        jobs = list(
            query.in_state(*FINAL)
            .where(model.replayed_by.is_null())
            .order_by(model.id)
            .limit(limit)
        )
        result = Requeued()
        for done, job in enumerate(jobs, 1):
            try:
                result.sent.append(self.requeue(job, who=who, broker=broker))
            except RequeueError as e:
                result.refused[job.jid] = e.reason
            except Exception as e:
                # Brokers raise many kinds when they are unavailable; the next would fare no better.
                cause = self._joblog.redactor.error(f"{type(e).__name__}: {message_of(e)}")
                raise RequeueInterruptedError(job.jid, result.sent, result.refused, cause) from e
            if progress is not None:
                progress(done, len(jobs))
        return result

    def _known(self) -> list[Broker]:
        """Return the brokers that jobs may be sent by."""
        # The global one is only looked at: asking for it could make one.
        last = dramatiq.broker.global_broker
        return self._brokers if last is None or last in self._brokers else [*self._brokers, last]

    def _logged(self, jid: str, brokers: list[Broker]) -> list[Broker]:
        """Return those of some brokers whose jobs this log has."""
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

    def _check(self, job: Any) -> None:
        if job.state not in FINAL:
            cure = "; if nothing more will come of it, cancel it first"
            raise RequeueError(
                job.jid,
                f"it is {job.state}; only what is finished, dead or skipped can be"
                + (cure if job.state in CANCELLABLE else ""),
            )
        database = self._joblog.database
        if not database.is_closed() and database.in_transaction():
            raise RequeueError(
                job.jid, "inside a transaction, whose end the message would not wait for"
            )

    def _message(self, job: Any, broker: Broker) -> Message[Any]:
        sent = self._arguments.restore(job)
        options = self._renewed(sent.options, job)
        options[REPLAY_OF] = job.jid
        if job.parent_jid is not None:
            options |= {PARENT: job.parent_jid, ROOT: job.root_jid}
        actor = _declared(job.actor, broker.actors) or job.actor
        queue = _declared(job.queue, broker.get_declared_queues())
        if queue is None:
            # The actor has moved since.
            queue = broker.get_actor(actor).queue_name
        return Message(
            queue_name=queue,
            actor_name=actor,
            args=tuple(sent.args),
            kwargs=sent.kwargs,
            options=options,
        )

    def _renewed(self, options: dict[str, Any], job: Any) -> dict[str, Any]:
        """Return options that let what follows the job follow its new run too."""
        if job.state == State.FINISHED or job.replayed_by is not None:
            # Its group has counted it already.
            options = {name: value for name, value in options.items() if name not in GROUP}
        targets = list(_targets(options))
        known = self._joblog.jobs.where(
            self._joblog.Job.jid.in_([fold_jid(target["message_id"]) for target in targets])
        )
        fresh_ids = bool(targets) and known.exists()
        return _with_targets(options, fresh_ids=fresh_ids)

    def _mark(self, job: Any, message: Message[Any], who: str | None) -> None:
        model = self._joblog.Job
        jid = fold_jid(message.message_id)

        def mark() -> None:
            model.update(replayed_by=jid).where(model.jid == job.jid).execute()
            self._joblog.record("requeue", who=who or "", jid=job.jid, detail=f"as {jid}")

        try:
            self._joblog.writer.call(mark)
        except DatabaseAwayError as e:
            # It is sent: whoever is told otherwise sends it twice.
            self._logger.warning("Job %s runs again as %s, unmarked: %s", job.jid, jid, e)


def _home(job: Any, brokers: list[Broker]) -> Broker:
    """Return the broker that a job's actor is declared on, the one with its queue first.

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
    """Return the name that is stored so; None if none of those that are declared is."""
    if stored in names:
        return stored
    return next((name for name in names if fit_name(name) == stored), None)


def _targets(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the messages that follow in a pipeline."""
    while (target := _target(options)) is not None:
        yield target
        options = target["options"]


def _target(options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the message that follows in a pipeline, unless it is none that can be read."""
    target = options.get("pipe_target")
    if isinstance(target, dict) and isinstance(target.get("options"), dict):
        return target if "message_id" in target else None
    return None


def _with_targets(options: dict[str, Any], *, fresh_ids: bool) -> dict[str, Any]:
    """Return *options* with messages to follow that are as new as this one."""
    target = _target(options)
    if target is None:
        return dict(options)
    renewed: dict[str, Any] = {"message_timestamp": now()}
    if fresh_ids:
        # Under its old id the log would take it for a job that was done.
        renewed["message_id"] = generate_unique_id()
    following = _with_targets(target["options"], fresh_ids=fresh_ids)
    return {**options, "pipe_target": {**target, **renewed, "options": following}}
