"""Searches: text that users type, parsed to conditions on jobs.

``state:dead type:import -user:7 since:2d timeout`` works on the command line, on the dashboard and
in code.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from peewee import SQL, CharField, Expression, NodeList, TextField, Value, fn

from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.errors import SearchError
from dramatiq_joblog.payload.sanitize import clean, fold_jid
from dramatiq_joblog.payload.values import shown
from dramatiq_joblog.schema.fields import user_asked
from dramatiq_joblog.schema.query import literal_states, user_field
from dramatiq_joblog.states import DUE, GROUPS, State

from . import amounts, keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dramatiq_joblog.schema.query import J, JobQuery

#: The keys and their meanings; see :mod:`.keys`.
KEYS = keys.KEYS

#: The maximum number of characters and words of a search.
MAX_SEARCH, MAX_TERMS = 10_000, 100

_WORD = re.compile(
    r"(?P<minus>-)?(?:(?P<key>args(?:\.[^\s:\"\\.]+)+|[A-Za-z_]+):)?"
    r'(?:"(?P<quoted>[^"]*)"(?=\s|$)|(?P<plain>[^\s"][^\s]*))'
)
#: The keys with an index.
_INDEXED = {"actor", "error", "family", "id", "since", "state", "type", "until", "user"}
#: A time of day.
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?")
#: The keys that take several values in one word.
_LISTED = {"actor", "error", "queue", "state", "type", "user"}
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

    #: One of :data:`KEYS`, or ``args.`` and the path to an argument's value; None for text
    #: without a key.
    key: str | None
    #: The value to match.
    value: str
    #: Whether it must not match.
    negated: bool = False


def parse(text: str) -> list[Term]:
    """Parse *text* to words: ``key:value``, ``key:"a value"``, ``-key:value`` and bare text.

    ``type:a,b`` is the same as ``type:a type:b``: any of them.

    Example:
      >>> parse('-actor:"send mail"')
      [Term(key='actor', value='send mail', negated=True)]

    Raises:
      SearchError: If a key is unknown or has no value, or a quote is not closed.
    """
    if not isinstance(text, str):
        raise SearchError(f"{shown(text)} is not a search: write words, such as 'state:dead'")
    if len(text) > MAX_SEARCH:
        raise SearchError(
            f"a search of {len(text):,} characters is longer than {MAX_SEARCH:,}: use fewer words"
        )
    # Characters that no column can hold are cleaned like stored text.
    text = clean(text, MAX_SEARCH)
    terms: list[Term] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        found = _WORD.match(text, position)
        if found is None or found["plain"] == '"' or (found["plain"] or "").count('"') % 2:
            raise SearchError(f"the search {text!r} has a quote that is not closed")
        terms += _terms(found, text)
        if len(terms) > MAX_TERMS:
            raise SearchError(f"the search has more than {MAX_TERMS} words: use fewer")
        position = found.end()
    return terms


def expand(terms: Iterable[Term], words_of: Callable[[str], str]) -> list[Term]:
    """Return *terms* with saved searches replaced by their words.

    Parameters:
      terms: The words.
      words_of: Returns the words of a saved search.

    Raises:
      SearchError: If one is unknown, is negated, or contains another one.
    """
    found: list[Term] = []
    for term in terms:
        if term.key != "saved":
            found.append(term)
            continue
        if term.negated:
            raise SearchError(f"-saved:{term.value} is not understood: write its words")
        inner = parse(words_of(term.value))
        if any(one.key == "saved" for one in inner):
            raise SearchError(f"saved:{term.value} has another saved search in it: save its words")
        found += inner
    return found


def instant(text: str, now: datetime | None = None) -> datetime:
    """Parse an instant: ``2d`` before *now*, ``yesterday``, ``14:05`` or an ISO date.

    Units are ms, s, m (minutes), h, d and w.  ``today`` and ``yesterday`` begin at midnight, and
    a time of day is its most recent occurrence.  An instant without a zone is in the zone of
    *now*, by default UTC.

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
        if (day := _day(text, now)) is not None:
            return day.astimezone(timezone.utc)
        # Before Python 3.11, fromisoformat() does not accept a Z.
        found = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
        return (found if found.tzinfo else found.replace(tzinfo=now.tzinfo)).astimezone(
            timezone.utc
        )
    except (ValueError, OverflowError) as e:
        raise SearchError(
            f"{text!r} is not a time: use 30m, 2h, 1d or 2w ago, today, yesterday, "
            "a time like 14:05, or a date like 2026-11-24 or 2026-11-24T12:00Z"
        ) from e


def _day(text: str, now: datetime) -> datetime | None:
    """Return the beginning of a day, or the last occurrence of a time of day, in *now*'s zone."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if text == "today":
        return midnight
    if text == "yesterday":
        return midnight - timedelta(days=1)
    clock = _CLOCK.fullmatch(text)
    if clock is None:
        return None
    hour, minute, second = (int(part or 0) for part in clock.groups())
    at = midnight.replace(hour=hour, minute=minute, second=second)
    return at if at <= now else at - timedelta(days=1)


def between(text: str, now: datetime | None = None) -> tuple[datetime | None, datetime | None]:
    """Parse a period: ``14:05..14:10``, either end of which may be omitted, or only its start.

    Raises:
      SearchError: If it is invalid, or ends before it begins.
    """
    first, dots, last = text.partition("..")
    if not dots:
        return instant(text, now), None
    begin = instant(first, now) if first.strip() else None
    end = instant(last, now) if last.strip() else None
    if (begin is None and end is None) or (begin and end and end < begin):
        raise SearchError(
            f"{text!r} is not a time from one instant to a later one: use 14:05..14:10"
        )
    return begin, end


def instant_to_come(text: str, now: datetime) -> datetime:
    """Parse a future instant: ``2d`` after *now*, or an ISO date, like :func:`instant`.

    Raises:
      SearchError: If it is neither.
    """
    found = instant(text, now)
    return now + (now - found) if _AGO.fullmatch(text.strip()) else found


def narrow(
    query: JobQuery[J],
    terms: Sequence[Term],
    *,
    now: datetime | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> JobQuery[J]:
    """Narrow *query* by *terms*; a repeated key matches any of its values.

    With ``state:dead``, dismissed jobs are left out unless ``dismissed:`` is given.

    Parameters:
      query: The jobs.
      terms: The words.
      now: The instant that relative times refer to.
      names: The names of actors' positional arguments, by actor name.

    Raises:
      SearchError: If a value is invalid for its key.
    """
    now = now or datetime.now(timezone.utc)
    reader = _Reader(query.model, now, names or {})
    by_index = [term for term in terms if term.key in _INDEXED and not term.negated]
    others = [term for term in terms if term not in by_index]
    query = _apply(query, by_index, reader)
    job: Any = query.model
    for term in others:
        if term.key == "ended" and not term.negated and (end := between(term.value, now)[1]):
            # Jobs that ended by then were created before, and created_at is indexed.
            query = query.where(job.created_at < end)
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


def _terms(found: re.Match[str], text: str) -> list[Term]:
    """Return the terms of a word: several for ``type:a,b``, which matches any of them."""
    term = _term(found, text)
    if term.key not in _LISTED or found["quoted"] is not None:
        return [term]
    values = [value for value in term.value.split(",") if value]
    return [Term(term.key, value, term.negated) for value in values] or [term]


def _term(found: re.Match[str], text: str) -> Term:
    key, quoted, plain = found["key"], found["quoted"], found["plain"]
    value = plain if quoted is None else quoted
    if key is None and quoted is None and plain.endswith(":") and plain[:-1] in KEYS:
        raise SearchError(f"{plain} in the search {text!r} needs a value: {KEYS[plain[:-1]]}")
    if key is None:
        return Term(None, value, found["minus"] is not None)
    if key not in KEYS and not key.startswith("args."):
        near = difflib.get_close_matches(key, KEYS, n=1)
        hint = f"did you mean {near[0]}:?" if near else f"use one of {', '.join(KEYS)}."
        raise SearchError(
            f"{key}: in the search {text!r} is not a key; {hint} Put text with a colon in quotes"
        )
    return Term(key, value, found["minus"] is not None)


class _Reader:
    """Makes conditions on one model."""

    # Any: conditions are peewee's, which are untyped.

    def __init__(self, model: Any, now: datetime, names: Mapping[str, Sequence[str]]) -> None:
        self._job = model
        self._now = now
        self._names = names
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
            "ended": self._ended,
            "duration": lambda v: amounts.lasts("duration", model.duration, v),
            "queue_time": lambda v: amounts.lasts("queue_time", model.queue_time, v),
            "attempt": lambda v: amounts.counts("attempt", model.attempt, v),
            "reason": lambda v: _like(model.dead_reason, v) | _like(model.skip_reason, v),
            "args": self._arguments,
            "lines": self._lines,
            "family": self._family,
            "overdue": self._overdue,
            "dismissed": self._dismissed,
            "saved": self._saved,
        }

    def condition(self, term: Term) -> Any:
        if term.negated and term.key in {"since", "until"}:
            other = "until" if term.key == "since" else "since"
            raise SearchError(f"-{term.key}:{term.value} is not understood: use {other}:")
        key = term.key or ""
        if key.startswith("args."):
            condition = self._argument(key.split(".")[1:], term.value)
        else:
            make = self._text if term.key is None else self._makers[key]
            condition = make(term.value)
        if term.negated:
            # NULL does not match, so its negation does.
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

    def _family(self, value: str) -> Any:
        job = self._job
        jid = fold_jid(value)
        # Separate queries: with OR, databases may not use the indexes.
        first = job.select(job.id).where(job.jid == jid)
        return job.id.in_(first | job.select(job.id).where(job.root_jid == jid))

    def _ended(self, value: str) -> Any:
        begin, end = between(value, self._now)
        at = self._job.finished_at
        if begin is None:
            return at < end
        return (at >= begin) & (at < end) if end is not None else at >= begin

    def _arguments(self, value: str) -> Any:
        job = self._job
        # As encoded in the stored JSON.
        part = f"*{json.dumps(value)[1:-1]}*"
        return _like(job.args, part, raw=True) | _like(job.kwargs, part, raw=True)

    def _argument(self, path: Sequence[str], value: str) -> Any:
        """Return the condition that an argument, or a value in it, is *value*."""
        job = self._job
        name, *rest = path
        places: list[tuple[Any, list[str], str | None]] = [(job.kwargs, list(path), None)]
        if name.isdigit():
            places.append((job.args, list(path), None))
        for actor, names in self._names.items():
            if name in names:
                places.append((job.args, [str(list(names).index(name)), *rest], actor))
        found: Any = None
        for field, steps, of_actor in places:
            here = _is(dialect_of(field.model._meta.database).text_at(field, steps), value, field)
            here = here if of_actor is None else (job.actor == of_actor) & here
            found = here if found is None else found | here
        return found

    def _lines(self, value: str) -> Any:
        job = self._job
        bond = job.bond()
        if bond is None:
            raise SearchError("lines: needs the jobs of a log: ask joblog.search()")
        line: Any = bond.line
        some = line.select(SQL("1")).where(line.jid == job.jid, _like(line.text, f"*{value}*"))
        return fn.EXISTS(some)

    def _state(self, value: str) -> Any:
        try:
            return self._job.state.in_(literal_states(GROUPS.get(value) or [value]))
        except ValueError:
            known = [*GROUPS, *map(str, State)]
            near = difflib.get_close_matches(value.lower(), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
            raise SearchError(f"state:{value} is not a state: {hint}") from None

    def _user(self, value: str) -> Any:
        field: Any = user_field(self._job)
        target = getattr(field, "rel_field", field)
        if "*" in value and not isinstance(target, (CharField, TextField)):
            raise SearchError(
                f"user:{value} is not the id of a user of this log: * works for string ids only"
            )
        if "*" in value:
            return _like(field, value)
        try:
            return field == user_asked(field, value)
        except SearchError:
            raise SearchError(f"user:{value} cannot be the id of a user of this log") from None

    def _overdue(self, value: str) -> Any:
        due = self._job.state.in_(literal_states(DUE))
        return due & (self._job.eta <= instant(value, self._now))

    def _saved(self, value: str) -> Any:
        raise SearchError(f"saved:{value} needs the searches of a log: ask joblog.search()")

    def _dismissed(self, value: str) -> Any:
        if value not in {"yes", "no"}:
            raise SearchError(f"dismissed:{value} is not understood: use yes or no")
        return self._job.dismissed_at.is_null(value == "no")


def _like(field: Any, value: str, *, raw: bool = False) -> Any:
    """Return the condition that *field* is *value*, in which ``*`` matches any text.

    Parameters:
      field: The column.
      value: The value to compare with.
      raw: Whether to compare the column's text, not its converted value.
    """
    if "*" not in value:
        return field == value
    text_type = dialect_of(field.model._meta.database).text_type
    return _matches(field.cast(text_type) if raw else field, value, field)


def _is(expression: Any, value: str, field: Any) -> Any:
    """Return the condition that an expression is *value*, in which ``*`` matches any text."""
    if "*" in value:
        return _matches(expression, value, field)
    return Expression(expression, "=", Value(value, converter=False))


def _matches(expression: Any, value: str, field: Any) -> Any:
    value = clean(re.sub(r"\*+", "*", value), MAX_SEARCH)
    pattern = "%".join(re.sub(r"([!%_])", r"!\1", part) for part in value.split("*"))
    if not dialect_of(field.model._meta.database).folds_case:
        # Its columns and its LIKE are case-sensitive.
        expression, pattern = fn.LOWER(expression), pattern.lower()
    # An escape character that needs no escaping on any database.
    return Expression(
        expression, "ILIKE", NodeList((Value(pattern, converter=False), SQL("ESCAPE '!'")))
    )
