"""The waiting callers of a log in this process."""

from __future__ import annotations


def watched(joblog):
    """Return the jids that callers wait for."""
    return [listener.jid for listener in joblog.core.watcher._watch._listeners]
