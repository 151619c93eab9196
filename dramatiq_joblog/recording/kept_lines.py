"""The log lines of runs, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dramatiq_joblog.database.dialects import dialect_of

from .row_rules import line_rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog.schema.tables import Tables


class KeptLines:
    """Inserts log lines of runs, and deletes those beyond the limit.

    Parameters:
      tables: The tables.
    """

    def __init__(self, tables: Tables[Any]) -> None:
        # Any: peewee's queries are untyped.
        self.line: Any = tables.line
        #: The statement that inserts them.
        self.upsert = dialect_of(tables.database).upsert(line_rule(tables.line))

    def insert(self, logged: Sequence[Any]) -> None:
        """Insert log lines idempotently, and delete those beyond the limit.

        Each of *logged* has ``lines`` and ``forget``, like an :class:`Ended`.
        """
        self.forget(logged)
        self.upsert.write([row for each in logged for row in each.lines])

    def forget(self, logged: Sequence[Any]) -> None:
        """Delete the lines beyond the limit."""
        line = self.line
        for each in logged:
            if each.forget is not None:
                jid, token, first, last = each.forget
                mine = line.jid == jid, line.token == token
                line.delete().where(*mine, line.number.between(first, last)).execute()
