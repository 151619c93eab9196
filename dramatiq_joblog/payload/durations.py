"""Durations for people."""

from __future__ import annotations

_SECOND, _MINUTE, _HOUR, _DAY = 1000, 60_000, 3_600_000, 86_400_000


def split_duration(milliseconds: float) -> tuple[str, str]:
    """Return the figures and the unit of a duration: three figures, or a clock.

    Example:
      >>> split_duration(840), split_duration(38_240), split_duration(64_000)
      (('840', 'ms'), ('38.2', 's'), ('1:04', 'min'))
    """
    value = max(0, round(milliseconds))
    if value < _SECOND:
        return str(value), "ms"
    if value < _MINUTE - 50:
        return f"{value / _SECOND:.1f}", "s"
    if (seconds := round(value / _SECOND)) < _HOUR // _SECOND:
        return f"{seconds // 60}:{seconds % 60:02}", "min"
    if (minutes := round(value / _MINUTE)) < 2 * _DAY // _MINUTE:
        return f"{minutes // 60}:{minutes % 60:02}", "h"
    days = value / _DAY
    return (f"{days:.1f}" if days < 10 else f"{days:.0f}"), "d"


def plain(milliseconds: float) -> str:
    """Return a duration in running text: ``840 ms``, ``1:04 min``."""
    return " ".join(split_duration(milliseconds))
