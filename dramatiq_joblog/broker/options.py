"""The options of messages and actors, and how one is looked up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import AgeLimit

from dramatiq_joblog.payload.values import MAX_INT, MAX_MILLIS, as_int, as_millis

from .labels import label

if TYPE_CHECKING:
    from dramatiq import Broker, Message
    from dramatiq.broker import MessageProxy

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
        or key_option(broker, message) is not None
    )


def key_option(broker: Broker, message: AnyMessage) -> str | None:
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
