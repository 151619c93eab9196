"""Bonds: the keys that a message's job needs, and its unique key, stored in its options."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from dramatiq.errors import ActorNotFound

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.locking.locks import fold_key
from dramatiq_joblog.locking.needs import bound_to, carried, entries_of, kind_of, needs_of, paired
from dramatiq_joblog.locking.options import Exclusive, Rate, Unique, key_maker, limit_asker
from dramatiq_joblog.payload.sanitize import clean, clean_optional, message_of
from dramatiq_joblog.payload.values import shown

from .labels import LABELS, check_labels, options_sent
from .options import (
    BOUND_FOR,
    DUPLICATE,
    MALFORMED,
    NOTE,
    SECTION,
    UNIQUE,
    WAITS,
    actor_of,
    bare,
    option,
)
from .plan import Shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dramatiq import Actor, Broker

    from dramatiq_joblog.locking.needs import Need
    from dramatiq_joblog.locking.options import Entry
    from dramatiq_joblog.recording.log import Log, Typed

    from .arguments import Arguments
    from .options import AnyMessage
    from .plan import Plan

#: The kinds of bonds: the option, the option of its frozen form, and its class.
_BONDS: tuple[tuple[str, str, Any], ...] = (
    ("exclusive", SECTION, Exclusive),
    ("unique", UNIQUE, Unique),
)
_CHECKED = LABELS | {"exclusive", "unique", SECTION, UNIQUE, MALFORMED, DUPLICATE}
#: The end of a note about a bond that cannot be used.
_UNREADABLE = " cannot be read"


class Bonds:
    """Binds messages to keys, for one log.

    Parameters:
      joblog: The log.
      arguments: Makes keys from a message's arguments.
    """

    def __init__(self, joblog: Log[Typed], arguments: Arguments) -> None:
        self._joblog = joblog
        self._arguments = arguments

    def declare(self, actor: Actor[Any, Any], where: str) -> None:
        """Refuse an actor with bonds that cannot be used.

        Raises:
          ConfigurationError: If its options are wrong.
        """
        options = actor.options
        for name, kind in (("exclusive", Exclusive), ("unique", Unique)):
            wanted = _wanted(kind, options.get(name), where)
            for each in wanted:
                key_maker(each.key, actor.fn, where)
                if not isinstance(each, Unique):
                    limit_asker(each.limit, actor.fn, where)
            _refuse_twice([each.key for each in wanted], where)
            if wanted and options.get("log_job") is False:
                raise ConfigurationError(f"{where} has {name}, which needs log_job")

    def shape(self, actor: Actor[Any, Any]) -> Shape | None:
        """Return the bonds of all plain messages of an actor; None if they vary."""
        needs = _wanted(Exclusive, actor.options.get("exclusive"), "")
        uniques: list[Unique] = _wanted(Unique, actor.options.get("unique"), "")
        if len(needs) > 1 or any(callable(each.limit) for each in needs):
            return None
        wanted = [(SECTION, each) for each in needs] + [(UNIQUE, each) for each in uniques]
        return Shape(
            section=carried(needs[0], "", needs[0].limit) if needs else None,
            unique=_carried(uniques[0], "") if uniques else None,
            makers={name: key_maker(e.key, actor.fn, "") for name, e in wanted},
            calls_code=any(callable(each.key) for _, each in wanted),
        )

    def bind(
        self,
        broker: Broker,
        message: AnyMessage,
        plan: Plan | None = None,
        *,
        begins: bool = False,
    ) -> bool:
        """Check a message's options, and make its keys, once.

        A copy of a message with a new ID is a different message.  Unusable options are refused if
        an actor's ``send()`` sends the message; a message from elsewhere is sanitised instead.

        Parameters:
          broker: Where its actor is declared.
          message: The message.
          plan: Its plan, if already known.
          begins: Whether its job is about to begin, so that callable limits are evaluated.

        Returns:
          Whether this call made the message's unique key.

        Raises:
          ConfigurationError: If the options cannot be used, or a key cannot be made.
        """
        message = bare(message)
        is_new = UNIQUE not in message.options
        if plan is not None and plan.bind(message):
            return is_new and UNIQUE in message.options
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
        """Make the keys that a message's job needs before it may run."""
        options = message.options
        bound, own = options.get(SECTION), options.get("exclusive")
        wanted = _wanted(Exclusive, option(broker, message, "exclusive"), where)
        is_new = bound is None or _is_of_another(bound, message)
        if not wanted:
            if bound is not None and is_new:
                # The process that copied it does not know its actor, so its keys stay.
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
        # Keys are made once; all else follows the running code.
        made_for = message.message_id if is_new else bound.get(BOUND_FOR)
        options[SECTION] = bound_to(entries) | ({} if made_for is None else {BOUND_FOR: made_for})
        if is_new and own is not None:
            # Encoders need not support our classes, and a new run of the job makes the same keys.
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
        """Return a frozen entry, updated to the running code."""
        if wanted is None:
            # An entry that the code no longer has stays unchanged.
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
        """Make a message's unique key; return whether it is new."""
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
            # Without a key the message is not unique, and runs.
            _note(options, str(e))
            return False
        options[UNIQUE] = _carried(unique, key) | {BOUND_FOR: message.message_id}
        options.pop(DUPLICATE, None)
        if options.get("unique") is not None:
            options["unique"] = _carried(unique, _literal(key))
        return True

    def check(self, broker: Broker, message: AnyMessage) -> None:
        """Sanitise a message's bonds, like :meth:`fit`, if it has any."""
        if message.options.keys() & _CHECKED:
            self.fit(broker, message)

    def fit(self, broker: Broker, message: AnyMessage, *, frozen_only: bool = False) -> None:
        """Sanitise a message's bonds in its options, with a note there on what was removed.

        An unreadable unique key is dropped.  An unreadable section is replaced by the actor's; if
        the actor has none, the job is dead, because it is unknown what it excludes.
        """
        message = bare(message)
        options, actor, lost = message.options, actor_of(broker, message), ""
        for each, is_ours in ((MALFORMED, _is_malformed), (DUPLICATE, _is_duplicate)):
            if each in options and not is_ours(options):
                _note(options, f"{each}={shown(options.pop(each))} is ignored")
        for name, frozen, kind in _BONDS:
            for each in (frozen,) if frozen_only else (frozen, name):
                if is_fit_bond(kind, options.get(each), actor, made=each == frozen):
                    continue
                odd = f"{each}={shown(options.pop(each))}{_UNREADABLE}"
                _note(options, odd)
                lost = lost or (odd if kind is Exclusive else "")
        if lost and SECTION not in options and option(broker, message, "exclusive") is None:
            options[MALFORMED] = lost

    def _key(self, broker: Broker, message: AnyMessage, key: Any, where: str) -> str:
        try:
            function = broker.get_actor(message.actor_name).fn
        except ActorNotFound:
            # A sender that does not know the actor gives the key itself.
            return fold_key(str(key))
        try:
            make = key_maker(key, function, where)
            is_literal = isinstance(key, str) and "{" not in key
            return fold_key(self._arguments.key(broker, message, make, is_literal=is_literal))
        except ConfigurationError:
            raise
        except Exception as e:
            text = self._arguments.redactor(broker, message).error(message_of(e))
            raise ConfigurationError(f"{where}: its key could not be made: {text}") from e


def need_in(broker: Broker, message: AnyMessage) -> Need | None:
    """Return what a message that was put back waits for, with the limit of the running code."""
    bound, key = message.options.get(SECTION), message.options.get(WAITS)
    if key is None:
        return None
    try:
        wanted = _wanted(Exclusive, option(broker, message, "exclusive"), "")
        for code, entry in paired(entries_of(bound), wanted):
            if entry is not None and entry["key"] == key:
                static = code is not None and not callable(code.limit)
                says = {"limit": code.limit, "is_asked": False} if code and static else {}
                [need] = needs_of(entry | says)
                if need.is_asked:
                    need = replace(need, asked_by=message.actor_name)
                is_fit = isinstance(need.key, str) and isinstance(need.limit, int)
                return need if is_fit else None
    except (AttributeError, ConfigurationError, KeyError, TypeError):
        # Its start handles the error.
        return None
    return None


def _is_of_another(bound: Any, message: Any) -> bool:
    """Return whether a message's bonds were made for the message that it is a copy of."""
    made_for = bound.get(BOUND_FOR) if isinstance(bound, dict) else None
    return made_for is not None and made_for != message.message_id


def _is_malformed(options: Mapping[str, Any]) -> bool:
    """Return whether a message has our own note that its section is unknown."""
    text = options[MALFORMED]
    names = SECTION, "exclusive"
    return (
        isinstance(text, str)
        and text.endswith(_UNREADABLE)
        and text.startswith(tuple(f"{name}=" for name in names))
    )


def _is_duplicate(options: Mapping[str, Any]) -> bool:
    """Return whether a message has our own note that another message holds its key."""
    return isinstance(options[DUPLICATE], str) and options.get(UNIQUE) is not None


def _note(options: dict[str, Any], text: str) -> None:
    """Add to the note for a message's row."""
    options[NOTE] = "; ".join(filter(None, (clean_optional(options.get(NOTE)), clean(text, 300))))


def is_fit_bond(kind: Any, value: Any, actor: Any, *, made: bool) -> bool:
    """Return whether an option describes a usable bond.

    Parameters:
      kind: :class:`Exclusive` (for rates too) or :class:`Unique`.
      value: The option.
      actor: The message's actor, if it is declared here.
      made: Whether its keys must already have been made.
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
        # An unknown shape, from a newer version or another producer.
        return False


def _made_key(kind: Any, entry: dict[str, Any]) -> str:
    """Return the key of a frozen entry.

    Raises:
      Exception: If the key, or anything else in the entry, cannot be used.
    """
    known = {field.name: entry[field.name] for field in fields(kind) if field.name in entry}
    if kind is not Unique and known.get("limit", 1) in (None, 0):
        # The limit comes from a callable, which may not have been called yet.
        known["limit"] = 1
    key = kind(**known).key
    if not isinstance(key, str) or key != fold_key(key):
        raise ConfigurationError(f"{shown(key)} is not a key")
    return key


def _wanted(kind: Any, value: Any, where: str) -> list[Any]:
    """Return an option's value as a list of bonds."""
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
    """Refuse two entries with the same key: the job would block itself."""
    texts = [key for key in keys if isinstance(key, str)]
    for key in texts:
        if texts.count(key) > 1:
            raise ConfigurationError(f"{where} needs the key {key!r} twice: give each its own")


def _carried(unique: Unique, key: str) -> dict[str, Any]:
    """Return the frozen form of a unique key."""
    return {**vars(unique), "key": key}


def _literal(key: str) -> str:
    """Return the format string that yields *key* for any arguments."""
    return key.replace("{", "{{").replace("}", "}}")
