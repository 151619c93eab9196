"""Checks of functions that the application passes in."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def check_function(what: str, function: Any, *arguments: str) -> None:
    """Refuse a function that cannot be called with the arguments that it will get.

    Parameters:
      what: The name of the option, such as ``on_dead=``.
      function: The given function.
      arguments: Describe the arguments, such as ``a job``.

    Raises:
      ConfigurationError: If it cannot be called with these, or calling it would do nothing.
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
        # Some functions written in C have no signature.
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        exactly = "one argument" if len(arguments) == 1 else f"{len(arguments)} arguments"
        raise ConfigurationError(
            f"{what} is {_name(function)}{signature}, which cannot be called with {given}: let it "
            f"take exactly {exactly}"
        ) from None


def is_async(function: Any) -> bool:
    """Return whether a callable is a coroutine function, an async object, or a partial of one."""
    while isinstance(function, functools.partial):
        function = function.func
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def call_function(function: Callable[[Any], Any], argument: Any) -> None:
    """Call a function; if it is async, run it to its end in a new event loop on this thread."""
    result = function(argument)
    if inspect.isawaitable(result):
        asyncio.run(_end_of(result))


async def _end_of(result: Awaitable[Any]) -> None:
    await result


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__name__)
