"""The two tiers of the suite: what runs in minutes, and what ``--all`` adds.

The first tier has each test once, on SQLite, and on Redis or the stub broker, where it can; what
differs between databases (`tests/dialects`, and what is marked `every_database`) on each of them;
and all but what is marked `full`, which repeats in more places what the first tier shows, or takes
long.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

DIALECTS = Path(__file__).parents[1] / "dialects"


class _Run:
    whole = False


def choose(*, whole: bool) -> None:
    """Say whether this process runs the whole suite, before tests are imported."""
    _Run.whole = whole


def whole() -> bool:
    """Return whether the whole suite runs."""
    return _Run.whole


def examples(number: int) -> int:
    """Return how many examples a property is tried with: *number* in the whole suite."""
    return number if _Run.whole else max(10, number // 10)


def split(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return the items of the first tier, and the others."""
    on_sqlite = {_function(item) for item in items if _database(item) == "sqlite"}
    on_others = {_function(item) for item in items if _values(item) & {"redis", "stub"}}
    first: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        again = (
            _database(item) in {"postgres", "mysql"}
            and _function(item) in on_sqlite
            and not item.path.is_relative_to(DIALECTS)
            and not item.get_closest_marker("every_database")
        )
        again |= "rabbit" in _values(item) and _function(item) in on_others
        (others if again or item.get_closest_marker("full") else first).append(item)
    return first, others


def _function(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _values(item: pytest.Item) -> set[str]:
    """Return the texts among the test's parameters."""
    callspec = getattr(item, "callspec", None)
    return {v for v in callspec.params.values() if isinstance(v, str)} if callspec else set()


def _database(item: pytest.Item) -> str | None:
    """Return the kind of database that is the test's parameter, if one is."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("database_url") if callspec else None
