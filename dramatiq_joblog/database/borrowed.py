"""A peewee database on a connection that another library opened and will close."""

from __future__ import annotations

from typing import Any

from playhouse.db_url import schemes

from .dialects import dialect_of


def borrowed(like: Any, raw: Any) -> Any:
    """Return a database of the same class as *like*, whose only connection is *raw*.

    Any: a connection of a driver, and peewee's classes, which its stubs do not know.

    Parameters:
      like: A database of the class to return.
      raw: An open connection of the driver, in autocommit mode; it is never closed.
    """
    kind = dialect_of(like).kind
    base: Any = schemes[kind]

    class Borrowed(base):  # type: ignore[misc]
        """Opens nothing and closes nothing."""

        def _connect(self) -> Any:
            return raw

        def _close(self, conn: Any) -> None:
            """Leave the connection to its owner."""

    options: dict[str, Any] = {}
    if kind == "postgresql":
        options["prefer_psycopg3"] = type(raw).__module__.partition(".")[0] != "psycopg2"
    return Borrowed(like.database, **options)
