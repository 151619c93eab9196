"""Where a database is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .dialects import dialect_of

if TYPE_CHECKING:
    from peewee import Database

_LOCAL = {"", "127.0.0.1", "::1", "localhost"}
_PORTS = {"mysql": "3306", "postgresql": "5432"}


@dataclass(frozen=True)
class Address:
    """The address of a database; different ways to write the same address are equal."""

    kind: str
    name: str
    host: str = ""
    port: str = ""

    @classmethod
    def of(cls, kind: str, name: Any, host: Any = None, port: Any = None) -> Address:
        """Return the address in Django's or peewee's settings."""
        if kind == "sqlite":
            text = str(name)
            return cls(kind, text if "mode=memory" in text else str(Path(text).resolve()))
        host = str(host or "")
        place = "" if host in _LOCAL or host.startswith("/") else host
        return cls(kind, str(name), place, str(port or _PORTS.get(kind, "")))

    @classmethod
    def of_peewee(cls, database: Database) -> Address | None:
        """Return the address of a peewee database, or None for one that has no name yet."""
        if database.database is None:
            return None
        kind, params = dialect_of(database).kind, database.connect_params
        return cls.of(kind, database.database, params.get("host"), params.get("port"))
