"""Statements whose SQL peewee generates once, for any number of values.

Generating SQL takes peewee longer than most statements take to run, and the writer's thread runs
the same ones all the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peewee import Database

T = TypeVar("T")


class Compiled:
    """A statement whose only parameters are the given values.

    Parameters:
      database: The database on which it runs.
      make: Makes the query from values, all of which, and nothing else, become its parameters in
        their order.
    """

    def __init__(self, database: Database, make: Callable[[Sequence[Any]], Any]) -> None:
        self._database = database
        self._make = make
        #: The SQL for each number of values.
        self._texts: dict[int, str] = {}

    def execute(self, values: Sequence[Any]) -> Any:
        """Run it with *values*, and return the cursor."""
        text = self._texts.get(len(values))
        if text is None:
            text, _ = self._make(values).sql()
            self._texts[len(values)] = text
        return self._database.execute_sql(text, values)


def padded(values: Sequence[T]) -> list[T]:
    """Return *values*, at least one, with the last repeated, so that few lengths are compiled."""
    length = 1 << (len(values) - 1).bit_length()
    return [*values, *[values[-1]] * (length - len(values))]
