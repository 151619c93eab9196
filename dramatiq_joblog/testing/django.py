"""Moves a log that is in one of Django's databases to Django's test database, under pytest-django.

pytest-django changes the names of Django's databases after the log's address was read.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

import pytest

from dramatiq_joblog.database.address import Address
from dramatiq_joblog.errors import ConfigurationError

from .guard import logs_of, refusing

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from dramatiq import Broker
    from peewee import Database

#: The fixture of pytest-django that makes the test databases.
_SETUP = "django_db_setup"


class DjangoDatabases:
    """Django's databases as they were before its test databases were made."""

    def __init__(self) -> None:
        self._connections: Any = importlib.import_module("django.db").connections
        self._before = {alias: self.address(alias) for alias in self._connections}
        #: Whether the project itself has chosen the databases of its tests.
        self.are_chosen = False

    def address(self, alias: str) -> Address:
        """Return the current address of an alias's database."""
        connection = self._connections[alias]
        settings = connection.settings_dict
        names = (settings.get(name) for name in ("NAME", "HOST", "PORT"))
        return Address.of(connection.vendor, *names)

    def alias_of(self, database: Database) -> str | None:
        """Return the alias of which *database* was the database before the tests, or None."""
        here = Address.of_peewee(database)
        return next((alias for alias, there in self._before.items() if there == here), None)

    def has_moved(self, alias: str) -> bool:
        """Return whether the tests have a different database than before."""
        return self.address(alias) != self._before[alias]

    def may_write(self, alias: str) -> bool:
        """Return whether the project lets its tests use the original database."""
        return self.are_chosen and not self.has_moved(alias)

    def why_not(self, broker: Broker) -> str | None:
        """Return why a broker must not send a message: its job would go to another database."""
        for log in logs_of(broker):
            alias = self.alias_of(log.database)
            if alias is not None and not self.may_write(alias):
                return (
                    f"the job of this message would be written to {log.name}, which is Django's "
                    f"database {alias!r} and not its test database, and the message would really "
                    "be sent: let the test ask for joblog_worker, or for joblog_broker if its "
                    "jobs need not run (an autouse fixture in conftest.py can ask for all tests)"
                )
        return None


_databases = pytest.StashKey[DjangoDatabases]()
_guards = pytest.StashKey[contextlib.ExitStack]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Store the addresses of Django's databases, before the first fixture moves them."""
    config = session.config
    if not config.pluginmanager.has_plugin("django") or not _is_configured():
        return
    databases = config.stash[_databases] = DjangoDatabases()
    guards = config.stash[_guards] = contextlib.ExitStack()
    guards.enter_context(refusing(databases.why_not))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Store that a project makes its test databases with its own fixture."""
    made = yield
    if fixturedef.argname == _SETUP and _databases in request.config.stash:
        own = not fixturedef.func.__module__.startswith("pytest_django")
        request.config.stash[_databases].are_chosen = own
    return made


def pytest_unconfigure(config: pytest.Config) -> None:
    """Allow all messages again."""
    if _guards in config.stash:
        config.stash[_guards].close()


def has_test_databases(request: pytest.FixtureRequest) -> bool:
    """Return whether pytest-django makes test databases in this run."""
    return _databases in request.config.stash


@contextlib.contextmanager
def moved_to_test_database(request: pytest.FixtureRequest, database: Database) -> Iterator[bool]:
    """Switch *database* to Django's test database, if it is one of Django's.

    Returns:
      Whether it is now a database that only tests use.

    Raises:
      ConfigurationError: If it cannot be.
    """
    databases = request.config.stash.get(_databases, None)
    alias = None if databases is None else databases.alias_of(database)
    if databases is None or alias is None:
        yield False
        return
    request.getfixturevalue(_SETUP)
    if databases.may_write(alias):
        yield False
        return
    if not databases.has_moved(alias):
        raise ConfigurationError(
            f"the log lives in Django's database {alias!r}, and pytest-django has made no test "
            "database in its place, as no test asks for it: mark this test with "
            "pytest.mark.django_db"
        )
    there = databases.address(alias)
    if there.kind == "sqlite" and "mode=memory" in there.name:
        raise ConfigurationError(
            f"Django's test database {alias!r} is in memory, where the log cannot reach it: "
            "give it a file, such as DATABASES"
            f'["{alias}"]["TEST"] = {{"NAME": BASE_DIR / "test.sqlite3"}} in the settings'
        )
    _close(database)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "database", there.name)
        try:
            yield True
        finally:
            _close(database)


def _close(database: Any) -> None:
    """Close every connection that was opened under the old name."""
    if hasattr(database, "close_all"):
        database.close_all()
    elif not database.is_closed():
        database.close()


def _is_configured() -> bool:
    return bool(importlib.import_module("django.conf").settings.configured)
