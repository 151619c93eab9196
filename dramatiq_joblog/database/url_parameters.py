"""The parameters of a database URL: their defaults, and which are allowed."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

import peewee

from dramatiq_joblog.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The name of our connections on the server, unless the URL or the environment sets one.
APPLICATION = "dramatiq_joblog"

#: How often psycopg runs a statement before it prepares it.  Connections for queries never do,
#: because behind PgBouncer a prepared statement may be on another connection; the writer
#: prepares its own.
NEVER = 2**31

#: Options of the pool; times are in seconds, as in peewee.
_POOL: dict[str, Any] = {"max_connections": 100, "timeout": 10, "stale_timeout": 300}
#: Parameters that a URL may have in addition to those of its driver.
_OF_PEEWEE = {
    "sqlite": {"check_same_thread", "cached_statements", "detect_types", "uri"},
    "postgresql": {"encoding", "isolation_level", "prefer_psycopg3", "prepare_threshold"},
    "mysql": {"mariadb"},
}
#: The least connections of a pool: the writer keeps one, and queries need another.
_LEAST = 2


def options_of(kind: str) -> dict[str, Any]:
    """Return the default options of a kind of database."""
    if kind == "sqlite":
        return _POOL | {
            "check_same_thread": False,  # the pool hands them on, one thread at a time
            "pragmas": {"busy_timeout": 5000, "synchronous": "normal"},
        }
    if kind == "mysql":
        # CLIENT.FOUND_ROWS: an update counts the rows that it found, as on other databases.
        options = _POOL | {"client_flag": 2, "connect_timeout": 5}
        known = parameters_of_driver(kind)
        if "program_name" in known:
            options["program_name"] = APPLICATION
        if "defer_connect" in known:
            # It is watched while it connects.
            options["defer_connect"] = True
        return options
    # Not application_name: that of the URL, or PGAPPNAME, has precedence.
    options = _POOL | {"connect_timeout": 5, "fallback_application_name": APPLICATION}
    if has_psycopg3():
        options |= {"prefer_psycopg3": True, "prepare_threshold": NEVER}
    return options


def check_parameters(kind: str, named: Mapping[str, str]) -> None:
    """Refuse unknown parameters before a connection fails because of them.

    Raises:
      ConfigurationError: If a parameter is not known, or the pool is too small.
    """
    of_driver = parameters_of_driver(kind)
    known = {*_POOL, *_OF_PEEWEE[kind], *of_driver}
    for name, value in named.items():
        if name not in known and (kind == "sqlite" or of_driver):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(_POOL)}, ..."
            raise ConfigurationError(
                f"the database URL has the parameter {name!r}, which {kind} does not know; {hint}"
            )
        if name == "max_connections" and value.isdigit() and 0 < int(value) < _LEAST:
            raise ConfigurationError(
                f"the database URL has max_connections={value}: the log's writer keeps one "
                f"connection, and queries need another; give at least {_LEAST}"
            )


def has_psycopg3() -> bool:
    """Return whether peewee has found psycopg 3."""
    # Any: which drivers are installed is known only at run time.
    found: Any = peewee
    return found.psycopg is not None


def parameters_of_driver(kind: str) -> set[str]:
    """Return the parameters of a driver, or nothing if it does not declare them."""
    found: Any = peewee
    if kind == "mysql" and getattr(found.mysql, "__name__", "") == "pymysql":
        return {*inspect.signature(found.mysql.connections.Connection).parameters}
    if kind == "postgresql" and has_psycopg3():
        return {d.keyword.decode() for d in found.psycopg.pq.Conninfo.get_defaults()}
    return set()
