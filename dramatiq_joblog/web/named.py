"""The arguments of a job, by the actor's parameter names."""

from __future__ import annotations

import inspect
from typing import Any

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def arguments_of(found: Any, signature: inspect.Signature | None) -> dict[str, Any]:
    """Return arguments by parameter name, with the actor's defaults last."""
    args = found.args if isinstance(found.args, list) else []
    kwargs = found.kwargs if isinstance(found.kwargs, dict) else {}
    names = (
        []
        if signature is None
        else [p.name for p in signature.parameters.values() if p.kind in _BY_PLACE]
    )
    pairs = [
        (names[index] if index < len(names) else str(index), value, False)
        for index, value in enumerate(args)
    ]
    pairs += [(name, value, False) for name, value in kwargs.items()]
    given = {name for name, _, _ in pairs}
    kept = found.args is not None or found.kwargs is not None
    if signature is not None and kept:
        pairs += [
            (p.name, p.default, True)
            for p in signature.parameters.values()
            if p.default is not p.empty and p.name not in given
        ]
    return {
        "pairs": pairs,
        "redacted": sum(str(value).count("[redacted]") for _, value, _ in pairs),
        "text": "It was sent without any." if kept else "The log keeps no arguments of this job.",
    }
