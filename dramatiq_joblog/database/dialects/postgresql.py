"""PostgreSQL, through psycopg 3 or psycopg2, with or without a pooler."""

from __future__ import annotations

import contextlib
import json
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from peewee import SQL, NodeList, OperationalError, Value, fn

from dramatiq_joblog.database.libpq import run_prepared
from dramatiq_joblog.database.upsert import Upsert, columns_of, names
from dramatiq_joblog.database.url_parameters import NEVER

from .base import Dialect, Weakness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dramatiq_joblog.database.upsert import Rule

#: How often the writer's connection runs a statement before it prepares it; psycopg's default.
PREPARE_AFTER = 5

# A number that nothing else uses for an advisory lock.
_LOCK = 0x6A6F_626C

#: Field types whose values PostgreSQL reads from JSON as the driver would send them.
_PLAIN = {
    *("AUTO", "BIGAUTO", "BIGINT", "BOOL", "CHAR", "DATE", "DATETIME", "DECIMAL", "DOUBLE"),
    *("FLOAT", "INT", "SMALLINT", "TEXT", "TIME", "UUID", "VARCHAR"),
}


class PostgreSQL(Dialect):
    """PostgreSQL."""

    kind = "postgresql"
    now = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
    joins_writes = True
    skips_nulls = False
    has_poolers = True

    def version(self, database: Any) -> str:
        """Query the version, and name the driver."""
        ((version,),) = database.execute_sql("SELECT version()").fetchall()
        driver = type(database.connection()).__module__.split(".")[0]
        return f"{' '.join(version.split()[:2])} through {driver}"

    def weakness(self, database: Any) -> Weakness | None:
        """Query which of the settings that make commits durable are off."""
        off = [
            setting
            for setting in ("fsync", "synchronous_commit", "full_page_writes")
            if database.execute_sql(f"SHOW {setting}").fetchone()[0] == "off"
        ]
        if not off:
            return None
        return Weakness(
            f"PostgreSQL's {' and '.join(off)} {'is' if len(off) == 1 else 'are'} off: a crash of "
            "the server's host loses commits of which jobs were already acknowledged.",
            f"set {', '.join(off)} to on in postgresql.conf",
        )

    def prepare(self, database: Any, timeout: int) -> None:
        """Limit statements and locks, and prepare statements, unless a pooler is in between."""
        raw = database.connection()
        if is_behind_pooler(database):
            # Settings and prepared statements would stay on a connection that others use too, so
            # only the watch limits statements.
            if hasattr(raw, "prepare_threshold"):
                raw.prepare_threshold = None
            return
        for setting in ("statement_timeout", "lock_timeout"):
            database.execute_sql(f"SET {setting} = {timeout}")
        if getattr(raw, "prepare_threshold", None) == NEVER:
            raw.prepare_threshold = PREPARE_AFTER

    def in_order(self, model: Any, condition: Any, order: Any) -> Any:
        """Select the rows first, and lock them in that order."""
        rows = model.select(model.id).where(condition).order_by(order)
        return model.id.in_(rows.for_update())

    def upsert(self, rule: Rule) -> Upsert:
        """Return an object that sends rows as one JSON document, if JSON can express them."""
        plain = all(field.field_type in _PLAIN for field in rule.model._meta.sorted_fields)
        return JsonUpsert(rule) if plain else Upsert(rule)

    def check_rights(self, database: Any, table: str) -> None:
        """Check the right to use the sequence of a table's ids, which is separate."""
        sequence = f"pg_get_serial_sequence('\"{table}\"', 'id')"
        text = f"SELECT has_sequence_privilege({sequence}, 'USAGE, UPDATE')"
        ((may,),) = database.execute_sql(text).fetchall()
        if may is False:
            raise OperationalError(f"permission denied for the sequence of {table}.id")

    @contextlib.contextmanager
    def bounded(self, database: Any, timeout: int) -> Iterator[None]:
        """Limit each query of the block, which is one transaction."""
        is_part = database.in_transaction()
        with database.atomic():
            before = database.execute_sql("SHOW statement_timeout").fetchone() if is_part else None
            database.execute_sql(f"SET LOCAL statement_timeout = {int(timeout)}")
            yield
            # The transaction goes on; another one's end would restore it.
            if before is not None:
                database.execute_sql("SELECT set_config('statement_timeout', %s, true)", before)

    def text_at(self, field: Any, steps: Sequence[str]) -> Any:
        """Extract the value if the column holds JSON; before version 16, if it looks like JSON."""
        database = field.model._meta.database
        asks = (getattr(database, "server_version", 0) or 0) >= 160_000
        test = (
            (SQL("pg_input_is_valid("), field, SQL(", 'json')"))
            if asks
            else (SQL("left("), field, SQL(", 1) IN ('{', '[')"))
        )
        names = [part for step in steps for part in (SQL(","), Value(step, converter=False))][1:]
        # It is JSON, but no text of PostgreSQL can hold it: one such job would fail each search.
        document = fn.REPLACE(field, Value(r"\u0000", converter=False), r"\ufffd")
        found = (SQL("THEN ("), document, SQL(")::json #>> ARRAY["), *names, SQL("]::text[] END"))
        return NodeList((SQL("CASE WHEN"), *test, *found), parens=True)

    @contextlib.contextmanager
    def migrating(self, database: Any) -> Iterator[None]:
        """Take an advisory lock until the end of the transaction."""
        with database.atomic():
            database.execute_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            yield

    def is_index(self, model: Any, name: str) -> bool:
        """Return whether any index or table of this name exists."""
        meta = model._meta
        text = (
            "SELECT 1 FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace "
            "WHERE relname = %s AND nspname = coalesce(%s, current_schema())"
        )
        return meta.database.execute_sql(text, (name, meta.schema)).fetchone() is not None

    def rename_index(self, model: Any, former: str, name: str) -> bool:
        """Rename an index."""
        meta = model._meta
        schema = f'"{meta.schema}".' if meta.schema else ""
        meta.database.execute_sql(f'ALTER INDEX {schema}"{former}" RENAME TO "{name}"')
        return True


def is_behind_pooler(database: Any) -> bool:
    """Return whether this thread's connection to PostgreSQL goes through PgBouncer or the like.

    A pooler announces a process id of its own, because the server process may change with each
    transaction.  Any: a connection of a driver.
    """
    raw = database.connection()
    greeted = raw.info.backend_pid
    ((asked,),) = database.execute_sql("SELECT pg_backend_pid()").fetchall()
    return bool(greeted != asked)


def prepares(database: Any) -> bool:
    """Return whether psycopg prepares statements on the connections that query the log.

    Any: a connection of a driver.
    """
    if not hasattr(database.connection(), "prepare_threshold"):
        # psycopg2 does not.
        return False
    threshold = database.connect_params.get("prepare_threshold", PREPARE_AFTER)
    return threshold is not None and threshold < NEVER


class JsonUpsert(Upsert):
    """Writes rows as one JSON document, whose types PostgreSQL takes from the table.

    The SQL is the same for any number of rows, so the driver can prepare it; lists of values cost
    several times as much.
    """

    max_rows = 1000

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self._selects: dict[tuple[tuple[str, ...], str], str] = {}

    def _write_chunk(self, columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> set[str]:
        return set(run_prepared(self.database, *self._statement(columns, rows)))

    def _statement(
        self, columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]
    ) -> tuple[str, Sequence[Any]]:
        return self._select(columns, ""), (as_json(rows),)

    def step(self, rows: Sequence[Mapping[str, Any]], where: str) -> tuple[str, str]:
        """Return the SQL that writes *rows* as a step of a statement, and its parameter."""
        return self._select(columns_of(rows), where), as_json(rows)

    def _select(self, columns: tuple[str, ...], where: str) -> str:
        text = self._selects.get((columns, where))
        if text is None:
            head, tail = self._around(columns)
            rows = f'json_populate_recordset(NULL::"{self.table}", {self.database.param}::json)'
            text = f"{head} SELECT {names(columns)} FROM {rows} AS given {where} {tail}"
            self._selects[columns, where] = text
        return text


def _as_text(value: Any) -> str:
    """Write a value of a user's column that SQL can express and JSON cannot."""
    if isinstance(value, (date, time, Decimal, UUID)):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} cannot be stored in a column of text")


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as one parameter of PostgreSQL."""
    return _ENCODER.encode(rows)


_ENCODER = json.JSONEncoder(
    allow_nan=False,
    check_circular=False,
    default=_as_text,
    ensure_ascii=False,
    separators=(",", ":"),
)
