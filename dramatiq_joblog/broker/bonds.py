"""Bonds: the keys that a message's job needs, and its unique key."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from dramatiq.errors import ActorNotFound

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
    needs_of,
    paired,
)
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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dramatiq import Actor, Broker

    from dramatiq_joblog.locking.needs import Entry, Need
    from dramatiq_joblog.recording.log import Log, Typed

    from .arguments import Arguments
    from .options import AnyMessage

#: What a message may be bound to: the option, how it is frozen, and its class.
_BONDS: tuple[tuple[str, str, Any], ...] = (
    ("exclusive", SECTION, Exclusive),
    ("unique", UNIQUE, Unique),
)
_CHECKED = LABELS | {"exclusive", "unique", SECTION, UNIQUE, MALFORMED, DUPLICATE}
#: A key that is stored as it is, in which nothing has to be looked for.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.:/+-]{1,190}\Z")
#: How it is said that what a message is bound to was not fit.
_UNREADABLE = " cannot be read"


@dataclass(frozen=True)
class Shape:
    """What all plain messages of an actor are bound to, but for their keys, as they carry it."""

    #: What their jobs need; None for nothing.
    section: Mapping[str, Any] | None = None
    #: What they are unique by; None for nothing.
    unique: Mapping[str, Any] | None = None

    def fits(self, message: Any) -> bool:
        """Return whether a message is bound just so, by keys that were made for itself."""
        return self._fits(message, SECTION, self.section) and self._fits(
            message, UNIQUE, self.unique
        )

    def _fits(self, message: Any, name: str, shape: Mapping[str, Any] | None) -> bool:
        bound = message.options.get(name)
        if bound is None or shape is None:
            return bound is None and shape is None
        key = bound.get("key") if type(bound) is dict else None
        if type(key) is not str or _PLAIN_KEY.match(key) is None:
            return False
        made = {**shape, "key": key, BOUND_FOR: message.message_id}
        # Another producer's True is equal to 1, and no number everywhere.
        return bound == made and [*map(type, bound.values())] == [*map(type, made.values())]


class Bonds:
    """Binds messages to keys, for one log.

    Parameters:
      joblog: The log.
      arguments: Makes keys of a message's arguments.
    """

    def __init__(self, joblog: Log[Typed], arguments: Arguments) -> None:
        self._joblog = joblog
        self._arguments = arguments

    def declare(self, actor: Actor[Any, Any], where: str) -> None:
        """Refuse an actor whose jobs could not be bound as its options say.

        Raises:
          ConfigurationError: If it is one.
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
        """Return what all plain messages of an actor are bound to; None if that varies."""
        needs = _wanted(Exclusive, actor.options.get("exclusive"), "")
        uniques: list[Unique] = _wanted(Unique, actor.options.get("unique"), "")
        if len(needs) > 1 or any(callable(each.limit) for each in needs):
            return None
        return Shape(
            section=carried(needs[0], "", needs[0].limit) if needs else None,
            unique=_carried(uniques[0], "") if uniques else None,
        )

    def bind(
        self,
        broker: Broker,
        message: AnyMessage,
        shape: Shape | None = None,
        *,
        begins: bool = False,
    ) -> bool:
        """Check a message's options, and make the keys that it is bound to, once.

        A copy of a message under an id of its own is another message.  What an actor's ``send()``
        sends is refused if it cannot be used; any other message was made elsewhere, and is made
        fit instead.

        Parameters:
          broker: Where its actor is declared.
          message: The message.
          shape: What it is bound to, but for the keys, if its actor's plan says it.
          begins: Whether its job is to begin now, so that callables are asked for their limits.

        Returns:
          Whether the message was bound to a key that it is unique by just now.

        Raises:
          ConfigurationError: If they cannot be used, or a key cannot be made.
        """
        message = bare(message)
        if shape is not None and shape.fits(message):
            return False
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
        options[UNIQUE] = _carried(unique, key) | {BOUND_FOR: message.message_id}
        options.pop(DUPLICATE, None)
        if options.get("unique") is not None:
            options["unique"] = _carried(unique, _literal(key))
        return True

    def check(self, broker: Broker, message: AnyMessage) -> None:
        """Make fit what a message is bound to, as :meth:`fit` does, if it may need that."""
        if message.options.keys() & _CHECKED:
            self.fit(broker, message)

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

    def _key(self, broker: Broker, message: AnyMessage, key: Any, where: str) -> str:
        try:
            function = broker.get_actor(message.actor_name).fn
        except ActorNotFound:
            # A sender that does not know the actor says the key itself.
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
        raise ConfigurationError(f"{shown(key)} is not a key")
    return key


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


def _carried(unique: Unique, key: str) -> dict[str, Any]:
    """Return what a message is unique by as it carries it."""
    return {**vars(unique), "key": key}


def _literal(key: str) -> str:
    """Return the format that makes a key of any arguments."""
    return key.replace("{", "{{").replace("}", "}}")
