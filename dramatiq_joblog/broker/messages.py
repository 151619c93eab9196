"""What a message says of its job: its options, its columns, and the keys that it is bound to."""

from __future__ import annotations

import inspect
import sys
import time
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from dramatiq import Message
from dramatiq.errors import ActorNotFound
from dramatiq.logging import get_logger
from dramatiq.middleware import AgeLimit, Retries

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.locking.locks import fold_key
from dramatiq_joblog.locking.needs import (
    Exclusive,
    Rate,
    Unique,
    bound_to,
    carried,
    entries_of,
    key_maker,
    kind_of,
    limit_asker,
    main_key,
    needs_of,
    paired,
)
from dramatiq_joblog.payload.parameters import parameters_of
from dramatiq_joblog.payload.sanitize import (
    clean,
    clean_optional,
    fit_name,
    fold_jid,
    message_of,
    text_of,
)
from dramatiq_joblog.payload.values import MAX_INT, MAX_MILLIS, as_int, as_millis, is_same, shown
from dramatiq_joblog.recording.log_lines import check_level
from dramatiq_joblog.recording.transitions import default_of
from dramatiq_joblog.schema.fields import UserIdField, is_text_of_number, user_asked
from dramatiq_joblog.schema.query import user_field

from .arguments import Arguments
from .deliveries import is_move
from .labels import LABELS, check_labels, label, odd_labels, options_sent
from .plan import Plan, is_plain, plain_arguments
from .trace import current_trace_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dramatiq import Actor, Broker
    from dramatiq.broker import MessageProxy

    from dramatiq_joblog.locking.needs import Entry, Need
    from dramatiq_joblog.recording.log import Log, Typed

    AnyMessage = Message[Any] | MessageProxy

DELAY_SUFFIX = ".DQ"
#: Message options of ours, that travel with a message through retries and delays.
PARENT, ROOT, REPLAY_OF = "joblog_parent", "joblog_root", "joblog_replay_of"
SECTION, UNIQUE, DUPLICATE = "joblog_section", "joblog_unique", "joblog_duplicate"
#: What of these was not fit, for its row; and why a job cannot run, as its section is not known.
NOTE, MALFORMED = "joblog_note", "joblog_malformed"
#: Of a message that was put back: the key that it waits for.
WAITS = "joblog_waits"
#: In what a message is bound to: the message that it was made for.
BOUND_FOR = "jid"

#: What actors and messages may carry, beside the columns of a model of the user's own.
OPTIONS = frozenset(
    {
        "exclusive",
        "job_type",
        "job_user",
        "log_job",
        "log_lines",
        "max_interruptions",
        "rerun",
        "start",
        "unique",
    }
)


def bare(message: Any) -> Any:
    """Return the message in a worker's proxy: each look through that costs a call."""
    return getattr(message, "_message", message)


def option(broker: Broker, message: AnyMessage, name: str, default: Any = None) -> Any:
    """Look *name* up as everywhere in Dramatiq: the message's, the actor's, the default."""
    message = bare(message)
    value = label(name, message.options.get(name))
    if value is None:
        actor = actor_of(broker, message)
        value = None if actor is None else actor.options.get(name)
    return default if value is None else value


def actor_of(broker: Broker, message: AnyMessage) -> Any:
    """Return the actor of a message, or None if it is not declared here."""
    name = message.actor_name
    return broker.actors.get(name) if isinstance(name, str) else None


def is_logged(broker: Broker, message: AnyMessage) -> bool:
    """Return whether a message's job has a row: also one that is to have none, and needs a key."""
    return (
        bool(option(broker, message, "log_job", default=True))
        or _key_option(broker, message) is not None
    )


def _key_option(broker: Broker, message: AnyMessage) -> str | None:
    """Return the name of an option that binds a message's job to a key, if it has one."""
    names = ("exclusive", "unique")
    return next((name for name in names if is_given(option(broker, message, name))), None)


def is_given(key: Any) -> bool:
    """Return whether an option asks for a key; what has no truth of its own does."""
    try:
        return bool(key)
    except Exception:  # noqa: BLE001
        # Its own code is at fault, and the maker of the key says so.
        return True


def age_left(broker: Broker, message: AnyMessage) -> int | None:
    """Return the milliseconds until ``AgeLimit`` drops a message; None if nothing says that."""
    # What a subclass does is not known.
    limit = next((m for m in broker.middleware if type(m) is AgeLimit), None)
    actor = actor_of(broker, message)
    if limit is None or actor is None:
        return None
    # As there: an actor's None is no limit.
    given = message.options.get("max_age") or actor.options.get("max_age", limit.max_age)
    max_age, sent = as_int(given, most=MAX_MILLIS), as_millis(message.message_timestamp)
    return None if not max_age or sent is None else sent + max_age - now()


def attempt_of(message: Any) -> int:
    """Return the number of a message's attempt, 1 for the first."""
    return (as_int(message.options.get("retries"), most=MAX_INT - 1) or 0) + 1


def eta_of(message: Any) -> int | None:
    """Return when a message that is held back is due, in milliseconds since 1970."""
    return as_millis(message.options.get("eta"))


def throws(broker: Broker, message: AnyMessage, error: BaseException | None) -> bool:
    """Return whether *error* is one that a message's job is not retried after."""
    wanted = option(broker, message, "throws")
    try:
        return error is not None and bool(wanted) and isinstance(error, wanted)
    except TypeError:
        # Another producer's, that names no class.
        return False


def now() -> int:
    """Return this host's time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Messages:
    """Reads messages for one log.

    Parameters:
      joblog: The log.
      lines_level: From which level on lines are kept, where nothing else says so.
      start: When a start is written, where nothing else says so.
    """

    def __init__(
        self, joblog: Log[Typed], *, lines_level: int | None = None, start: str = "before"
    ) -> None:
        self._joblog = joblog
        self._lines_level = lines_level
        self._start = start
        self.arguments = Arguments(joblog)
        #: The plans of actors, by the actor and the number of its broker's middleware.
        self._plans: dict[tuple[Any, int], Plan] = {}
        self._logger = get_logger(__name__, type(self))
        self.user_column: str = user_field(joblog.core.tables.job).column_name
        self.own_fields = {name: f for name, f in joblog.core.own_fields.items() if name != "user"}
        #: Names of the actors that were declared.
        self.declared: set[str] = set()
        self._users: dict[str, Callable[[Any], Any]] = {}
        self._fillers = [self._own_filler(*each) for each in self.own_fields.items()]

    def declare(self, actor: Actor[Any, Any]) -> None:
        """Refuse an actor whose options the log could not use.

        Raises:
          ConfigurationError: If there is one.
        """
        self.declared.add(actor.actor_name)
        where, options = f"actor {actor.actor_name!r}", actor.options
        self._warn_of_wrapper(actor.fn, where)
        self._joblog.core.check_job_type(options.get("job_type"), where)
        check_labels(options, where)
        if options.get("job_user") is not None:
            self._users[actor.actor_name] = _user_reader(options["job_user"], actor.fn, where)
        for name, kind in (("exclusive", Exclusive), ("unique", Unique)):
            wanted = _wanted(kind, options.get(name), where)
            for each in wanted:
                key_maker(each.key, actor.fn, where)
                if not isinstance(each, Unique):
                    limit_asker(each.limit, actor.fn, where)
            _refuse_twice([each.key for each in wanted], where)
            if wanted and options.get("log_job") is False:
                raise ConfigurationError(f"{where} has {name}, which needs log_job")

    def _warn_of_wrapper(self, function: Any, where: str) -> None:
        """Say that an actor's secrets may not be recognised, if that is so."""
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
        """Refuse to send a message that asks for a key and for no row to hold it by.

        Raises:
          ConfigurationError: If it does.
        """
        if option(broker, message, "log_job", default=True) or is_move():
            return
        frozen = SECTION in message.options or UNIQUE in message.options
        if not frozen and (name := _key_option(broker, message)) is not None:
            raise ConfigurationError(
                f"message {message.message_id!r} of actor {message.actor_name!r} has "
                f"log_job=False and {name}, which needs log_job"
            )

    def bind(self, broker: Broker, message: AnyMessage, *, begins: bool = False) -> bool:
        """Check a message's options, and make the keys that it is bound to, once.

        A copy of a message under an id of its own is another message.  What an actor's ``send()``
        sends is refused if it cannot be used; any other message was made elsewhere, and is made
        fit instead.

        Parameters:
          broker: Where its actor is declared.
          message: The message.
          begins: Whether its job is to begin now, so that callables are asked for their limits.

        Returns:
          Whether the message was bound to a key that it is unique by just now.

        Raises:
          ConfigurationError: If they cannot be used, or a key cannot be made.
        """
        message = bare(message)
        where = f"message {message.message_id!r} of actor {message.actor_name!r}"
        if message.options.keys() & _CHECKED:
            sent = options_sent()
            if sent is not None:
                self._joblog.core.check_job_type(sent.get("job_type"), where)
                check_labels(sent, where)
            self.fit(broker, message, frozen_only=sent is not None)
        self._bind_to_needs(broker, message, where, begins=begins)
        return self._bind_to_unique(broker, message, where)

    def _bind_to_needs(self, broker: Broker, message: Any, where: str, *, begins: bool) -> None:
        """Make the keys of what a message's job needs before it may run."""
        options = message.options
        bound, own = options.get(SECTION), options.get("exclusive")
        wanted = _wanted(Exclusive, option(broker, message, "exclusive"), where)
        is_new = bound is None or _is_of_another(bound, message)
        if not wanted:
            if bound is not None and is_new:
                # Who copied it does not know its actor, so that its keys stay.
                options[SECTION] = bound | {BOUND_FOR: message.message_id}
            return
        if own is not None and any(callable(each.limit) for each in wanted):
            raise ConfigurationError(
                f"{where} has a limit of its own that is a callable, which cannot travel with it: "
                "declare it with the actor, or send a number"
            )
        pairs = paired([] if is_new else entries_of(bound), wanted)
        entries = [self._entry(broker, message, *pair, where, begins=begins) for pair in pairs]
        _refuse_twice([entry["key"] for entry in entries], where)
        # Keys are made once; all else is as the code that runs says.
        made_for = message.message_id if is_new else bound.get(BOUND_FOR)
        options[SECTION] = bound_to(entries) | ({} if made_for is None else {BOUND_FOR: made_for})
        if is_new and own is not None:
            # No encoder need know our classes; a new run of the job makes the same keys.
            mine = [each | {"key": _literal(each["key"])} for each in entries]
            options["exclusive"] = mine if len(mine) > 1 else mine[0]

    def _entry(
        self,
        broker: Broker,
        message: Any,
        wanted: Entry | None,
        before: dict[str, Any] | None,
        where: str,
        *,
        begins: bool,
    ) -> dict[str, Any]:
        """Return an entry that a message is bound to, as it is by the running code."""
        if wanted is None:
            # What the code needs no more stays as it was.
            return before or {}
        key = self._key(broker, message, wanted.key, where) if before is None else before["key"]
        limit: Any = wanted.limit
        if callable(limit):
            limit = None if before is None else before.get("limit")
            actor = actor_of(broker, message)
            if begins and actor is not None:
                limit = limit_asker(wanted.limit, actor.fn, where)(*message.args, **message.kwargs)
        return carried(wanted, key, limit)

    def _bind_to_unique(self, broker: Broker, message: Any, where: str) -> bool:
        """Make the key that a message is unique by; return whether it is a new one."""
        options = message.options
        bound = options.get(UNIQUE)
        if bound is not None and not _is_of_another(bound, message):
            return False
        wanted: list[Unique] = _wanted(Unique, option(broker, message, "unique"), where)
        if not wanted:
            if bound is None:
                return False
            # Who copied it does not know its actor, so that its key stays.
            options[UNIQUE] = bound | {BOUND_FOR: message.message_id}
            return True
        [unique] = wanted
        try:
            key = self._key(broker, message, unique.key, where)
        except ConfigurationError as e:
            if options_sent() is not None:
                raise
            # What is unique by no key is not unique, and runs.
            _note(options, str(e))
            return False
        options[UNIQUE] = asdict(replace(unique, key=key)) | {BOUND_FOR: message.message_id}
        options.pop(DUPLICATE, None)
        if options.get("unique") is not None:
            options["unique"] = asdict(replace(unique, key=_literal(key)))
        return True

    def fit(self, broker: Broker, message: AnyMessage, *, frozen_only: bool = False) -> None:
        """Make fit what a message is bound to, in its own options, and note there what was not.

        What is unique by a key that cannot be read is not unique.  A section is its actor's then;
        of an actor without one the job is dead, as nobody knows whom it is to keep out.
        """
        message = bare(message)
        options, actor, lost = message.options, actor_of(broker, message), ""
        for each, is_ours in ((MALFORMED, _is_malformed), (DUPLICATE, _is_duplicate)):
            if each in options and not is_ours(options):
                _note(options, f"{each}={shown(options.pop(each))} is left aside")
        for name, frozen, kind in _BONDS:
            for each in (frozen,) if frozen_only else (frozen, name):
                if is_fit_bond(kind, options.get(each), actor, made=each == frozen):
                    continue
                odd = f"{each}={shown(options.pop(each))}{_UNREADABLE}"
                _note(options, odd)
                lost = lost or (odd if kind is Exclusive else "")
        if lost and SECTION not in options and option(broker, message, "exclusive") is None:
            options[MALFORMED] = lost

    def plan(self, broker: Broker, message: AnyMessage) -> Plan:
        """Return what the log does with a message: its actor's plan, or one of its own."""
        message = bare(message)
        actor = actor_of(broker, message)
        if actor is None or not is_plain(message):
            return self._plan_of(broker, message)
        key = actor, len(broker.middleware)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan_of_actor(broker, actor)
        return plan

    def _plan_of(self, broker: Broker, message: Any) -> Plan:
        start = option(broker, message, "start", self._start)
        interruptions = option(broker, message, "max_interruptions")
        is_bound = (
            _key_option(broker, message) is not None
            or SECTION in message.options
            or UNIQUE in message.options
        )
        level = option(broker, message, "log_lines", self._lines_level)
        try:
            lines_level = check_level(level, "log_lines")
        except ConfigurationError:
            # Its sender gets an error; a label never decides whether a job runs.
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
        """Return the plan of an actor, with what all rows of its plain messages have."""
        name = actor.actor_name
        sample: Message[Any] = Message(actor.queue_name, name, (), {}, {}, "sample", now())
        plan = self._plan_of(broker, sample)
        row = self._row_in_full(broker, sample)
        dynamic = any(callable(field.default) for field in self.own_fields.values())
        if dynamic or row["note"] is not None:
            return plan
        redactor = self._joblog.core.redactor
        names = self.arguments.positional(broker, name)
        by_names = redactor.goes_by_names and not any(map(redactor.is_secret, names))
        reader = self._users.get(name)
        return replace(
            plan,
            row=row,
            has_user=reader is not None,
            is_secret=redactor.is_secret if by_names and self._joblog.core.store_args else None,
        )

    def row(self, broker: Broker, message: AnyMessage, plan: Plan | None = None) -> dict[str, Any]:
        """Return the columns that a message alone decides.

        Parameters:
          broker: Where its actor is declared.
          message: The message.
          plan: Its plan, if that is known.
        """
        message = bare(message)
        if plan is None:
            plan = self.plan(broker, message)
        if plan.row is None or plan.is_secret is None or plan.is_bound:
            return self._row_in_full(broker, message)
        arguments = plain_arguments(message.args, message.kwargs, plan.is_secret)
        if arguments is None:
            return self._row_in_full(broker, message)
        options, instant = message.options, now()
        row = {**plan.row, **arguments}
        row["jid"] = message.message_id
        row["queue"] = message.queue_name.removesuffix(DELAY_SUFFIX)
        row["attempt"] = options.get("retries", 0) + 1
        row["enqueued_at"] = message.message_timestamp
        row["created_at"] = row["updated_at"] = instant
        if PARENT in options or ROOT in options or REPLAY_OF in options:
            row |= _family(options)
        if (trace_id := current_trace_id()) is not None:
            row["trace_id"] = trace_id
        if plan.has_user:
            notes: list[str] = []
            try:
                row |= self._user(broker, message, notes)
            except Exception:  # noqa: BLE001
                # The user's own callable: the row in full has a note of its error.
                return self._row_in_full(broker, message)
            if notes:
                return self._row_in_full(broker, message)
        return row

    def _row_in_full(self, broker: Broker, message: Any) -> dict[str, Any]:
        if message.options.keys() & _CHECKED:
            self.fit(broker, message)
        options = message.options
        instant = now()
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
        row |= self._arguments(broker, message, notes)
        for fill in (self._user, *self._fillers):
            try:
                row |= fill(broker, message, notes)
            except Exception as e:  # noqa: BLE001
                # The user's own callable or column: the job must not notice.
                text = self.arguments.redactor(broker, message, row).error(message_of(e))
                notes.append(f"a column of {row['actor']} could not be filled: {text}")
                self._logger.warning("Job %s: %s", row["jid"], notes[-1])
        row["note"] = clean("; ".join(notes), 1000) if notes else None
        return row

    def _odd(self, broker: Broker, message: Any, row: dict[str, Any]) -> list[str]:
        """Return notes on what of a message is not on its row as it was sent."""
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

    def _arguments(self, broker: Broker, message: Any, notes: list[str]) -> dict[str, Any]:
        try:
            columns, note = self.arguments.columns(broker, message)
        except Exception as e:  # noqa: BLE001
            # No argument's own code, and no odd shape of a message, keeps a job from its row.
            note = f"its arguments could not be read: {message_of(e)}"
            columns = {"withheld": clean_optional(note)}
        if note:
            notes.append(note)
        return columns

    def _own_filler(self, name: str, field: Any) -> Callable[..., dict[str, Any]]:
        """Return what fills a column of a model of the user's own."""

        def fill(broker: Broker, message: Any, notes: list[str]) -> dict[str, Any]:
            value = option(broker, message, name)
            stored = field.db_value(default_of(field) if value is None else value)
            bits = _BITS.get(field.field_type)
            if bits is not None and stored is not None:
                # Some databases would refuse it, and with it the row.
                if not isinstance(stored, int) or not -(2**bits) <= stored < 2**bits:
                    raise ValueError(f"{name}={shown(value)} is no number of its column")
            elif isinstance(stored, str):
                stored, whole = clean_optional(stored, getattr(field, "max_length", None)), stored
                if stored != whole:
                    notes.append(f"{name} {shown(whole)} is kept as {shown(stored)}")
            return {field.column_name: stored}

        return fill

    def _key(self, broker: Broker, message: AnyMessage, key: Any, where: str) -> str:
        try:
            function = broker.get_actor(message.actor_name).fn
        except ActorNotFound:
            # A sender that does not know the actor says the key itself.
            return fold_key(str(key))
        try:
            make = key_maker(key, function, where)
            is_literal = isinstance(key, str) and "{" not in key
            return fold_key(self.arguments.key(broker, message, make, is_literal=is_literal))
        except ConfigurationError:
            raise
        except Exception as e:
            text = self.arguments.redactor(broker, message).error(message_of(e))
            raise ConfigurationError(f"{where}: its key could not be made: {text}") from e

    def _user(self, broker: Broker, message: AnyMessage, notes: list[str]) -> dict[str, Any]:
        """Return the columns of the user."""
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
    """Return the columns of the jobs that a message comes from."""
    columns = ((PARENT, "parent_jid"), (ROOT, "root_jid"), (REPLAY_OF, "replay_of"))
    return {c: fold_jid(options[name]) for name, c in columns if options.get(name) is not None}


def need_in(broker: Broker, message: AnyMessage) -> Need | None:
    """Return what a message that was put back waits for, by the limit of the running code."""
    bound, key = message.options.get(SECTION), message.options.get(WAITS)
    if key is None:
        return None
    try:
        wanted = _wanted(Exclusive, option(broker, message, "exclusive"), "")
        for code, entry in paired(entries_of(bound), wanted):
            # An earlier version does not say for which it waits: it knew of one alone.
            if entry is not None and (key is True or entry["key"] == key):
                static = code is not None and not callable(code.limit)
                says = {"limit": code.limit, "is_asked": False} if code and static else {}
                [need] = needs_of(entry | says)
                is_fit = isinstance(need.key, str) and isinstance(need.limit, int)
                return need if is_fit else None
    except (AttributeError, ConfigurationError, KeyError, TypeError):
        # Its start says what becomes of it.
        return None
    return None


def _is_of_another(bound: Any, message: Any) -> bool:
    """Return whether what a message is bound to was made for the message it is a copy of."""
    made_for = bound.get(BOUND_FOR) if isinstance(bound, dict) else None
    return made_for is not None and made_for != message.message_id


def _max_retries(broker: Broker, message: AnyMessage) -> int | None:
    retries = next((m for m in broker.middleware if isinstance(m, Retries)), None)
    if retries is None:
        return 0
    # As Retries looks it up: None on a message means no limit, whatever its actor has.
    actor = actor_of(broker, message)
    declared = {} if actor is None else actor.options
    default = declared.get("max_retries", retries.max_retries)
    return as_int(message.options.get("max_retries", default))


#: The bits of numbers that a column of a model of the user's own holds, beside the sign.
_BITS = {"AUTO": 31, "BIGAUTO": 63, "BIGINT": 63, "INT": 31, "SMALLINT": 15}
#: What a message may be bound to: the option, how it is frozen, and its class.
_BONDS: tuple[tuple[str, str, Any], ...] = (
    ("exclusive", SECTION, Exclusive),
    ("unique", UNIQUE, Unique),
)
_CHECKED = LABELS | {"exclusive", "unique", SECTION, UNIQUE, MALFORMED, DUPLICATE}
#: How it is said that what a message is bound to was not fit.
_UNREADABLE = " cannot be read"


def _is_malformed(options: Mapping[str, Any]) -> bool:
    """Return whether a message says by a word of ours that its section is not known."""
    text = options[MALFORMED]
    names = SECTION, "exclusive"
    return (
        isinstance(text, str)
        and text.endswith(_UNREADABLE)
        and text.startswith(tuple(f"{name}=" for name in names))
    )


def _is_duplicate(options: Mapping[str, Any]) -> bool:
    """Return whether a message says by a word of ours that another one has its key."""
    return isinstance(options[DUPLICATE], str) and options.get(UNIQUE) is not None


def _note(options: dict[str, Any], text: str) -> None:
    """Add to what a message says of itself for its row."""
    options[NOTE] = "; ".join(filter(None, (clean_optional(options.get(NOTE)), clean(text, 300))))


def is_fit_bond(kind: Any, value: Any, actor: Any, *, made: bool) -> bool:
    """Return whether an option says what a job needs, or is unique by, in a way that can be used.

    Parameters:
      kind: :class:`Exclusive`, for all that a job needs, or :class:`Unique`.
      value: The option.
      actor: The message's actor, if it is declared here.
      made: Whether its keys must have been made already.
    """
    if value is None or (value is False and not made):
        return True
    try:
        if not made:
            makers = [each.key for each in _wanted(kind, value, "")]
            return actor is None or all(key_maker(key, actor.fn, "") for key in makers)
        entries = [value] if kind is Unique else entries_of(value)
        keys = [_made_key(kind if kind is Unique else kind_of(each), each) for each in entries]
        return len({*keys}) == len(entries) > 0
    except Exception:  # noqa: BLE001
        # Of another shape: a newer version's, or another producer's.
        return False


def _made_key(kind: Any, entry: dict[str, Any]) -> str:
    """Return the key of an entry that was made.

    Raises:
      Exception: If it is none, or anything else of the entry cannot be used.
    """
    known = {field.name: entry[field.name] for field in fields(kind) if field.name in entry}
    if kind is not Unique and known.get("limit", 1) in (None, 0):
        # A callable's answer, or one that it has not given yet.
        known["limit"] = 1
    key = kind(**known).key
    if not isinstance(key, str) or key != fold_key(key):
        raise ConfigurationError(f"{shown(key)} is no key")
    return key


def is_near(value: Any, kept: Any) -> bool:
    """Return whether a value was kept as it was, but for a fraction of a millisecond."""
    if isinstance(value, float) and isinstance(kept, int):
        return abs(value - kept) < 1
    return is_same(value, kept)


def _wanted(kind: Any, value: Any, where: str) -> list[Any]:
    """Return an option's value as all that a job needs, or as the one that it is unique by."""
    if value is None or value is False:
        return []
    if kind is Exclusive and isinstance(value, (list, tuple)):
        return [each for one in value for each in _wanted_one(kind, one, where)]
    return _wanted_one(kind, value, where)


def _wanted_one(kind: Any, value: Any, where: str) -> list[Any]:
    if isinstance(value, kind) or (kind is Exclusive and isinstance(value, Rate)):
        return [value]
    if isinstance(value, str) or callable(value):
        return [kind(value)]
    if isinstance(value, dict):
        try:
            return [(Rate if kind is Exclusive and "per" in value else kind)(**value)]
        except TypeError as e:
            raise ConfigurationError(f"{where} has {value!r}: {e}") from e
    more = ", or Rate(...), or a list of them" if kind is Exclusive else ""
    raise ConfigurationError(
        f"{where} has {kind.__name__.lower()}={value!r}: a key or {kind.__name__}(...) is needed"
        f"{more}"
    )


def _refuse_twice(keys: Sequence[Any], where: str) -> None:
    """Refuse two entries with one key: the job would keep itself out."""
    texts = [key for key in keys if isinstance(key, str)]
    for key in texts:
        if texts.count(key) > 1:
            raise ConfigurationError(f"{where} needs the key {key!r} twice: give each its own")


def _literal(key: str) -> str:
    """Return the format that makes a key of any arguments."""
    return key.replace("{", "{{").replace("}", "}}")


def _user_reader(job_user: Any, function: Any, where: str) -> Callable[[Any], Any]:
    """Return what reads the user's id from a message of this actor."""
    if callable(job_user):
        return lambda message: job_user(*message.args, **message.kwargs)
    parameters = parameters_of(function)
    if not isinstance(job_user, str) or not parameters.accepts(job_user):
        raise ConfigurationError(
            f"{where} has job_user={job_user!r}, which is none of its parameters "
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
