"""The check of a broker: whether it has the log's middleware, and retries."""

from __future__ import annotations

from typing import Any

from .finding import Finding


def look_at_middleware(broker: Any, core: object) -> Finding:
    """Check whether a broker has the middleware of a log once, before its actors.

    Parameters:
      broker: A broker of Dramatiq.
      core: The parts of the log.
    """
    ours = [m for m in getattr(broker, "middleware", ()) if hasattr(m, "joblog")]
    mine = [m for m in ours if m.joblog.core is core]
    add = "call broker.add_middleware(JobLogMiddleware(joblog)) once, before the actors"
    if len(mine) != 1:
        text = "has no JobLogMiddleware of this log" if not mine else "has it more than once"
        return Finding("middleware", False, f"the broker {text}", add)
    undeclared = sorted(set(broker.actors) - mine[0].declared)
    if undeclared:
        return Finding(
            "middleware",
            False,
            f"it was added after the actors {', '.join(undeclared[:10])}, whose options were "
            "not checked",
            add,
        )
    names = [type(m).__name__ for m in broker.middleware]
    kinds = {kind.__name__ for m in broker.middleware for kind in type(m).__mro__}
    if "Retries" not in kinds:
        return Finding(
            "middleware",
            False,
            "the broker has no Retries: every job that fails is dead at once",
            "add dramatiq.middleware.Retries, unless that is what you want",
        )
    at = broker.middleware.index(mine[0]) + 1
    return Finding("middleware", True, f"it is number {at} of {len(names)}; any position works")
