"""The names of an actor's parameters, even behind a class or a decorator."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The most nested wrappers to look through.
_DEEPEST = 10
_ANYTHING = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Parameters:
    """The parameters that an actor's messages fill."""

    signature: inspect.Signature
    #: Whether the names come only from the wrapped function, or are unknown: a decorator without
    #: ``functools.wraps`` takes any arguments.
    guessed: bool = False

    @property
    def known(self) -> bool:
        """Whether positional arguments have names."""
        return not is_opaque(self.signature)

    @property
    def positional(self) -> tuple[str, ...]:
        """Names of the positional parameters in order; the last may be that of ``*args``."""
        keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        named = self.signature.parameters.values()
        return tuple(p.name for p in named if p.kind not in keyword)

    def accepts(self, name: str) -> bool:
        """Return whether an argument of this name can be found in a message."""
        parameters = self.signature.parameters
        more = next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
        return (name in parameters and name != more) or (more is not None and self.known)

    @property
    def cure(self) -> str:
        """The end of an error's text: how to make unknown parameters known."""
        return ", as a decorator without functools.wraps hides them" if not self.known else ""

    def __str__(self) -> str:
        return ", ".join(self.signature.parameters) or "it has none"


def parameters_of(function: Any) -> Parameters:
    """Return the parameters of an actor's function.

    Those of a ``GenericActor`` are those of its ``perform``.  If a function takes only
    ``*args``, and holds a single function with named parameters, as a decorator does, the
    names of that function are used.
    """
    signature = _signature(function)
    if not is_opaque(signature):
        return Parameters(signature)
    perform = getattr(function, "perform", None)
    if callable(perform):
        return parameters_of(perform)
    behind = _behind(function, _DEEPEST)
    return Parameters(behind or signature, guessed=_is_wrapper(function, signature))


def is_opaque(signature: inspect.Signature) -> bool:
    """Return whether a signature takes positional arguments, and names none of them."""
    kinds = [p.kind for p in signature.parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds and all(kind in _VARIADIC for kind in kinds)


def _signature(function: Any) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        # A built-in function may have no signature.
        return _ANYTHING


def _is_wrapper(function: Any, signature: inspect.Signature) -> bool:
    """Distinguish a wrapper from a function that is meant to take any number of arguments."""
    return len(signature.parameters) > 1 or any(_held(function))


def _behind(function: Any, depth: int) -> inspect.Signature | None:
    """Return the signature of the one function that a wrapper holds, or None."""
    if not depth:
        return None
    found: dict[str, inspect.Signature] = {}
    for held in _held(function):
        signature: inspect.Signature | None = _signature(held)
        if signature is not None and is_opaque(signature):
            signature = _behind(held, depth - 1)
        if signature is not None:
            found[getattr(held, "__name__", "")] = signature
    named = getattr(inspect.unwrap(function), "__name__", "")
    # A wrapper may also hold other functions, such as one that it reports to.
    return found.get(named) or (next(iter(found.values())) if len(found) == 1 else None)


def _held(function: Any) -> Iterator[Any]:
    """Yield the functions that a closure or a callable object holds."""
    function = inspect.unwrap(function)
    if isinstance(function, MethodType):
        function = function.__func__
    if isinstance(function, FunctionType):
        values = [_content(cell) for cell in function.__closure__ or ()]
    else:
        values = list(getattr(function, "__dict__", {}).values())
    yield from (v for v in values if callable(v) and not isinstance(v, type))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        # The cell is still empty.
        return None
