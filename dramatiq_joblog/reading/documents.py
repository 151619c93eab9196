"""What stands in a JSON document that a column keeps as text, asked for in SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import SQL, MySQLDatabase, NodeList, PostgresqlDatabase, Value

if TYPE_CHECKING:
    from collections.abc import Sequence


def text_at(field: Any, steps: Sequence[str]) -> Any:
    """Return the expression for the text of the value that names lead to; NULL if there is none.

    A text is itself, a number as it is written, and truth ``true`` or ``false``.  What is no
    JSON, whoever wrote it, has none.

    Parameters:
      field: The column.
      steps: Keys of objects and, as digits, places in lists.
    """
    database = field.model._meta.database
    if isinstance(database, PostgresqlDatabase):
        return _postgresql(field, steps, database)
    path = Value(_path(steps), converter=False)
    if isinstance(database, MySQLDatabase):
        return NodeList(
            (
                *(SQL("CASE WHEN JSON_VALID("), field, SQL(") THEN JSON_UNQUOTE(JSON_EXTRACT(")),
                *(field, SQL(","), path, SQL(")) END")),
            ),
            parens=True,
        )
    # SQLite has no words for truth but 1 and 0.
    return NodeList(
        (
            *(SQL("CASE WHEN json_valid("), field, SQL(") THEN CASE json_type("), field, SQL(",")),
            *(path, SQL(") WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE CAST(")),
            *(SQL("json_extract("), field, SQL(","), path, SQL(") AS TEXT) END END")),
        ),
        parens=True,
    )


def _postgresql(field: Any, steps: Sequence[str], database: Any) -> Any:
    # Before version 16 it cannot say what is JSON without failing on what is none.
    asks = (getattr(database, "server_version", 0) or 0) >= 160_000
    test = (
        (SQL("pg_input_is_valid("), field, SQL(", 'json')"))
        if asks
        else (SQL("left("), field, SQL(", 1) IN ('{', '[')"))
    )
    names = [part for step in steps for part in (SQL(","), Value(step, converter=False))][1:]
    found = (SQL("THEN ("), field, SQL(")::json #>> ARRAY["), *names, SQL("]::text[] END"))
    return NodeList((SQL("CASE WHEN"), *test, *found), parens=True)


def _path(steps: Sequence[str]) -> str:
    return "$" + "".join(f"[{step}]" if step.isdigit() else f'."{step}"' for step in steps)
