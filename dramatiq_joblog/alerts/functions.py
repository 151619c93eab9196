"""Checks of functions that the application passes in."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def check_function(what: str, function: Any, *arguments: str) -> None:
    """Refuse a function that could not be called as it will be.

    Parameters:
      what: Names the option, as ``on_dead=``.
      function: What was given.
      arguments: Name what it will be given, as ``a job``.

    Raises:
      ConfigurationError: If it cannot be called with that, or calling it would do nothing.
    """
    given = " and ".join(arguments)
    if not callable(function):
        raise ConfigurationError(
            f"{what} is {function!r}, which cannot be called: give a function that takes {given}"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"{what} is the generator {_name(function)}, and calling it does nothing: remove "
            "the yield"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some of those that are written in C do not say what they take.
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        exactly = "one argument" if len(arguments) == 1 else f"{len(arguments)} arguments"
        raise ConfigurationError(
            f"{what} is {_name(function)}{signature}, which cannot be called with {given}: let it "
            f"take exactly {exactly}"
        ) from None


def call_function(function: Callable[[Any], Any], argument: Any) -> None:
    """Call a function to its end; a coroutine runs in an event loop of its own, on this thread."""
    result = function(argument)
    if inspect.isawaitable(result):
        asyncio.run(_end_of(result))


async def _end_of(result: Awaitable[Any]) -> None:
    await result


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__name__)
