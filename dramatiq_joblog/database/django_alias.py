"""A log in one of Django's databases, with the settings of ``DATABASES``.

The log has its own connections: its writes are not part of Django's transactions.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from playhouse.db_url import schemes

from dramatiq_joblog.errors import ConfigurationError

from .dialects.pools import POOLS
from .url_parameters import options_of, parameters_of_driver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from peewee import Database

#: Options that Django handles itself; drivers do not know them.
_OF_DJANGO = {
    "postgresql": {"assume_role", "isolation_level", "pool", "server_side_binding"},
    "mysql": {"isolation_level"},
}
#: Options that only mysqlclient knows, or takes in another form, and that the log does not need.
_OF_MYSQLCLIENT = {"conv", "cursorclass", "use_unicode", "client_flag", "autocommit"}
_KINDS = "SQLite, PostgreSQL and MySQL or MariaDB"


@dataclass(frozen=True)
class DjangoAlias:
    """The name of one of Django's databases: a key of ``DATABASES``."""

    alias: str = "default"

    def open(self) -> Database:
        """Return a pooled database of peewee's with the same address and options.

        Nothing is opened.

        Raises:
          ConfigurationError: If there is no such alias, or the log cannot use its engine.
        """
        connection = self._connection()
        settings: Mapping[str, Any] = connection.settings_dict
        make = _MAKERS.get(connection.vendor)
        if make is None:
            raise ConfigurationError(
                f"DATABASES[{self.alias!r}] has the engine {settings['ENGINE']!r}, which the log "
                f"cannot use: it knows {_KINDS}; name another alias, or give JobLog a URL"
            )
        options = options_of(connection.vendor) | make(settings, self.alias)
        name = options.pop("name")
        own = POOLS.get(connection.vendor)
        database: Database = (own or schemes[f"{connection.vendor}+pool"])(name, **options)
        return database

    def _connection(self) -> Any:
        """Return Django's connection object for the alias."""
        # Django is not a dependency; it is installed if its settings are used.
        connections = importlib.import_module("django.db").connections
        aliases = list(connections.settings)
        if self.alias not in aliases:
            near = difflib.get_close_matches(self.alias, aliases, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(aliases)}"
            raise ConfigurationError(f"DATABASES has no alias {self.alias!r}; {hint}")
        return connections[self.alias]


def _sqlite(settings: Mapping[str, Any], _: str) -> dict[str, Any]:
    # Django's options are about locks and transactions, which the log handles itself.
    return {"name": str(settings["NAME"])}


def _postgresql(settings: Mapping[str, Any], alias: str) -> dict[str, Any]:
    options = _without(settings["OPTIONS"], _OF_DJANGO["postgresql"])
    _refuse_unknown("postgresql", options, alias)
    given = {
        "user": settings["USER"],
        "password": settings["PASSWORD"],
        "host": settings["HOST"],
        "port": settings["PORT"] and int(settings["PORT"]),
    }
    options |= {name: value for name, value in given.items() if value}
    name = settings["NAME"]
    if not name and "service" in options:
        # The service file names the database: an empty name would count as a name.
        return {**options, "dbname": None, "name": f"service={options['service']}"}
    return {**options, "name": name or "postgres"}


def _mysql(settings: Mapping[str, Any], alias: str) -> dict[str, Any]:
    options = _without(settings["OPTIONS"], _OF_DJANGO["mysql"] | _OF_MYSQLCLIENT)
    options = _tls_of(options.pop("ssl_mode", None), alias) | options
    for theirs, ours in (("passwd", "password"), ("db", "database")):
        if theirs in options:
            options.setdefault(ours, options.pop(theirs))
    host = settings["HOST"]
    given = {
        "user": settings["USER"],
        "password": settings["PASSWORD"],
        "unix_socket" if host.startswith("/") else "host": host,
        "port": settings["PORT"] and int(settings["PORT"]),
    }
    options |= {name: value for name, value in given.items() if value}
    _refuse_unknown("mysql", options, alias)
    return {**options, "name": settings["NAME"] or options.pop("database", "")}


def _tls_of(mode: Any, alias: str) -> dict[str, Any]:
    """Return pymysql's options for mysqlclient's ``ssl_mode``."""
    if mode is None:
        return {}
    ways: dict[str, dict[str, Any]] = {
        "PREFERRED": {},
        "DISABLED": {"ssl_disabled": True},
        # Encrypted, and not verified.
        "REQUIRED": {"ssl": {"check_hostname": False}},
        "VERIFY_CA": {"ssl_verify_cert": True},
        "VERIFY_IDENTITY": {"ssl_verify_cert": True, "ssl_verify_identity": True},
    }
    way = ways.get(str(mode).upper())
    if way is None:
        # Never give an insecure connection to someone who asked for a secure one.
        raise ConfigurationError(
            f"DATABASES[{alias!r}] has ssl_mode={mode!r}, which is not known; use one of "
            f"{', '.join(ways)}"
        )
    return way


def _without(options: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _refuse_unknown(kind: str, options: Mapping[str, Any], alias: str) -> None:
    known = parameters_of_driver(kind)
    unknown = sorted({*options} - known) if known else []
    if unknown:
        raise ConfigurationError(
            f"DATABASES[{alias!r}] has the option {unknown[0]!r}, which the log's own driver for "
            f"{kind} does not know; give JobLog a URL instead"
        )


_MAKERS: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
    "mysql": _mysql,
}
