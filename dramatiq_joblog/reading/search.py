"""The words of a search: text that people type, read as conditions on jobs.

``state:dead type:import -user:7 since:2d timeout`` is the same on the command line, on the
page and in a program.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from peewee import SQL, CharField, Expression, MySQLDatabase, NodeList, TextField, Value, fn

from dramatiq_joblog.errors import SearchError
from dramatiq_joblog.payload.sanitize import clean, fold_jid
from dramatiq_joblog.schema.fields import user_asked
from dramatiq_joblog.schema.query import literal_states, user_field
from dramatiq_joblog.states import GROUPS, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dramatiq_joblog.schema.query import J, JobQuery

#: What may stand before a colon, and what it means; in the order in which people want them.
KEYS: dict[str, str] = {
    "id": "a whole jid",
    "state": "enqueued, delayed, waiting, started, retrying, lost, finished, dead, skipped, "
    "in_progress for started and retrying, or active for all that have not ended",
    "type": "the job type",
    "actor": "the actor's name",
    "user": "the user's id",
    "queue": "the queue's name",
    "error": "the class of the last error",
    "worker": "a host, host:pid or host:pid:thread of the last run",
    "section": "the key of its critical section",
    "since": "created at or after: 30m, 2h, 1d, 2w ago, or 2026-11-24T12:00",
    "until": "created before, alike",
    "ended": "became finished, dead or skipped at or after, alike",
    "dismissed": "yes or no: whether someone said that a dead job needs no more attention",
}

#: Characters and words of a search at most.
MAX_SEARCH, MAX_TERMS = 10_000, 100

_WORD = re.compile(
    r"(?P<minus>-)?(?:(?P<key>[A-Za-z_]+):)?"
    r'(?:"(?P<quoted>[^"]*)"(?=\s|$)|(?P<plain>[^\s"][^\s]*))'
)
#: What is found by an index, however many jobs there are.
_INDEXED = {"actor", "error", "id", "since", "state", "type", "until", "user"}
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}


@dataclass(frozen=True)
class Term:
    """One word of a search."""

    #: One of :data:`KEYS`, or None for text that stands by itself.
    key: str | None
    #: What it must be.
    value: str
    #: Whether it must not be so.
    negated: bool = False


def parse(text: str) -> list[Term]:
    """Read *text* as words: ``key:value``, ``key:"a value"``, ``-key:value`` and bare text.

    Example:
      >>> parse('-actor:"send mail"')
      [Term(key='actor', value='send mail', negated=True)]

    Raises:
      SearchError: If a key is not known, has no value, or a quote is not closed.
    """
    if len(text) > MAX_SEARCH:
        raise SearchError(
            f"a search of {len(text):,} characters is longer than {MAX_SEARCH:,}: use fewer words"
        )
    terms: list[Term] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        found = _WORD.match(text, position)
        if found is None or found["plain"] == '"' or (found["plain"] or "").count('"') % 2:
            raise SearchError(f"the search {text!r} has a quote that is not closed")
        terms.append(_term(found, text))
        if len(terms) > MAX_TERMS:
            raise SearchError(f"the search has more than {MAX_TERMS} words: use fewer")
        position = found.end()
    return terms


def instant(text: str, now: datetime | None = None) -> datetime:
    """Read an instant: ``2d`` for so long before *now*, or an ISO date, in UTC if no zone stands.

    Units are ms, s, m (minutes), h, d and w.

    Example:
      >>> instant("2026-11-24")
      datetime.datetime(2026, 11, 24, 0, 0, tzinfo=datetime.timezone.utc)

    Raises:
      SearchError: If it is neither.
    """
    text = text.strip()
    now = now or datetime.now(timezone.utc)
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return now - float(ago[1]) * _UNITS[ago[2]]
        if text == "now":
            return now
        # Before Python 3.11 it does not know the Z.
        found = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
        return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).astimezone(
            timezone.utc
        )
    except (ValueError, OverflowError) as e:
        raise SearchError(
            f"{text!r} is no time: use 30m, 2h, 1d or 2w for so long ago, or a date like "
            "2026-11-24 or 2026-11-24T12:00Z"
        ) from e


def instant_to_come(text: str, now: datetime) -> datetime:
    """Read an instant: ``2d`` for so long after *now*, or an ISO date, as :func:`instant` does.

    Raises:
      SearchError: If it is neither.
    """
    found = instant(text, now)
    return now + (now - found) if _AGO.fullmatch(text.strip()) else found


def narrow(
    query: JobQuery[J], terms: Sequence[Term], *, now: datetime | None = None
) -> JobQuery[J]:
    """Narrow *query* by *terms*: repeated keys are any of, different keys are all of.

    Dead jobs that were dismissed are left out where ``state:dead`` is asked for, unless a word
    says otherwise.

    Raises:
      SearchError: If a value cannot be what its key wants.
    """
    reader = _Reader(query.model, now or datetime.now(timezone.utc))
    by_index = [term for term in terms if term.key in _INDEXED and not term.negated]
    others = [term for term in terms if term not in by_index]
    query = _apply(query, by_index, reader)
    if "dismissed" not in {term.key for term in others} and Term("state", "dead") in terms:
        query = query.undismissed()
    if others:
        query = _apply(query, others, reader).walking(query)
    return query


def _apply(query: JobQuery[J], terms: Sequence[Term], reader: _Reader) -> JobQuery[J]:
    wanted: dict[str | None, list[Any]] = {}
    for term in terms:
        condition = reader.condition(term)
        if term.negated or term.key in {None, "since", "until", "ended"}:
            query = query.where(condition)
        else:
            wanted.setdefault(term.key, []).append(condition)
    for conditions in wanted.values():
        any_of = conditions[0]
        for condition in conditions[1:]:
            any_of |= condition
        query = query.where(any_of)
    return query


def _term(found: re.Match[str], text: str) -> Term:
    key, quoted, plain = found["key"], found["quoted"], found["plain"]
    value = plain if quoted is None else quoted
    if key is None and quoted is None and plain.endswith(":") and plain[:-1] in KEYS:
        raise SearchError(f"{plain} in the search {text!r} needs a value: {KEYS[plain[:-1]]}")
    if key is None:
        return Term(None, value, found["minus"] is not None)
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, n=1)
        hint = f"did you mean {near[0]}:?" if near else f"use one of {', '.join(KEYS)}"
        raise SearchError(
            f"{key}: in the search {text!r} is no key; {hint} Text with a colon stands in quotes"
        )
    return Term(key, value, found["minus"] is not None)


class _Reader:
    """Makes conditions on one model."""

    # Any: conditions are peewee's, which are untyped.

    def __init__(self, model: Any, now: datetime) -> None:
        self._job = model
        self._now = now
        self._makers: dict[str, Callable[[str], Any]] = {
            "id": lambda v: _like(model.jid, fold_jid(v)),
            "state": self._state,
            "type": lambda v: _like(model.job_type, v),
            "actor": lambda v: _like(model.actor, v),
            "user": self._user,
            "queue": lambda v: _like(model.queue, v),
            "error": lambda v: _like(model.error_type, v),
            "worker": lambda v: _like(model.worker, v) | _like(model.worker, f"{v}:*"),
            "section": lambda v: _like(model.section, v),
            "since": lambda v: model.created_at >= instant(v, now),
            "until": lambda v: model.created_at < instant(v, now),
            "ended": lambda v: model.finished_at >= instant(v, now),
            "dismissed": self._dismissed,
        }

    def condition(self, term: Term) -> Any:
        if term.negated and term.key in {"since", "until"}:
            other = "until" if term.key == "since" else "since"
            raise SearchError(f"-{term.key}:{term.value} is not understood: use {other}:")
        make = self._text if term.key is None else self._makers[term.key]
        condition = make(term.value)
        if term.negated:
            # A column that says nothing does not say this.
            return ~fn.COALESCE(condition, SQL("FALSE"))
        return condition

    def _text(self, text: str) -> Any:
        job = self._job
        part = f"*{text}*"
        return (
            _like(job.actor, part)
            | _like(job.job_type, part)
            | _like(job.error_type, part)
            | _like(job.error_message, part)
        )

    def _state(self, value: str) -> Any:
        try:
            return self._job.state.in_(literal_states(GROUPS.get(value) or [value]))
        except ValueError:
            known = [*GROUPS, *map(str, State)]
            near = difflib.get_close_matches(value.lower(), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
            raise SearchError(f"state:{value} is no state: {hint}") from None

    def _user(self, value: str) -> Any:
        field: Any = user_field(self._job)
        target = getattr(field, "rel_field", field)
        if "*" in value and not isinstance(target, (CharField, TextField)):
            raise SearchError(
                f"user:{value} is no id of a user of this log: * stands in texts only"
            )
        if "*" in value:
            return _like(field, value)
        try:
            return field == user_asked(field, value)
        except SearchError:
            raise SearchError(f"user:{value} cannot be the id of a user of this log") from None

    def _dismissed(self, value: str) -> Any:
        if value not in {"yes", "no"}:
            raise SearchError(f"dismissed:{value} is not understood: use yes or no")
        return self._job.dismissed_at.is_null(value == "no")


def _like(field: Any, value: str) -> Any:
    """Return that *field* is *value*, in which a ``*`` stands for any text."""
    if "*" not in value:
        return field == value
    value = clean(re.sub(r"\*+", "*", value), MAX_SEARCH)
    pattern = "%".join(re.sub(r"([!%_])", r"!\1", part) for part in value.split("*"))
    if isinstance(field.model._meta.database, MySQLDatabase):
        # Its columns tell cases apart, and so does its LIKE.
        field, pattern = fn.LOWER(field), pattern.lower()
    # An escape that needs no escape itself, on any database.
    return Expression(field, "ILIKE", NodeList((Value(pattern), SQL("ESCAPE '!'"))))
