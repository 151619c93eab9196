"""The result of one check, with its cure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    #: What was looked at, as ``clock``; the same each time.
    name: str
    #: Whether nothing needs to be done about it.
    ok: bool
    #: What was seen, in one sentence.
    text: str
    #: What to do about it; empty if it is ok.
    cure: str = ""
