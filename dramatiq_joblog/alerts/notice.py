"""One notice, as plain text and as Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003 - a field's type, for those who look
from typing import Literal, TypeAlias
from urllib.parse import quote, urlencode

#: What happened to the rule: it holds now, still holds, or no longer holds.
Event: TypeAlias = Literal["opened", "repeated", "resolved", "test"]

_HEADLINES = {
    "opened": "{name}",
    "repeated": "Still: {name}",
    "resolved": "Resolved: {name}",
    "test": "Test: {name}",
}


@dataclass(frozen=True)
class Notice:
    """A notice about one rule, as notifiers receive it."""

    #: The name of the rule.
    name: str
    #: ``opened``, ``repeated``, ``resolved``, or ``test``.
    event: Event
    #: What was found, in a sentence or two.
    summary: str
    #: The number of jobs, or problems.
    count: int
    #: Since when; aware.
    since: datetime
    #: Some of the jobs, the newest first.
    jids: list[str] = field(default_factory=list)
    #: The words of a search that finds the jobs; empty if there is none.
    search: str = ""
    #: The address of the dashboard, if it is known.
    page: str | None = None

    @property
    def title(self) -> str:
        """The first line."""
        return _HEADLINES[self.event].format(name=self.name)

    @property
    def link(self) -> str | None:
        """The address of the jobs in the dashboard; None without ``page_url``."""
        if self.page is None:
            return None
        root = self.page.rstrip("/")
        if self.search:
            return f"{root}/jobs?{urlencode({'q': self.search})}"
        return f"{root}/jobs/{quote(self.jids[0], safe='')}" if self.jids else f"{root}/"

    @property
    def text(self) -> str:
        """The whole notice, as plain text."""
        lines = [self.title, "", self.summary, f"Since {self.since:%Y-%m-%d %H:%M:%S} UTC."]
        if self.jids:
            lines += ["", "Jobs:", *(f"  {jid}" for jid in self.jids)]
        if self.search:
            lines += ["", f"Search: {self.search}"]
        if self.link is not None:
            lines += ["", self.link]
        return "\n".join(lines)

    @property
    def markdown(self) -> str:
        """The whole notice, as Markdown."""
        lines = [f"**{_plain(self.title)}**", "", _plain(self.summary)]
        lines += ["", f"Since {self.since:%Y-%m-%d %H:%M:%S} UTC."]
        if self.jids:
            lines += ["", *(f"- {_code(jid)}" for jid in self.jids)]
        if self.search:
            lines += ["", f"Search: {_code(self.search)}"]
        if self.link is not None:
            lines += ["", f"[Show them]({self.link})"]
        return "\n".join(lines)


def _plain(text: str) -> str:
    """Return *text* escaped for Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~" else c for c in text)


def _code(text: str) -> str:
    """Return *text* as a code span."""
    return f"`{text.replace('`', chr(39))}`"
