"""Who waits in this process for jobs of a log."""

from __future__ import annotations


def watched(joblog):
    """Return the jids that somebody waits for."""
    return [listener.jid for listener in joblog.core.watcher._watch._listeners]
