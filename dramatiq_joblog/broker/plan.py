"""What the log does with the messages of one actor, worked out once.

A message that has options of its own, or anything odd about it, is looked at in full instead.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.payload.sanitize import MAX_JID

from .deliveries import STAMP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .bonds import Shape

#: What is the same whatever the log does with a message: its delivery, its attempt, its family;
#: and what it is bound to, which is looked at by itself.
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

#: Numbers that every reader of JSON reads in the same way.
_MAX_NUMBER = 2**53
#: Instants up to the year 5138, in milliseconds since 1970.
_MAX_MILLIS = 10**14
#: A text in which no secret can stand without a name beside it, and which every database holds.
_HARMLESS = re.compile(r"[A-Za-z0-9_.@/+-]{0,200}\Z")

_LISTS = (tuple, list)

_encode = json.JSONEncoder(allow_nan=False).encode


@dataclass(frozen=True)
class Plan:
    """What an actor's options, or a message's own, say of a job."""

    #: Whether it has a row.
    is_logged: bool
    #: Whether it is exclusive or unique.
    is_bound: bool
    #: From which level on its lines are kept; None for none.
    lines_level: int | None
    #: How many of its runs may lose their worker; None for any number.
    max_interruptions: int | None
    rerun: bool | None
    #: Whether its start may be written late.
    starts_soon: bool
    #: What is the same on each of its rows; None if too little is.
    row: Mapping[str, Any] | None = None
    #: What its plain messages are bound to, but for their keys; None if that varies.
    shape: Shape | None = None
    #: Whether a user is read from each message.
    has_user: bool = False
    #: Says whether a name is a secret's; None if arguments are not kept, or not by names alone.
    is_secret: Callable[[str], bool] | None = None


def is_plain(message: Any) -> bool:
    """Return whether a message is as its actor sent it, and has nothing odd about it."""
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
    """Return arguments as they are stored, if nothing of them must be looked at more closely."""
    if type(args) not in _LISTS or type(kwargs) is not dict or not all(map(_is_harmless, args)):
        return None
    if not kwargs:
        return {"args": _encode(list(args)), "kwargs": "{}"}
    for name, value in kwargs.items():
        if type(name) is not str or not _HARMLESS.match(name) or is_secret(name):
            return None
        if not _is_harmless(value):
            return None
    return {"args": _encode(list(args)), "kwargs": _encode(kwargs)}


def _is_harmless(value: Any) -> bool:
    kind = type(value)
    if kind is int:
        return bool(-_MAX_NUMBER < value < _MAX_NUMBER)
    if kind is str:
        return _HARMLESS.match(value) is not None
    return value is None or kind is bool
