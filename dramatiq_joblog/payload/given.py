"""Validate arguments of callers; each error names the parameter and the value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dramatiq_joblog.errors import ConfigurationError

from .values import MAX_INT, shown


def given_list(name: str, value: Any, of: str) -> list[Any]:
    """Return several values as a list; a single string is refused, not split into letters.

    Parameters:
      name: The parameter.
      value: What was given.
      of: What it is a list of.

    Raises:
      ConfigurationError: If it is not a list.
    """
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return list(value)
    raise ConfigurationError(f"{name}={shown(value)} is not a list: give a list of {of}")


def given_mapping(name: str, value: Any, of: str) -> Mapping[Any, Any]:
    """Return a mapping.

    Raises:
      ConfigurationError: If it is not a mapping.
    """
    if isinstance(value, Mapping):
        return value
    raise ConfigurationError(f"{name}={shown(value)} is not a mapping: give {of}")


def given_text(name: str, value: Any, what: str) -> str:
    """Return a text that is not empty.

    Raises:
      ConfigurationError: If it is not a text, or is empty.
    """
    if isinstance(value, str) and value.strip():
        return value
    raise ConfigurationError(f"{name}={shown(value)} must be a text: give {what}")


def given_optional(name: str, value: Any) -> str | None:
    """Return a text for people, or None.

    Raises:
      ConfigurationError: If it is neither.
    """
    if value is None or isinstance(value, str):
        return value
    raise ConfigurationError(f"{name}={shown(value)} must be a text, or None")


def is_whole(value: Any, least: int, most: int) -> bool:
    """Return whether a value is a whole number from *least* to *most*."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def given_whole(name: str, value: Any, *, least: int = 1, most: int = MAX_INT) -> int:
    """Return a whole number from *least* to *most*.

    Raises:
      ConfigurationError: If it is not such a number.
    """
    if is_whole(value, least, most):
        return int(value)
    raise ConfigurationError(
        f"{name}={shown(value)} must be a whole number from {least:,} to {most:,}"
    )


def given_flag(name: str, value: Any) -> bool:
    """Return True or False.

    Raises:
      ConfigurationError: If it is neither.
    """
    if isinstance(value, bool):
        return value
    raise ConfigurationError(f"{name}={shown(value)} must be True or False")


def given_callable(name: str, value: Any, of: str) -> Any:
    """Return a callable, or None.

    Raises:
      ConfigurationError: If it is neither.
    """
    if value is None or callable(value):
        return value
    raise ConfigurationError(f"{name}={shown(value)} cannot be called: give a function of {of}")
