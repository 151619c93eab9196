"""The columns of a job that its message alone determines."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger
from dramatiq.middleware import Retries

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.locking.needs import main_key
from dramatiq_joblog.payload.parameters import parameters_of
from dramatiq_joblog.payload.sanitize import (
    clean,
    clean_optional,
    fit_name,
    fold_jid,
    message_of,
    text_of,
)
from dramatiq_joblog.payload.values import as_int, as_millis, host_now, is_same, shown
from dramatiq_joblog.recording.row_rules import default_of
from dramatiq_joblog.schema.fields import UserIdField, is_text_of_number, user_asked
from dramatiq_joblog.schema.query import user_field

from .labels import odd_labels
from .options import (
    DELAY_SUFFIX,
    NOTE,
    PARENT,
    REPLAY_OF,
    ROOT,
    SECTION,
    actor_of,
    attempt_of,
    eta_of,
    option,
)
from .plan import plain_arguments
from .trace import current_trace_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dramatiq import Actor, Broker

    from dramatiq_joblog.recording.log import Log, Typed

    from .arguments import Arguments
    from .bonds import Bonds
    from .options import AnyMessage
    from .plan import Plan


class Rows:
    """Makes the columns of jobs from their messages, for one log.

    Parameters:
      joblog: The log.
      arguments: Stores arguments and options.
      bonds: Sanitises the bonds of messages.
    """

    def __init__(self, joblog: Log[Typed], arguments: Arguments, bonds: Bonds) -> None:
        self._joblog = joblog
        self._arguments = arguments
        self._bonds = bonds
        self._logger = get_logger(__name__, type(self))
        self.user_column: str = user_field(joblog.core.tables.job).column_name
        self.own_fields = {name: f for name, f in joblog.core.own_fields.items() if name != "user"}
        self._users: dict[str, Callable[[Any], Any]] = {}
        self._fillers = [self._own_filler(*each) for each in self.own_fields.items()]

    def declare(self, actor: Actor[Any, Any], where: str) -> None:
        """Refuse an actor whose jobs' users cannot be read.

        Raises:
          ConfigurationError: If its ``job_user`` is wrong.
        """
        if actor.options.get("job_user") is not None:
            self._users[actor.actor_name] = _user_reader(actor.options["job_user"], actor.fn, where)

    def reads_user(self, actor_name: str) -> bool:
        """Return whether a user is read from each message of an actor."""
        return actor_name in self._users

    def of(self, broker: Broker, message: Any, plan: Plan) -> dict[str, Any]:
        """Return the columns of a message, with the plan for it."""
        row = self._plain_row(message, plan)
        if row is None:
            return self.in_full(broker, message)
        if plan.has_user:
            notes: list[str] = []
            try:
                row |= self._user(broker, message, notes)
            except Exception:  # noqa: BLE001
                # The user's callable failed; the full row has a note of its error.
                return self.in_full(broker, message)
            if notes:
                return self.in_full(broker, message)
        return row

    def _plain_row(self, message: Any, plan: Plan) -> dict[str, Any] | None:
        """Return the columns of a message with only plain values; None if it has others."""
        if plan.row is None or plan.is_secret is None or NOTE in message.options:
            return None
        if plan.is_bound and (plan.shape is None or not plan.shape.fits(message)):
            return None
        arguments = plain_arguments(message.args, message.kwargs, plan.is_secret)
        if arguments is None:
            return None
        options = message.options
        row = {**plan.row, **arguments}
        row["jid"] = message.message_id
        row["queue"] = message.queue_name.removesuffix(DELAY_SUFFIX)
        row["attempt"] = options.get("retries", 0) + 1
        row["enqueued_at"] = message.message_timestamp
        row["created_at"] = row["updated_at"] = host_now()
        if SECTION in options:
            row["section"] = options[SECTION]["key"]
        if PARENT in options or ROOT in options or REPLAY_OF in options:
            row |= _family(options)
        if (trace_id := current_trace_id()) is not None:
            row["trace_id"] = trace_id
        return row

    def in_full(self, broker: Broker, message: Any) -> dict[str, Any]:
        """Return the columns of any message, with each value checked."""
        self._bonds.check(broker, message)
        options = message.options
        instant = host_now()
        row: dict[str, Any] = {
            "jid": fold_jid(message.message_id),
            "actor": fit_name(message.actor_name),
            "queue": fit_name(text_of(message.queue_name).removesuffix(DELAY_SUFFIX)),
            "job_type": fit_name(option(broker, message, "job_type")),
            "attempt": attempt_of(message),
            "max_retries": _max_retries(broker, message),
            "enqueued_at": as_millis(message.message_timestamp),
            "created_at": instant,
            "updated_at": instant,
            "section": main_key(options.get(SECTION)),
        }
        row |= _family(options)
        if (trace_id := current_trace_id()) is not None:
            row["trace_id"] = clean_optional(trace_id, 64)
        notes = self._odd(broker, message, row)
        row |= self._columns_of_arguments(broker, message, notes)
        for fill in (self._user, *self._fillers):
            try:
                row |= fill(broker, message, notes)
            except Exception as e:  # noqa: BLE001
                # The user's callable or column failed; that must not affect the job.
                text = self._arguments.redactor(broker, message, row).error(message_of(e))
                notes.append(f"a column of {row['actor']} could not be filled: {text}")
                self._logger.warning("Job %s: %s", row["jid"], notes[-1])
        row["note"] = clean("; ".join(notes), 1000) if notes else None
        return row

    def _odd(self, broker: Broker, message: Any, row: dict[str, Any]) -> list[str]:
        """Return notes on values of a message that are not stored unchanged."""
        options, retries = message.options, message.options.get("max_retries")
        sent: list[tuple[str, Any, Any]] = [
            ("message_id", message.message_id, row["jid"]),
            ("actor_name", message.actor_name, row["actor"]),
            ("message_timestamp", message.message_timestamp, row["enqueued_at"]),
            ("retries", options.get("retries", 0), row["attempt"] - 1),
            ("eta", options.get("eta"), eta_of(message)),
            ("max_retries", retries, retries if retries is None else row["max_retries"]),
        ]
        notes = [
            f"{name} {shown(value)} is kept as {shown(kept, 80)}"
            for name, value, kept in sent
            if not is_near(value, kept)
        ]
        if options.get(NOTE) is not None:
            notes.append(clean(text_of(options[NOTE]), 500))
        notes += odd_labels(options)
        if options.get("job_type") is not None and row["job_type"] is not None:
            try:
                self._joblog.core.check_job_type(options["job_type"], "the message")
            except ConfigurationError as e:
                notes.append(clean(str(e), 300))
        return notes

    def _columns_of_arguments(
        self, broker: Broker, message: Any, notes: list[str]
    ) -> dict[str, Any]:
        try:
            columns, note = self._arguments.columns(broker, message)
        except Exception as e:  # noqa: BLE001
            # Neither an argument's code nor a malformed message may cost a job its row.
            note = f"its arguments could not be read: {message_of(e)}"
            columns = {"withheld": clean_optional(note)}
        if note:
            notes.append(note)
        return columns

    def _own_filler(self, name: str, field: Any) -> Callable[..., dict[str, Any]]:
        """Return the function that fills a column of a custom model."""

        def fill(broker: Broker, message: Any, notes: list[str]) -> dict[str, Any]:
            value = option(broker, message, name)
            stored = field.db_value(default_of(field) if value is None else value)
            bits = _BITS.get(field.field_type)
            if bits is not None and stored is not None:
                # Some databases would refuse the value, and with it the row.
                if not isinstance(stored, int) or not -(2**bits) <= stored < 2**bits:
                    raise ValueError(f"{name}={shown(value)} is not a number of its column")
            elif isinstance(stored, str):
                stored, whole = clean_optional(stored, getattr(field, "max_length", None)), stored
                if stored != whole:
                    notes.append(f"{name} {shown(whole)} is kept as {shown(stored)}")
            return {field.column_name: stored}

        return fill

    def _user(self, broker: Broker, message: AnyMessage, notes: list[str]) -> dict[str, Any]:
        """Return the columns of the job's user."""
        value = message.options.get("job_user")
        if value is None:
            reader = self._users.get(message.actor_name)
            value = None if reader is None else reader(message)
        field = user_field(self._joblog.core.tables.job)
        columns = {field.column_name: user_asked(field, value)}
        if isinstance(field, UserIdField) and is_text_of_number(value):
            columns["user_is_text"] = True
        kept = columns[field.column_name]
        if isinstance(kept, str) and isinstance(value, str) and kept != text_of(value):
            notes.append(f"the user {shown(value)} is kept as {shown(kept, 80)}")
        return columns


def _family(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of a message's parent, root and earlier run."""
    columns = ((PARENT, "parent_jid"), (ROOT, "root_jid"), (REPLAY_OF, "replay_of"))
    return {c: fold_jid(options[name]) for name, c in columns if options.get(name) is not None}


def _max_retries(broker: Broker, message: AnyMessage) -> int | None:
    retries = next((m for m in broker.middleware if isinstance(m, Retries)), None)
    if retries is None:
        return 0
    # Looked up like in Retries: None on a message means no limit, whatever its actor has.
    actor = actor_of(broker, message)
    declared = {} if actor is None else actor.options
    default = declared.get("max_retries", retries.max_retries)
    return as_int(message.options.get("max_retries", default))


#: The bits of an integer column of a custom model, without the sign.
_BITS = {"AUTO": 31, "BIGAUTO": 63, "BIGINT": 63, "INT": 31, "SMALLINT": 15}


def is_near(value: Any, kept: Any) -> bool:
    """Return whether a value was stored unchanged, ignoring fractions of a millisecond."""
    if isinstance(value, float) and isinstance(kept, int):
        return abs(value - kept) < 1
    return is_same(value, kept)


def _user_reader(job_user: Any, function: Any, where: str) -> Callable[[Any], Any]:
    """Return the function that reads the user's id from a message of this actor."""
    if callable(job_user):
        return lambda message: job_user(*message.args, **message.kwargs)
    parameters = parameters_of(function)
    if not isinstance(job_user, str) or not parameters.accepts(job_user):
        raise ConfigurationError(
            f"{where} has job_user={job_user!r}, which is not one of its parameters "
            f"({parameters}){parameters.cure}; name one of them, or give a callable"
        )
    names = parameters.positional
    index = names.index(job_user) if job_user in names else sys.maxsize
    known = parameters.signature.parameters
    default = known[job_user].default if job_user in known else None
    default = None if default is inspect.Parameter.empty else default

    def read(message: Any) -> Any:
        if job_user in message.kwargs:
            return message.kwargs[job_user]
        return message.args[index] if index < len(message.args) else default

    return read
