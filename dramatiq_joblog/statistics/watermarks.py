"""Positions of the background tasks: numbers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import IntegrityError

from dramatiq_joblog.database.checkout import transaction

if TYPE_CHECKING:
    from peewee import Database

#: The prefix of marks for minutes with late events.
_LATE = "late:"


class Marks:
    """The table of marks.

    Parameters:
      mark: The bound model.
    """

    def __init__(self, mark: Any) -> None:
        self._mark = mark
        self._database: Database = mark._meta.database

    def get(self, name: str) -> int | None:
        """Return a mark's number, or None if it was never set."""
        row = self._mark.get_or_none(self._mark.name == name)
        return None if row is None else int(row.value)

    def put(self, name: str, value: int) -> None:
        """Set a mark."""
        if not self._mark.update(value=value).where(self._mark.name == name).execute():
            self._insert(name, value)

    def forget(self, prefix: str, before: int) -> None:
        """Delete the marks with this prefix and a lower number."""
        mark = self._mark
        mark.delete().where(mark.name.startswith(prefix), mark.value < before).execute()

    def note_late(self, minutes: set[int]) -> None:
        """Mark minutes that must be counted again; milliseconds since 1970."""
        for minute in sorted(minutes):
            name = f"{_LATE}{minute}"
            once_more = self._mark.update(value=self._mark.value + 1)
            if not once_more.where(self._mark.name == name).execute():
                self._insert(name, 1)

    def late(self, limit: int) -> dict[int, int]:
        """Return minutes that must be counted again, and how often each was marked."""
        marks = self._mark.select().where(self._mark.name.startswith(_LATE)).limit(limit)
        return {int(mark.name.removeprefix(_LATE)): int(mark.value) for mark in marks}

    def clear(self, minute: int, times: int) -> None:
        """Unmark a minute, unless it was marked again since."""
        mark = self._mark
        mark.delete().where(mark.name == f"{_LATE}{minute}", mark.value == times).execute()

    def _insert(self, name: str, value: int) -> None:
        try:
            with transaction(self._database):
                self._mark.insert(name=name, value=value).execute()
        except IntegrityError:
            # Another process was faster, which is just as good for a mark.
            self._mark.update(value=value).where(self._mark.name == name).execute()
