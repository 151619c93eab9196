"""The result of one check, with its cure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    #: The name of the check, such as ``clock``; stable.
    name: str
    #: Whether nothing needs to be done about it.
    ok: bool
    #: The result, in one sentence.
    text: str
    #: What to do about it; empty if it is ok.
    cure: str = ""
