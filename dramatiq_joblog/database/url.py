"""Database URLs, in every form that applications use, made into peewee databases.

No text that this module makes contains a password.
"""

from __future__ import annotations

import re
from typing import Any, Protocol, TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import peewee
from peewee import Database
from playhouse.db_url import connect, parse

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.payload.secret_texts import REDACTED

from .dialects import dialect_of
from .dialects.pools import POOLS
from .django_alias import DjangoAlias
from .url_parameters import check_parameters, has_psycopg3, options_of

#: What peewee needs for each kind of database, and how to install it.
_DRIVERS = {
    "sqlite": ("sqlite3", "a Python built with sqlite3"),
    "postgresql": ("psycopg", "pip install 'dramatiq-joblog[postgres]'"),
    "mysql": ("pymysql", "pip install 'dramatiq-joblog[mysql]'"),
}
_SYNONYMS = {"postgres": "postgresql", "mariadb": "mysql"}
_SCHEME = re.compile(r"(?P<kind>[a-z]\w*)(?:\+(?P<driver>\w+))?://", re.IGNORECASE)
#: Drivers of other libraries whose files or servers peewee's own cannot use.
_OTHER_FORMATS = {"pysqlcipher", "sqlcipher"}
#: Options of a URL that only asyncpg, or SQLAlchemy with asyncpg, understands.
_OF_ASYNCPG = {
    "async_fallback",
    "command_timeout",
    "prepared_statement_cache_size",
    "prepared_statement_name_func",
    "statement_cache_size",
}
_SECRET_OPTION = re.compile(r"((?:^|[?&;\s])\w*pass\w*\s*=\s*)('[^']*'|[^&;\s]+)", re.IGNORECASE)


class ParsedURL(Protocol):
    """A URL object whose ``str`` is the whole URL, such as pydantic's ``PostgresDsn``."""

    @property
    def scheme(self) -> str:
        """The part before the colon."""


class RenderedURL(Protocol):
    """A URL object whose ``str`` hides the password, such as SQLAlchemy's ``URL``."""

    def render_as_string(self, hide_password: bool = ...) -> str:
        """Return the URL, with its password if *hide_password* is False."""


class SecretURL(Protocol):
    """A URL that is kept as a secret, such as pydantic's ``SecretStr``."""

    def get_secret_value(self) -> str:
        """Return the URL."""


#: A URL as text, or as an object of a settings library.
DatabaseURL: TypeAlias = str | ParsedURL | RenderedURL | SecretURL


def open_database(database: DatabaseURL | Database | DjangoAlias) -> Database:
    """Return the database that is named, or the one that was given; nothing is opened.

    Raises:
      ConfigurationError: If it cannot be used.
    """
    if isinstance(database, Database):
        return _checked(database)
    if isinstance(database, DjangoAlias):
        return _checked(database.open())
    url = _text_of(database)
    if url is None:
        plain = database is None or isinstance(database, int)
        # Any other repr may show a password.
        shown = repr(database) if plain else f"an object of type {type(database).__name__}"
        raise ConfigurationError(
            f"{shown} is not a database: give a URL, or a peewee Database that is initialised"
        )
    return _connect(url)


def describe(database: Database) -> str:
    """Return the name of *database* for people, without its password."""
    kind = re.sub("Pooled|Watched|Database", "", type(database).__name__)
    return f"{kind} {without_password(str(database.database))!r}"


def without_password(url: str) -> str:
    """Return *url*, or a connection string of libpq, without anything that may be its password."""
    # If the slashes are missing, the part before the @ may still be a password.
    url = re.sub(r"(//[^:/@]*:|^[^:/@]*:(?!//)).*(?=@)", rf"\1{REDACTED}", url)
    return _SECRET_OPTION.sub(rf"\1{REDACTED}", url)


def _text_of(url: Any) -> str | None:
    """Return the full text of a URL object, or None if it is not one."""
    if hasattr(url, "render_as_string"):
        text = url.render_as_string(hide_password=False)
    elif hasattr(url, "get_secret_value"):
        return _text_of(url.get_secret_value())
    elif hasattr(url, "geturl"):
        text = url.geturl()
    else:
        text = str(url)
    if not isinstance(url, str) and _SCHEME.match(str(text)) is None:
        return None
    return str(text)


def _connect(url: str) -> Database:
    """Return a pooled database for *url*."""
    shown = f"the database URL {without_password(url)!r}"
    scheme = _SCHEME.match(url)
    kind = "" if scheme is None else scheme["kind"].lower()
    kind = _SYNONYMS.get(kind, kind)
    if scheme is None or kind not in _DRIVERS:
        raise ConfigurationError(
            f"{shown} does not begin with a known database; use sqlite:///file.db, "
            "postgresql://user@host/name or mysql://user@host/name"
        )
    driver = (scheme["driver"] or "").lower()
    if driver in _OTHER_FORMATS:
        raise ConfigurationError(
            f"{shown} names an encrypted file, which the log cannot open; give a peewee "
            "Database that can, such as SqlCipherDatabase of playhouse.sqlcipher_ext"
        )
    try:
        parts = urlsplit(url)
        masked = re.fullmatch(r"\*+", unquote(parts.password or "")) is not None
        query = _query_of(parts.query, driver)
        pooled = parts._replace(scheme=f"{kind}+pool", query=query)
        # Not geturl(), which removes the slashes of sqlite:///jobs.db.
        rest = url[scheme.end() :].split("?", maxsplit=1)[0].split("#", maxsplit=1)[0]
        text = f"{pooled.scheme}://{rest}" + (f"?{query}" if query else "")
        named = dict(parse_qsl(query, keep_blank_values=True))
        # Parameters of the URL override the defaults.
        options = {k: v for k, v in options_of(kind).items() if k not in named}
        database = _open(kind, text, options)
    except Exception as e:
        # peewee and the drivers raise many kinds of errors for a URL that they cannot read.
        if "@" in url or without_password(url) != url:
            # Their texts quote what they take for a port, which may be a part of the password.
            raise ConfigurationError(
                f"{shown} cannot be used ({type(e).__name__}); in a password write @ / : ? # % as "
                "%40 %2F %3A %3F %23 %25, check the port, and write numbers where numbers are meant"
            ) from None
        raise ConfigurationError(f"{shown} cannot be used: {e}") from e
    if masked:
        raise ConfigurationError(
            f"{shown} has asterisks in place of its password, as in the str of SQLAlchemy's "
            "URL; give the URL object itself, or url.render_as_string(hide_password=False)"
        )
    _require_driver(kind, database)
    check_parameters(kind, named)
    if not has_psycopg3():
        # psycopg2 prepares nothing, and does not know this option.
        database.connect_params.pop("prepare_threshold", None)
    return _checked(database)


def _open(kind: str, url: str, options: dict[str, Any]) -> Database:
    own = POOLS.get(kind)
    if own is None:
        found: Database = connect(url, unquote_password=True, unquote_user=True, **options)
        return found
    parameters = parse(url, unquote_password=True, unquote_user=True) | options
    if not parameters.get("database"):
        raise ValueError("it names no database; add /name after the host")
    return own(**parameters)


def _query_of(query: str, driver: str) -> str:
    """Return the options of a URL in the form that the log's driver understands."""
    if driver != "asyncpg":
        return query
    options = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "ssl":
            options.append(("sslmode", {"true": "require", "false": "disable"}.get(value, value)))
        elif name not in _OF_ASYNCPG:
            options.append((name, value))
    return urlencode(options)


def _require_driver(kind: str, database: Database) -> None:
    # peewee needs the driver only when it connects; these names show whether it was found.
    driver, cure = _DRIVERS[kind]
    found_by_peewee: Any = peewee
    found = {
        "sqlite3": found_by_peewee.sqlite3,
        "psycopg": found_by_peewee.psycopg or found_by_peewee.psycopg2,
        "pymysql": found_by_peewee.mysql,
    }[driver]
    if found is None:
        raise ConfigurationError(f"{describe(database)} needs the driver {driver}: {cure}")


def _checked(database: Database) -> Database:
    dialect_of(database).check(database)
    if database.database is None:
        raise ConfigurationError("the database has no name yet: call its init() first")
    return database
