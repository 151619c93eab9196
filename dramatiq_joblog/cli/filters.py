"""The jobs that a command applies to: words of a search, or options of the same names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from dramatiq_joblog.reading.keys import KEYS

from .app import MINUS, Refusal, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dramatiq_joblog.schema.query import JobQuery

#: The keys of a search that take times, and the keys that are also options.
TIMES = ("ended", "overdue", "since", "until")
OPTIONS = tuple(sorted(set(KEYS) - {"args", "dismissed", "family", "id", "lines", "reason"}))


class Words(click.ParamType):  # type: ignore[type-arg]
    """A word of a search, completed like in the dashboard."""

    name = "word"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word unchanged."""
        return re.sub(f"^{MINUS}", "-", str(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return completions of a word: its key, then values from the log."""
        key, colon, prefix = incomplete.partition(":")
        minus = "-" if key.startswith("-") else ""
        if not colon and key.removeprefix("-").startswith("args."):
            begin = key.removeprefix("-").removeprefix("args.")
            names = _values(ctx, "args.", begin)
            return [CompletionItem(f"{minus}args.{name}:") for name in names]
        if not colon:
            return [
                CompletionItem(f"{minus}{known}:", help=what)
                for known, what in KEYS.items()
                if known.startswith(key.removeprefix("-"))
            ]
        return [CompletionItem(f"{key}:{v}") for v in _values(ctx, key.removeprefix("-"), prefix)]


class Value(click.ParamType):  # type: ignore[type-arg]
    """A value of one key of a search."""

    name = "text"

    def __init__(self, key: str) -> None:
        self._key = key

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return values from the log."""
        return [CompletionItem(value) for value in _values(ctx, self._key, incomplete)]


def _values(ctx: click.Context, key: str, prefix: str) -> list[str]:
    session = ctx.ensure_object(Session)
    try:
        with ctx, session.refusing():
            found = session.joblog.complete(key, prefix, limit=30)
    except click.ClickException:
        # An error message would be no use as a completion.
        return []
    return [value for value, _ in found]


def filtered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the words and the options of a search, as *words* and *filters*."""

    def command(session: Session, /, **given: Any) -> Any:
        filters = {key: given.pop(key) for key in OPTIONS}
        return function(session, filters=filters, **given)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    made: Any = command
    for key in reversed(OPTIONS):
        made = click.option(
            f"--{key.replace('_', '-')}",
            key,
            multiple=key not in TIMES,
            metavar="TEXT",
            type=Value(key),
            help=f"{KEYS[key][:1].upper()}{KEYS[key][1:]}.",
        )(made)
    argument: Any = click.argument("words", nargs=-1, type=Words(), metavar="[WORD]...")
    decorated: Callable[..., Any] = argument(made)
    return decorated


def text_of(words: Sequence[str], filters: dict[str, Any]) -> str:
    """Return the words and options as the text of one search."""
    # The shell removes the quotes of since:"2026-11-24 08:00"; a time contains no other words.
    parts = [re.sub(rf"^({'|'.join(TIMES)}):([^\"]* [^\"]*)$", r'\1:"\2"', word) for word in words]
    for key, given in filters.items():
        for value in (given,) if isinstance(given, str) else given or ():
            if '"' in value:
                raise Refusal(f"--{key} {value!r} contains a quote, which a search cannot express")
            parts.append(f'{key}:"{value}"' if " " in value or not value else f"{key}:{value}")
    return " ".join(parts)


def select(session: Session, words: Sequence[str], filters: dict[str, Any]) -> JobQuery:
    """Return the jobs that words and options select, newest first.

    Raises:
      SearchError: If they cannot be understood.
    """
    return session.joblog.search(text_of(words, filters))
