"""MySQL and MariaDB."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from peewee import SQL, IntegrityError, NodeList, OperationalError

from dramatiq_joblog.database.upsert import Upsert, columns_of, names, values_of
from dramatiq_joblog.errors import JobLogError

from .base import Dialect, path_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dramatiq_joblog.database.upsert import Rule

#: Texts that differ only in case are different, as elsewhere, and any character fits.
_TABLE = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"
#: Collations in which texts that differ only in trailing spaces are different: MariaDB's, and
#: MySQL's since 8.0.17.
_UNPADDED = ("utf8mb4_nopad_bin", "utf8mb4_0900_bin")
#: Seconds to wait for another process that migrates.
_WAIT = 60

#: Errors after which any other event would fail as well: connection, rights, resources, deadlock,
#: lock, shutdown, replica, missing tables.  The client's own errors, about the connection, have
#: the numbers 2000 to 2999.
_AWAY = frozenset(
    {
        *(1020, 1021, 1030, 1040, 1041, 1042, 1043, 1044, 1045, 1049, 1053, 1054, 1114, 1129),
        *(1130, 1142, 1143, 1146, 1152, 1158, 1159, 1160, 1161, 1180, 1184, 1203, 1205, 1213),
        *(1226, 1227, 1290, 1317, 1792, 1836, 1927, 1969, 3024, 4031),
    }
)
#: MySQL's error number for a duplicate key, and how often rows are tried.
_DUPLICATE, _TRIES = 1062, 5
_EXCLUDED = re.compile(r'excluded\."?(\w+)')


class MySQL(Dialect):
    """MySQL and MariaDB."""

    kind = "mysql"
    # Not from NOW(): the hour that repeats when summer time ends would be ambiguous.
    now = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000)"
    guards_upserts = False
    has_partial_indexes = False
    shares_index_names = False
    folds_case = False
    text_type = "CHAR"

    def check(self, database: Any) -> None:
        """Make connections use a character set that has every character.

        MySQL's "utf8", peewee's default before 4.5, has none beyond U+FFFF: it would store an emoji
        as four other characters.
        """
        if database.connect_params.get("charset") in ("utf8", "utf8mb3"):
            database.connect_params["charset"] = "utf8mb4"

    def version(self, database: Any) -> str:
        """Query the version."""
        return f"MySQL {_version(database)}"

    def prepare(self, database: Any, timeout: int) -> None:
        """Limit statements and locks, refuse values that do not fit, and lock no gaps."""
        seconds = max(1, timeout // 1000)
        limit = (
            f"max_statement_time = {seconds}"
            if _is_mariadb(database)
            else f"max_execution_time = {timeout}"
        )
        database.execute_sql(
            # Values that do not fit are refused, instead of silently cut.
            "SET SESSION sql_mode = 'ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION,"
            "STRICT_ALL_TABLES', "
            f"SESSION innodb_lock_wait_timeout = {seconds}, SESSION lock_wait_timeout = {seconds}, "
            f"SESSION {limit}"
        )
        # With gap locks, the default, batches would wait for rows of others.
        database.execute_sql("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def upsert(self, rule: Rule) -> Upsert:
        """Return an object that writes in steps."""
        return SteppedUpsert(rule)

    @contextlib.contextmanager
    def bounded(self, database: Any, timeout: int) -> Iterator[None]:
        """Limit each query of the block, then restore the limit of the connection."""
        maria = _is_mariadb(database)
        name = "max_statement_time" if maria else "max_execution_time"
        ((before,),) = database.execute_sql(f"SELECT @@SESSION.{name}").fetchall()
        database.execute_sql(f"SET SESSION {name} = {timeout / 1000 if maria else int(timeout)}")
        try:
            yield
        finally:
            database.execute_sql(f"SET SESSION {name} = {before}")

    def text_at(self, field: Any, steps: Sequence[str]) -> Any:
        """Extract the value, if the column holds JSON."""
        return NodeList(
            (
                *(SQL("CASE WHEN JSON_VALID("), field, SQL(") THEN JSON_UNQUOTE(JSON_EXTRACT(")),
                *(field, SQL(","), path_of(steps), SQL(")) END")),
            ),
            parens=True,
        )

    @contextlib.contextmanager
    def migrating(self, database: Any) -> Iterator[None]:
        """Take a named lock, because each DDL statement is committed by itself.

        If a process is killed in the middle, the next one finds what it made, and makes the rest.
        """
        name = "concat('dramatiq_joblog ', md5(database()))"
        ((taken,),) = database.execute_sql(f"SELECT get_lock({name}, {_WAIT})").fetchall()
        if taken != 1:
            raise JobLogError(f"another process has been migrating the log for {_WAIT} s")
        try:
            yield
        finally:
            database.execute_sql(f"SELECT release_lock({name})").fetchall()

    def fit(self, model: Any) -> None:
        """Let text columns hold any character, and a whole traceback."""
        meta = model._meta
        meta.table_settings = meta.table_settings or _TABLE
        for field in meta.sorted_fields:
            if field.field_type == "TEXT":
                # Its TEXT holds 64 KiB, which is less than a traceback may have.
                field.field_type = "LONGTEXT"

    def tell_apart(self, model: Any) -> None:
        """Make a table compare its short texts as on other databases: with trailing spaces.

        A table that already does so, or does not exist, is left as it is.
        """
        database, table = model._meta.database, model._meta.table_name
        param = database.param
        known = database.execute_sql(
            "SELECT collation_name FROM information_schema.collations "
            f"WHERE collation_name IN ({param}, {param})",
            _UNPADDED,
        ).fetchall()
        if not known:
            # An older MySQL, without such a collation.
            return
        ((collation, *_), *_) = known
        # A foreign key must have the collation of the column that it refers to.
        foreign = {field.column_name for field in model._meta.refs}
        columns = database.execute_sql(
            "SELECT column_name, column_type, is_nullable FROM information_schema.columns "
            f"WHERE table_schema = database() AND table_name = {param} "
            "AND data_type = 'varchar' AND collation_name = 'utf8mb4_bin' "
            "ORDER BY ordinal_position",
            (table,),
        ).fetchall()
        changes = [
            f"MODIFY `{name}` {kind} CHARACTER SET utf8mb4 COLLATE {collation} "
            f"{'NULL' if nullable == 'YES' else 'NOT NULL'}"
            for name, kind, nullable in columns
            if name not in foreign
        ]
        if changes:
            database.execute_sql(f"ALTER TABLE `{table}` {', '.join(changes)}")

    def is_index(self, model: Any, name: str) -> bool:
        """Return whether the table has an index of this name."""
        meta = model._meta
        return name in {index.name for index in meta.database.get_indexes(meta.table_name)}


def is_away(number: int) -> bool:
    """Distinguish by the error number an unavailable database from a refused statement."""
    return number in _AWAY or 2000 <= number < 3000


def _version(database: Any) -> str:
    ((version,),) = database.execute_sql("SELECT version()").fetchall()
    return str(version)


def _is_mariadb(database: Any) -> bool:
    return "mariadb" in _version(database).lower()


class SteppedUpsert(Upsert):
    """Writes rows in steps, because MySQL's upsert has no guard.

    Existing rows are locked and checked by the guard.  Those that pass are updated, and missing
    rows are inserted.
    """

    #: Characters of one statement: with up to four bytes each, every server accepts them.
    max_length = 500_000

    def write(self, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        """Insert or update *rows*, as one statement does on other databases."""
        written: set[str] = set()
        if rows:
            with self._transaction():
                for portion in self._portions(rows):
                    written |= self._write(portion)
        return written

    def _transaction(self) -> Any:
        # A statement that fails rolls back only itself, so no savepoint is needed.
        is_open = self.database.in_transaction()
        return contextlib.nullcontext() if is_open else self.database.atomic()

    def _portions(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
        portion: list[Mapping[str, Any]] = []
        length = 0
        for row in rows:
            own = sum(len(value) for value in row.values() if isinstance(value, str))
            if portion and (length + own > self.max_length or len(portion) == self.max_rows):
                yield portion
                portion, length = [], 0
            portion.append(row)
            length += own
        yield portion

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        for _ in range(_TRIES):
            may_change = self._ask(rows)
            changed = [row for row in rows if may_change.get(self._key(row))]
            new = [row for row in rows if self._key(row) not in may_change]
            try:
                if new:
                    self._insert(new)
            except IntegrityError as e:
                if e.args[0] != _DUPLICATE:
                    raise
                # Another process inserted one of them in between.
                continue
            if changed:
                self._update(changed)
            return {self._key(row)[0] for row in (*new, *changed)}
        raise OperationalError(f"rows of {self.table} were inserted by others at every try")

    def _key(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(row[column] for column in self.rule.key)

    def _ask(self, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], bool]:
        """Lock existing rows, and return which of them the guard lets change."""
        rule = self.rule
        columns = (*rule.key, *sorted({*_EXCLUDED.findall(rule.guard)} - {*rule.key}))
        source, values = self._source(columns, rows)
        keys = ", ".join(f"excluded.{column}" for column in rule.key)
        text = f"SELECT {keys}, ({rule.guard}) FROM {source} FOR UPDATE"
        found = self.database.execute_sql(_in_backticks(text), values).fetchall()
        return {tuple(key): bool(let) for *key, let in found}

    def _update(self, rows: Sequence[Mapping[str, Any]]) -> None:
        rule = self.rule
        carried = set().union(*rows)
        sets = {**rule.replaces, **{c: text for c, text in rule.fills.items() if c in carried}}
        mentioned = {column for text in sets.values() for column in _EXCLUDED.findall(text)}
        source, values = self._source((*rule.key, *sorted(mentioned - {*rule.key})), rows)
        # No value depends on another column that this statement changes.
        changes = ", ".join(f'{rule.alias}."{name}" = {text}' for name, text in sets.items())
        self.database.execute_sql(_in_backticks(f"UPDATE {source} SET {changes}"), values)

    def _insert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = columns_of(rows)
        row_text = f"({', '.join([self.database.param] * len(columns))})"
        text = f'INSERT INTO "{self.table}" ({names(columns)}) VALUES '
        values = values_of(columns, rows)
        self.database.execute_sql(
            _in_backticks(text + ", ".join([row_text] * len(rows))),
            values,
        )

    def _source(
        self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> tuple[str, list[Any]]:
        """Return *rows* joined to the table; they come first, so each is looked up by its key."""
        rule, param = self.rule, self.database.param
        first = ", ".join(f'{param} AS "{column}"' for column in columns)
        other = f" UNION ALL SELECT {', '.join([param] * len(columns))}"
        on = " AND ".join(f"{rule.alias}.{column} = excluded.{column}" for column in rule.key)
        text = (
            f"(SELECT {first}{other * (len(rows) - 1)}) AS excluded "
            f'STRAIGHT_JOIN "{self.table}" AS {rule.alias} ON {on}'
        )
        return text, [row.get(column) for row in rows for column in columns]


def _in_backticks(text: str) -> str:
    return text.replace('"', "`")
