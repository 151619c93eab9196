"""The terminal commands that are equivalent to a page or an action."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from dramatiq_joblog.reading.display import shell_word
from dramatiq_joblog.schema.query import word

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .links import Links

_PROGRAM = "dramatiq-joblog"
#: The placeholder for the application, which is needed to run jobs again.
_APP = ("--app", "MODULE:NAME")
#: The maximum number of jids in a command.
MOST = 20
#: Pages with a command of the same name.
_SAME = ("actions", "alerts", "locks", "queues", "workers")
#: The placeholder for a reason.
_WHY = "..."


def shown_by(link: Links, query: Mapping[str, str]) -> str:
    """Return the command that shows what a page shows; empty if there is none."""
    place, _, name = link.path.strip("/").partition("/")
    name, time = unquote(name), query.get("range", "24h")
    ended = f"ended:{_time(query, time)}"
    lines: dict[str, Callable[[], str]] = {
        **{same: lambda: _line(place) for same in _SAME},
        "": lambda: _line("status"),
        "dead": lambda: _search("list", f"state:dead ended:{query.get('window', '24h')}"),
        "jobs": lambda: _line("why", name) if name else _search("list", query.get("q", "")),
        "types": lambda: (
            _search("list", f"{word('type', name)} {ended}")
            if name
            else _line("types", "--since", query.get("since", time))
        ),
        "users": lambda: _search("list", f"{word('user', name)} {ended}"),
    }
    return lines[place]() if place in lines else ""


def done_by(what: str, *, jids: Sequence[str] = (), words: Sequence[str] = ()) -> str:
    """Return the command for an action on jobs; empty if there is none."""
    app = _APP if what == "requeue" else ()
    if what not in {"requeue", "dismiss", "cancel"} or len(jids) > MOST:
        return ""
    if jids:
        return _line(*app, what, *jids)
    # Without a state, the command selects other jobs than the page.
    is_same = len(words) == 1 and "state:" in words[0]
    return _search(what, words[0], *app) if is_same else ""


def unlocks(key: str, fence: int) -> str:
    """Return the command that releases a section."""
    return _line("unlock", key, "--fence", fence, "--reason", _WHY)


def mutes(kind: str, subject: str, *, off: bool) -> str:
    """Return the command that mutes a problem, or unmutes it."""
    which = (kind, subject) if subject else (kind,)
    return _line("mute", *which, *(("--off",) if off else ("--until", "1d", "--reason", _WHY)))


def compares(against: str, query: Mapping[str, str]) -> str:
    """Return the command that shows what changed; *against* may be the name of a mark."""
    if against not in {"week", "yesterday"}:
        return _line("diff", against)
    return _line("diff", against, "--since", query.get("since", query.get("range", "24h")))


def _time(query: Mapping[str, str], otherwise: str) -> str:
    since = query.get("since")
    return f"{since}..{query.get('until', '')}" if since else otherwise


def _line(*words: Any) -> str:
    return " ".join([_PROGRAM, *(str(w) if w in _APP else shell_word(w) for w in words)])


def _search(what: str, text: str, *options: str) -> str:
    begin = _line(*options, what)
    return f"{begin} {shell_word(text, spaces=True)}" if text.strip() else begin
