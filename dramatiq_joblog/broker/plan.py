"""What the log does with the messages of one actor, computed once.

A message with its own options, or with unusual values, is processed in full instead.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.locking.needs import kind_of
from dramatiq_joblog.locking.options import Exclusive
from dramatiq_joblog.payload.sanitize import MAX_JID

from .deliveries import STAMP
from .options import BOUND_FOR, SECTION, UNIQUE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Options that do not affect what the log does with a message: its delivery, attempt and family;
#: and its bonds, which are checked separately.
PLAIN_OPTIONS = frozenset(
    {
        STAMP,
        "joblog_parent",
        "joblog_replay_of",
        "joblog_root",
        "joblog_section",
        "joblog_unique",
        "redis_message_id",
        "requeue_timestamp",
        "retries",
        "traceback",
    }
)

#: Integers below this are exact in every JSON parser.
_MAX_NUMBER = 2**53
#: Instants up to the year 5138, in milliseconds since 1970.
_MAX_MILLIS = 10**14
#: Text that cannot contain a secret with its name, and that every database can store.
_HARMLESS = re.compile(r"[A-Za-z0-9_.@/+-]{0,200}\Z")

#: A key that is stored unchanged and cannot contain a secret.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.:/+-]{1,190}\Z")

_LISTS = (tuple, list)

_encode = json.JSONEncoder(allow_nan=False).encode


@dataclass(frozen=True)
class Shape:
    """The frozen bonds of all plain messages of an actor, except for the keys."""

    #: The keys that their jobs need; None for none.
    section: Mapping[str, Any] | None = None
    #: Their unique key; None for none.
    unique: Mapping[str, Any] | None = None
    #: The functions that make the keys from the arguments, by option.
    makers: Mapping[str, Callable[..., str]] = field(default_factory=dict)
    #: Whether they call code of the application.
    calls_code: bool = False

    @property
    def is_one_section(self) -> bool:
        """Whether their jobs need exactly one exclusive section, and nothing else."""
        section = self.section
        if section is None or self.unique is not None:
            return False
        return kind_of(section) is Exclusive and section["limit"] == 1

    def fits(self, message: Any) -> bool:
        """Return whether a message has exactly these bonds, with keys made for this message."""
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
        # True from another producer equals 1, but is not a number for every encoder.
        return bound == made and [*map(type, bound.values())] == [*map(type, made.values())]

    def made_for(self, message: Any) -> dict[str, Any] | None:
        """Return the bonds of a message with plain arguments; None if a key is not plain."""
        made: dict[str, Any] = {}
        for name, shape in ((SECTION, self.section), (UNIQUE, self.unique)):
            if shape is None:
                continue
            try:
                key = self.makers[name](*message.args, **message.kwargs)
            except Exception:  # noqa: BLE001
                # Processing in full reports it.
                return None
            if _PLAIN_KEY.match(key) is None:
                return None
            made[name] = {**shape, "key": key, BOUND_FOR: message.message_id}
        return made


@dataclass(frozen=True)
class Plan:
    """What an actor's options, or a message's own, determine about a job."""

    #: Whether the job has a row.
    is_logged: bool
    #: Whether it is exclusive or unique.
    is_bound: bool
    #: The lowest level of log lines that are kept; None for none.
    lines_level: int | None
    #: How many of its runs may be interrupted; None for no limit.
    max_interruptions: int | None
    rerun: bool | None
    #: Whether its start may be written late.
    starts_soon: bool
    #: The columns common to all rows; None if too few are.
    row: Mapping[str, Any] | None = None
    #: The bonds of its plain messages, except for the keys; None if they vary.
    shape: Shape | None = None
    #: Whether a user is read from each message.
    has_user: bool = False
    #: Whether that calls code of the application, which must not hold up the consumer.
    calls_code: bool = False
    #: Returns whether a name is a secret's; None if arguments need other checks, or are not stored.
    is_secret: Callable[[str], bool] | None = None

    @property
    def may_start_ahead(self) -> bool:
        """Whether the start may be committed before a thread takes the message.

        Starts that may be refused, or that are counted, are committed by the run's own thread.
        """
        plain = self.row is not None and self.is_secret is not None
        bound = self.is_bound and not (self.shape is not None and self.shape.is_one_section)
        exact = bound or self.starts_soon or self.max_interruptions is not None
        return self.is_logged and plain and not (exact or self.calls_code)

    def bind(self, message: Any) -> bool:
        """Make the keys of a plain message that has none yet.

        Returns:
          Whether it now has the actor's bonds; False if it needs closer checks.
        """
        shape, options = self.shape, message.options
        if shape is None:
            return False
        if shape.fits(message):
            return True
        if shape.calls_code or SECTION in options or UNIQUE in options:
            return False
        if self.is_secret is None or not _are_plain(message.args, message.kwargs, self.is_secret):
            return False
        made = shape.made_for(message)
        if made is None:
            return False
        options.update(made)
        return True


def is_plain(message: Any) -> bool:
    """Return whether a message has no own options and no unusual values."""
    options = message.options
    jid, retries = message.message_id, options.get("retries", 0)
    return (
        options.keys() <= PLAIN_OPTIONS
        and type(jid) is str
        and len(jid) <= MAX_JID
        and _HARMLESS.match(jid) is not None
        and type(retries) is int
        and 0 <= retries < _MAX_NUMBER
        and type(message.queue_name) is str
        and _HARMLESS.match(message.queue_name) is not None
        and type(message.message_timestamp) is int
        and 0 < message.message_timestamp < _MAX_MILLIS
    )


def plain_arguments(
    args: Sequence[Any], kwargs: Mapping[str, Any], is_secret: Callable[[str], bool]
) -> dict[str, str] | None:
    """Return the stored form of plain arguments; None if any needs closer checks."""
    if not _are_plain(args, kwargs, is_secret):
        return None
    return {"args": _encode(list(args)), "kwargs": _encode(kwargs) if kwargs else "{}"}


def _are_plain(
    args: Sequence[Any], kwargs: Mapping[str, Any], is_secret: Callable[[str], bool]
) -> bool:
    if type(args) not in _LISTS or type(kwargs) is not dict or not all(map(_is_harmless, args)):
        return False
    for name, value in kwargs.items():
        if type(name) is not str or not _HARMLESS.match(name) or is_secret(name):
            return False
        if not _is_harmless(value):
            return False
    return True


def _is_harmless(value: Any) -> bool:
    kind = type(value)
    if kind is int:
        return bool(-_MAX_NUMBER < value < _MAX_NUMBER)
    if kind is str:
        return _HARMLESS.match(value) is not None
    return value is None or kind is bool
