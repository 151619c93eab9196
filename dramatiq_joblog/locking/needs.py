"""The keys that a job needs before it may run, as stored in its message."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from .options import DEFAULT_TTL, Entry, Exclusive, Rate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The kinds of needs.
SECTION, RATE = "section", "rate"
#: The kind of rows of unique keys, and of those that record which job superseded another, whose jid
#: is the key.
UNIQUE, FORMER = "unique", "former"

#: The name of the entries in a message's option, if there are several.
ALL = "all"


@dataclass(frozen=True)
class Need:
    """One key that a job needs before it may run, for one attempt."""

    #: :data:`SECTION` or :data:`RATE`.
    kind: str
    key: str
    limit: int
    on_conflict: str
    wait_for: int | None
    on_timeout: str
    #: Milliseconds: the ttl of a section, or the window of a rate.
    lasts: int
    #: Whether it stays held between two runs of a job.
    is_kept: bool = False
    #: Whether the limit comes from a callable.
    is_asked: bool = False
    #: For a waiting job whose limit a callable returns: its actor, as each has its own.
    asked_by: str | None = None


def entries_of(bound: Any) -> list[dict[str, Any]]:
    """Return the entries of a message's needs, in their stored form.

    A single entry, the usual case, is stored without a list.
    """
    if bound is None:
        return []
    entries: list[dict[str, Any]] = bound.get(ALL, [bound])
    return entries


def bound_to(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the stored form of one or more *entries*."""
    return dict(entries[0]) if len(entries) == 1 else {ALL: list(entries)}


def kind_of(entry: Mapping[str, Any]) -> type[Entry]:
    """Return the class of a stored entry."""
    return Rate if "per" in entry else Exclusive


def main_key(bound: Any) -> str | None:
    """Return the key for a job's row: of its first section, else of its first rate."""
    entries = entries_of(bound)
    first = next((each for each in entries if kind_of(each) is Exclusive), None)
    key: str | None = (first or entries[0])["key"] if entries else None
    return key


def paired(
    bound: Sequence[dict[str, Any]], wanted: Sequence[Entry]
) -> list[tuple[Entry | None, dict[str, Any] | None]]:
    """Pair the needs of the code with those of a message, in order, for each kind.

    Needs without a counterpart are paired with None, those of the message last.
    """
    left, pairs = list(bound), []
    for each in wanted:
        entry = next((old for old in left if kind_of(old) is type(each)), None)
        if entry is not None:
            left = [old for old in left if old is not entry]
        pairs.append((each, entry))
    return [*pairs, *((None, entry) for entry in left)]


def needs_of(bound: Any) -> tuple[Need, ...]:
    """Return a job's needs from its message's option, in the order of declaration."""
    return tuple(map(_need, entries_of(bound)))


def _need(entry: Mapping[str, Any]) -> Need:
    # Messages of other producers may lack some values.
    kind, limit = RATE if "per" in entry else SECTION, entry.get("limit", 1)
    return Need(
        kind,
        entry["key"],
        # The limit of a callable is unknown before the first attempt.
        1 if limit is None else limit,
        entry.get("on_conflict", "skip"),
        entry.get("wait_for"),
        entry.get("on_timeout", "dead"),
        entry["per"] if kind == RATE else entry.get("ttl", DEFAULT_TTL),
        is_kept=kind == SECTION and entry.get("hold", "job") == "job",
        is_asked=bool(entry.get("is_asked")),
    )


def carried(entry: Entry, key: str, limit: int | None) -> dict[str, Any]:
    """Return the stored form of an entry, with the job's key and limit."""
    values = {field.name: getattr(entry, field.name) for field in fields(entry)}
    values |= {"key": key, "limit": limit}
    return values | {"is_asked": True} if callable(entry.limit) else values
