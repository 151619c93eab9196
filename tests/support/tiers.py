"""The tiers of the suite: what runs in minutes, and what ``--all`` and ``--every-database`` add.

The first tier runs each test once, on SQLite, and on Redis or the stub broker if possible.  Tests
of what differs between databases run on each database: `tests/dialects`, except those marked
`one_database`, and those marked `every_database` elsewhere.  Tests marked `full` are left out: they
repeat the first tier in other combinations, or take long.  Of a test marked `few(n)`, it runs the
first n of its parameters, on each of its databases.

With ``--all``, tests that are not about what differs between databases, those outside
`tests/dialects` and `tests/database`, run on SQLite and on one of the two servers: a test and its
parameters use PostgreSQL and MariaDB in turn.  With ``--every-database`` they run on each.
"""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path

import pytest

DIALECTS = Path(__file__).parents[1] / "dialects"
DATABASE = DIALECTS.with_name("database")
SERVERS = ("postgres", "mysql")


class _Run:
    whole = False


def choose(*, whole: bool) -> None:
    """Set whether this process runs the whole suite, before tests are imported."""
    _Run.whole = whole


def whole() -> bool:
    """Return whether the whole suite runs."""
    return _Run.whole


def examples(number: int) -> int:
    """Return the number of examples of a property: *number* in the whole suite."""
    return number if _Run.whole else max(10, number // 10)


def narrow(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test for SQLite alone if the first tier runs it only there.

    Creating all items, and then dropping two of three, would take as long as many tests.
    """
    test = metafunc.definition
    if not (
        _Run.whole
        or "database_url" not in metafunc.fixturenames
        # Another fixture of this name, with different kinds.
        or hasattr(metafunc.module, "database_url")
        or any("database_url" in mark.args[0] for mark in test.iter_markers("parametrize"))
        or _differs(test)
    ):
        only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
        # As the first parameter, like with all kinds.
        test.add_marker(only, append=False)


def split(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return the items of the first tier, and the others."""
    on_sqlite = {_function(item) for item in items if _database(item) == "sqlite"}
    on_others = {_function(item) for item in items if _values(item) & {"redis", "stub"}}
    first: list[pytest.Item] = []
    others: list[pytest.Item] = []
    few: Counter[tuple[str, str | None]] = Counter()
    for item in items:
        again = _database(item) in SERVERS and _function(item) in on_sqlite and not _differs(item)
        again |= "rabbit" in _values(item) and _function(item) in on_others
        again |= item.get_closest_marker("full") is not None
        if not again and (mark := item.get_closest_marker("few")):
            few[which := (_function(item), _database(item))] += 1
            again = few[which] > mark.args[0]
        (others if again else first).append(item)
    return first, others


def alternate(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return the items that run on SQLite or on their server in turn, and the others."""
    on_sqlite = {_function(item) for item in items if _database(item) == "sqlite"}
    kept: list[pytest.Item] = []
    others: list[pytest.Item] = []
    number: Counter[tuple[str, str | None]] = Counter()
    for item in items:
        name, database = _function(item), _database(item)
        is_others_turn = False
        differs = item.path.is_relative_to(DATABASE) or _differs(item)
        if database in SERVERS and name in on_sqlite and not differs:
            # A test of one set of parameters has a server by its name.
            turn = zlib.crc32(name.encode()) + number[name, database]
            number[name, database] += 1
            is_others_turn = SERVERS[turn % len(SERVERS)] != database
        (others if is_others_turn else kept).append(item)
    return kept, others


def _differs(item: pytest.Item) -> bool:
    """Return whether a test is about what differs between databases."""
    if item.path.is_relative_to(DIALECTS):
        return item.get_closest_marker("one_database") is None
    return item.get_closest_marker("every_database") is not None


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
