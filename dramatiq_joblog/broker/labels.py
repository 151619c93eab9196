"""The labels of a message, validated; none of them decides whether its job runs.

Other producers may send anything under these names.  Unusable values are ignored in favour of the
actor's, with a note on the row.  Only what a program sends through its own actors is refused, when
it is sent.
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
#: The number of stack frames searched for an actor's ``send()``.
_CALLERS = 20


def label(name: str, value: Any) -> Any:
    """Return the normalised value of an option; None for an unusable label."""
    reader = _READERS.get(name)
    if reader is None or value is None:
        return value
    try:
        return reader[0](value)
    except Exception:  # noqa: BLE001
        # The actor's value is used instead, and the note reports it.
        return None


def odd_labels(options: Mapping[str, Any]) -> list[str]:
    """Return a note for each label that is ignored or changed."""
    return [
        f"{name}={shown(options[name])} is ignored: {wanted} is needed"
        for name, (_, wanted) in _READERS.items()
        if options.get(name) is not None and label(name, options[name]) is None
    ]


def check_labels(options: Mapping[str, Any], where: str) -> None:
    """Refuse unusable labels.

    Parameters:
      options: The options of an actor or a message.
      where: The actor or message, for the error's text.

    Raises:
      ConfigurationError: If a label is unusable.
    """
    check_level(options.get("log_lines"), f"{where} has log_lines")
    if options.get("start") is not None and label("start", options["start"]) is None:
        raise ConfigurationError(
            f"{where} has start={options['start']!r}, which is not known; use one of {STARTS}"
        )
    for odd in odd_labels(options):
        raise ConfigurationError(f"{where} has {odd.replace(' is ignored', '')}")


def options_sent() -> Mapping[str, Any] | None:
    """Return the options given to the actor's ``send()`` that is currently executing.

    Options added by middleware are not included.

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


#: The validator of each label, and a description of valid values.
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "job_type": (_job_type, "a text or a str enum member"),
    "log_job": (_flag, "True or False"),
    "log_lines": (_lines, "a level's name or number, or False"),
    "max_interruptions": (_count, "a whole number of at least 1"),
    "rerun": (_flag, "True or False"),
    "start": (_start, f"one of {STARTS}"),
}
LABELS = frozenset(_READERS)
