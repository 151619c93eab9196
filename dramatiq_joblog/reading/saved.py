"""Saved searches, shared by everyone who uses the log."""

from __future__ import annotations

import functools
from typing import Any

from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.errors import SearchError
from dramatiq_joblog.payload.sanitize import clean, clean_optional
from dramatiq_joblog.payload.values import shown

from . import search

#: The maximum length of a name.
MAX_NAME = 80
#: The maximum number of saved searches: users choose from a list.
MOST = 200


def name_of(name: Any) -> str:
    """Return the stored form of a saved search's name.

    Raises:
      SearchError: If it is invalid.
    """
    plain = " ".join(name.split()) if isinstance(name, str) else ""
    if not plain or len(plain) > MAX_NAME or '"' in plain:
        raise SearchError(
            f"{shown(name)} is not a name of a saved search: use a text of at most {MAX_NAME} "
            "characters, without quotes"
        )
    return clean(plain, MAX_NAME)


def save(model: Any, name: str, words: str, who: str | None) -> Any:
    """Save words under a name, replacing earlier ones; call it in a transaction.

    Raises:
      SearchError: If the name is invalid, or there are too many.
    """
    name = name_of(name)
    model.delete().where(model.name == name).execute()
    if model.select().count() >= MOST:
        raise SearchError(f"there are {MOST} saved searches: delete one that nobody needs")
    number = model.insert(
        name=name,
        words=words,
        who=clean_optional(who) or "unknown",
        at=database_now(model._meta.database),
    ).execute()
    return model.get_by_id(number)


def delete(model: Any, name: str) -> bool:
    """Delete a saved search, and return whether it existed."""
    return bool(model.delete().where(model.name == name_of(name)).execute())


def terms_of(model: Any, text: str) -> list[search.Term]:
    """Return the words of a search, with saved searches replaced by their words.

    Raises:
      SearchError: If they cannot be parsed.
    """
    return search.expand(search.parse(text), functools.partial(words_of, model))


def words_of(model: Any, name: str) -> str:
    """Return the words of a saved search.

    Raises:
      SearchError: If there is no search with that name.
    """
    row = model.get_or_none(model.name == name_of(name))
    if row is None:
        known = [other.name for other in model.select().order_by(model.name).limit(5)]
        hint = f"there are {', '.join(known)}" if known else "none is saved yet"
        raise SearchError(f"saved:{shown(name)} is not known: {hint}")
    words: str = row.words
    return words
