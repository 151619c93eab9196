"""The labels of a message, made fit to store; none of them decides whether its job runs.

Another producer may send anything under these names.  What cannot be used is left aside, the
actor's own value stands, and the row's note says so; only what a program sends by its own
actors is refused, as it is sent.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from dramatiq import Actor, Broker

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.payload.values import as_int, shown
from dramatiq_joblog.recording.log_lines import check_level

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: When the start of a run is written.
StartWritten: TypeAlias = Literal["before", "soon"]
STARTS: tuple[str, ...] = get_args(StartWritten)
#: As many callers are looked through for an actor's ``send()``.
_CALLERS = 20


def label(name: str, value: Any) -> Any:
    """Return the value of an option as it is used; None for a label that cannot be used."""
    reader = _READERS.get(name)
    if reader is None or value is None:
        return value
    try:
        return reader[0](value)
    except Exception:  # noqa: BLE001
        # Whatever it is, the actor's own value stands, and the note says so.
        return None


def odd_labels(options: Mapping[str, Any]) -> list[str]:
    """Return a note for each label that is not used as it was sent."""
    return [
        f"{name}={shown(options[name])} is left aside: {wanted} is needed"
        for name, (_, wanted) in _READERS.items()
        if options.get(name) is not None and label(name, options[name]) is None
    ]


def check_labels(options: Mapping[str, Any], where: str) -> None:
    """Refuse labels that cannot be used.

    Parameters:
      options: Of an actor or of a message.
      where: What has them, for the error's text.

    Raises:
      ConfigurationError: If there is one.
    """
    check_level(options.get("log_lines"), f"{where} has log_lines")
    if options.get("start") is not None and label("start", options["start"]) is None:
        raise ConfigurationError(
            f"{where} has start={options['start']!r}, which is not known; use one of {STARTS}"
        )
    for odd in odd_labels(options):
        raise ConfigurationError(f"{where} has {odd.replace(' is left aside', '')}")


def options_sent() -> Mapping[str, Any] | None:
    """Return the options that an actor's ``send()``, which is at work here, was given.

    What a middleware has added on the way is none of them.

    Returns:
      None if no actor is sending, or a middleware is.
    """
    frame: Any = sys._getframe(1)
    for _ in range(_CALLERS):
        if frame is None or frame.f_code is Broker.emit_after.__code__:
            return None
        if frame.f_code is Actor.send_with_options.__code__:
            return cast("Mapping[str, Any]", frame.f_locals["options"])
        frame = frame.f_back
    return None


def _job_type(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else _refuse(value)


def _lines(value: Any) -> Any:
    check_level(value, "log_lines")
    return value


def _flag(value: Any) -> bool:
    return bool(value) if isinstance(value, int) and value in (0, 1) else _refuse(value)


def _start(value: Any) -> str:
    return value if isinstance(value, str) and value in STARTS else _refuse(value)


def _count(value: Any) -> int:
    number = as_int(value)
    return number or _refuse(value)


def _refuse(value: Any) -> Any:
    raise ValueError(shown(value))


#: How each label is read, and what it must be.
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "job_type": (_job_type, "a text or a str enum member"),
    "log_job": (_flag, "True or False"),
    "log_lines": (_lines, "a level's name or number, or False"),
    "max_interruptions": (_count, "a whole number of at least 1"),
    "rerun": (_flag, "True or False"),
    "start": (_start, f"one of {STARTS}"),
}
LABELS = frozenset(_READERS)
