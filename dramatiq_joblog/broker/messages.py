"""What a message determines about its job: options, columns, and keys."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dramatiq import Message
from dramatiq.logging import get_logger

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.payload.parameters import parameters_of
from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.recording.log_lines import check_level

from .arguments import Arguments
from .bonds import Bonds
from .deliveries import is_move
from .labels import check_labels
from .options import (
    SECTION,
    UNIQUE,
    actor_of,
    bare,
    is_logged,
    key_option,
    option,
)
from .plan import Plan, is_plain
from .rows import Rows

if TYPE_CHECKING:
    from dramatiq import Actor, Broker
    from dramatiq.broker import MessageProxy

    from dramatiq_joblog.recording.log import Log, Typed

    AnyMessage = Message[Any] | MessageProxy


class Messages:
    """Reads messages for one log.

    Parameters:
      joblog: The log.
      lines_level: The default lowest level of log lines that are kept.
      start: The default for when a start is written.
    """

    def __init__(
        self, joblog: Log[Typed], *, lines_level: int | None = None, start: str = "before"
    ) -> None:
        self._joblog = joblog
        self._lines_level = lines_level
        self._start = start
        self.arguments = Arguments(joblog)
        #: The bonds of messages.
        self.bonds = Bonds(joblog, self.arguments)
        #: Makes the columns of jobs.
        self.rows = Rows(joblog, self.arguments, self.bonds)
        #: The plans of actors and the options that they were made from, by actor and number of
        #: middleware of its broker.
        self._plans: dict[tuple[Any, int], tuple[dict[str, Any], Plan]] = {}
        self._logger = get_logger(__name__, type(self))
        #: The names of declared actors.
        self.declared: set[str] = set()

    def declare(self, actor: Actor[Any, Any]) -> None:
        """Refuse an actor with options that the log cannot use.

        Raises:
          ConfigurationError: If an option cannot be used.
        """
        self.declared.add(actor.actor_name)
        where, options = f"actor {actor.actor_name!r}", actor.options
        self._warn_of_wrapper(actor.fn, where)
        self._joblog.core.check_job_type(options.get("job_type"), where)
        check_labels(options, where)
        self.rows.declare(actor, where)
        self.bonds.declare(actor, where)

    def _warn_of_wrapper(self, function: Any, where: str) -> None:
        """Log a warning if an actor's secrets may not be recognised."""
        parameters = parameters_of(function)
        if (
            not parameters.guessed
            or not self._joblog.core.store_args
            or not self._joblog.core.redactor.on
        ):
            return
        found = (
            f"those of the function that it calls, ({parameters}), are taken"
            if parameters.known
            else "a password among its positional arguments is kept as it is"
        )
        self._logger.warning(
            "The %s does not name its parameters, as a decorator without functools.wraps: %s. "
            "Use functools.wraps in the decorator.",
            where,
            found,
        )

    def refuse_unlogged(self, broker: Broker, message: AnyMessage) -> None:
        """Refuse to send a message that needs a key but has no row to hold it.

        Raises:
          ConfigurationError: If the message is such a one.
        """
        if option(broker, message, "log_job", default=True) or is_move():
            return
        frozen = SECTION in message.options or UNIQUE in message.options
        if not frozen and (name := key_option(broker, message)) is not None:
            raise ConfigurationError(
                f"message {message.message_id!r} of actor {message.actor_name!r} has "
                f"log_job=False and {name}, which needs log_job"
            )

    def plan(self, broker: Broker, message: AnyMessage) -> Plan:
        """Return the plan for a message: its actor's, or one for the message alone."""
        message = bare(message)
        actor = actor_of(broker, message)
        if actor is None or not is_plain(message):
            return self._plan_of(broker, message)
        key = actor, len(broker.middleware)
        declared, plan = self._plans.get(key, (None, None))
        if plan is None or declared != actor.options:
            plan = self._plan_of_actor(broker, actor)
            self._plans[key] = dict(actor.options), plan
        if not plan.is_bound and (SECTION in message.options or UNIQUE in message.options):
            # Its bonds are from another version of its actor, or another producer.
            return self._plan_of(broker, message)
        return plan

    def _plan_of(self, broker: Broker, message: Any) -> Plan:
        start = option(broker, message, "start", self._start)
        interruptions = option(broker, message, "max_interruptions")
        is_bound = (
            key_option(broker, message) is not None
            or SECTION in message.options
            or UNIQUE in message.options
        )
        level = option(broker, message, "log_lines", self._lines_level)
        try:
            lines_level = check_level(level, "log_lines")
        except ConfigurationError:
            # The sender gets an error; a label never decides whether a job runs.
            lines_level = self._lines_level
        return Plan(
            is_logged=is_logged(broker, message),
            is_bound=is_bound,
            lines_level=lines_level,
            max_interruptions=interruptions,
            rerun=option(broker, message, "rerun"),
            starts_soon=start == "soon" and not is_bound and interruptions is None,
        )

    def _plan_of_actor(self, broker: Broker, actor: Actor[Any, Any]) -> Plan:
        """Return the plan of an actor, with the columns common to all its plain messages."""
        name = actor.actor_name
        sample: Message[Any] = Message(actor.queue_name, name, (), {}, {}, "sample", host_now())
        plan = self._plan_of(broker, sample)
        row = self.rows.in_full(broker, sample)
        dynamic = any(callable(field.default) for field in self.rows.own_fields.values())
        if dynamic or row["note"] is not None:
            return plan
        redactor = self._joblog.core.redactor
        names = self.arguments.positional(broker, name)
        by_names = redactor.goes_by_names and not any(map(redactor.is_secret, names))
        return replace(
            plan,
            row=row,
            shape=self.bonds.shape(actor) if plan.is_bound else None,
            has_user=self.rows.reads_user(name),
            calls_code=callable(actor.options.get("job_user")),
            is_secret=redactor.is_secret if by_names and self._joblog.core.store_args else None,
        )

    def row(self, broker: Broker, message: AnyMessage, plan: Plan | None = None) -> dict[str, Any]:
        """Return the columns that are determined by a message alone.

        Parameters:
          broker: Where its actor is declared.
          message: The message.
          plan: Its plan, if already known.
        """
        message = bare(message)
        return self.rows.of(broker, message, plan or self.plan(broker, message))
