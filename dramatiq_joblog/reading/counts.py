"""Counts with a bounded cost, and the values that complete a search."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from peewee import SQL, Select, fn

from dramatiq_joblog.schema.query import literal_states, user_field
from dramatiq_joblog.states import GROUPS, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dramatiq_joblog.schema.query import JobQuery

#: The default number at which counting stops.
DEFAULT_CAP = 10_000
#: The columns of the search keys.
_COLUMNS = {
    "actor": "actor",
    "error": "error_type",
    "id": "jid",
    "queue": "queue",
    "section": "section",
    "type": "job_type",
    "worker": "worker",
}
#: The number of newest jobs in which values, and names of arguments, are searched.
SAMPLE, SAMPLE_OF_ARGUMENTS = 3_000, 300
#: A name that needs no quotes in a search.
_NAME = re.compile(r"[^\s:\"\\.]+")


class Count(int):
    """A count; the true number is higher if it is *capped*."""

    #: Whether counting stopped here.
    capped: bool = False

    @classmethod
    def up_to(cls, cap: int, number: int) -> Count:
        """Return *number*, or *cap* if it is more."""
        count = cls(min(number, cap))
        count.capped = number > cap
        return count


def by_state(query: JobQuery[Any], cap: int) -> dict[State, Count]:
    """Count the jobs of *query* in each state, up to *cap* for each, in one statement."""
    job: Any = query.model
    bare = query.order_by()
    columns = []
    for state in State:
        some = (
            bare.select(SQL("1").alias("one"))
            .where(job.state.in_(literal_states([state])))
            .limit(cap + 1)
        )
        columns.append(Select([some.alias("some")], [fn.COUNT(SQL("*"))]).alias(state.value))
    (row,) = job._meta.database.execute(Select([], columns))
    return {state: Count.up_to(cap, number) for state, number in zip(State, row, strict=True)}


def complete(model: Any, key: str, prefix: str, limit: int) -> list[str]:
    """Return values of *key* that begin with *prefix*, most frequent recently first."""
    if key == "state":
        known = [*map(str, State), *GROUPS]
    elif key == "dismissed":
        known = ["yes", "no"]
    elif key in _COLUMNS:
        known = _recent(model, model._meta.fields[_COLUMNS[key]])
    elif key == "user":
        known = _recent(model, user_field(model))
    else:
        known = []
    return [value for value in known if value.lower().startswith(prefix.lower())][:limit]


def argument_names(
    model: Any, prefix: str, limit: int, names: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return names of arguments that begin with *prefix*, most frequent recently first.

    Parameters:
      model: The job model.
      prefix: The beginning of a name, after the path to it, such as ``order.ci``.
      limit: Return at most this many.
      names: The names of actors' positional arguments, by actor name.
    """
    *path, begin = prefix.split(".")
    newest = model.select(model.actor, model.args, model.kwargs).order_by(model.id.desc())
    found: Counter[str] = Counter()
    for actor, args, kwargs in newest.limit(SAMPLE_OF_ARGUMENTS).tuples():
        given = zip(names.get(actor, ()), args if isinstance(args, list) else (), strict=False)
        named = kwargs if isinstance(kwargs, dict) else {}
        found.update(_names_in({**dict(given), **named}, path))
    fit = [name for name in found if name.lower().startswith(begin.lower())]
    # sorted() is stable: equally frequent names stay in alphabetical order.
    fit = sorted(sorted(fit), key=lambda name: -found[name])[:limit]
    return [".".join((*path, name)) for name in fit]


def _names_in(value: Any, path: Sequence[str]) -> Iterator[str]:
    """Yield the keys of the mapping at *path*."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return (name for name in (value if isinstance(value, dict) else ()) if _NAME.fullmatch(name))


def _recent(model: Any, field: Any) -> list[str]:
    """Return the values of a column in the newest jobs, most frequent first."""
    newest = model.select(field.alias("word")).order_by(model.id.desc()).limit(SAMPLE)
    query = (
        Select([newest.alias("newest")], [SQL("word")])
        .where(SQL("word IS NOT NULL"))
        .group_by(SQL("word"))
        .order_by(SQL("count(*) DESC, word"))
    )
    return [str(value) for (value,) in model._meta.database.execute(query)]
