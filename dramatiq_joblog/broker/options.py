"""The options of messages and actors, and their lookup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dramatiq.middleware import AgeLimit

from dramatiq_joblog.payload.values import MAX_INT, MAX_MILLIS, as_int, as_millis, host_now

from .labels import label

if TYPE_CHECKING:
    from dramatiq import Broker, Message
    from dramatiq.broker import MessageProxy

    AnyMessage = Message[Any] | MessageProxy

DELAY_SUFFIX = ".DQ"
#: Our message options, which stay with a message through retries and delays.
PARENT, ROOT, REPLAY_OF = "joblog_parent", "joblog_root", "joblog_replay_of"
SECTION, UNIQUE, DUPLICATE = "joblog_section", "joblog_unique", "joblog_duplicate"
#: A note on unusable options, for the row; and why a job with an unknown section cannot run.
NOTE, MALFORMED = "joblog_note", "joblog_malformed"
#: Of a message that was put back: the key that it waits for.
WAITS = "joblog_waits"
#: In a frozen bond: the message that it was made for.
BOUND_FOR = "jid"

#: The options that actors and messages may have, in addition to the columns of a custom model.
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
    """Return the message in a worker's proxy: each access through the proxy costs a call."""
    return getattr(message, "_message", message)


def option(broker: Broker, message: AnyMessage, name: str, default: Any = None) -> Any:
    """Look up an option as in Dramatiq: the message's, the actor's, the default."""
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
    """Return whether a message's job has a row: it is to be logged, or needs a key."""
    return (
        bool(option(broker, message, "log_job", default=True))
        or key_option(broker, message) is not None
    )


def key_option(broker: Broker, message: AnyMessage) -> str | None:
    """Return the name of the option that binds a message's job to a key, or None."""
    names = ("exclusive", "unique")
    return next((name for name in names if is_given(option(broker, message, name))), None)


def is_given(key: Any) -> bool:
    """Return whether an option asks for a key; a value without a truth value does."""
    try:
        return bool(key)
    except Exception:  # noqa: BLE001
        # Its own code fails; making the key will report it.
        return True


def age_left(broker: Broker, message: AnyMessage) -> int | None:
    """Return the milliseconds until ``AgeLimit`` drops a message; None without a limit."""
    # A subclass may behave differently.
    limit = next((m for m in broker.middleware if type(m) is AgeLimit), None)
    actor = actor_of(broker, message)
    if limit is None or actor is None:
        return None
    # As in AgeLimit: an actor's None means no limit.
    given = message.options.get("max_age") or actor.options.get("max_age", limit.max_age)
    max_age, sent = as_int(given, most=MAX_MILLIS), as_millis(message.message_timestamp)
    return None if not max_age or sent is None else sent + max_age - host_now()


def attempt_of(message: Any) -> int:
    """Return the number of a message's attempt, from 1."""
    return (as_int(message.options.get("retries"), most=MAX_INT - 1) or 0) + 1


def eta_of(message: Any) -> int | None:
    """Return when a delayed message is due, in milliseconds since 1970; None if it has no eta."""
    return as_millis(message.options.get("eta"))


def throws(broker: Broker, message: AnyMessage, error: BaseException | None) -> bool:
    """Return whether a message's job is not retried after *error*, because of ``throws``."""
    wanted = option(broker, message, "throws")
    try:
        return error is not None and bool(wanted) and isinstance(error, wanted)
    except TypeError:
        # Another producer's value, which is not a class.
        return False
