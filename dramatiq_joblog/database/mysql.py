"""What the log's tables need on MySQL and MariaDB to hold the same as on other databases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import MySQLDatabase

if TYPE_CHECKING:
    from peewee import Database

#: Texts that differ by case alone are different, as elsewhere, and any character fits.
_TABLE = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"

#: Errors that say that any other event would fare no better now: the connection, its rights,
#: its resources, a deadlock, a lock, a shutdown, a replica, tables that are not there yet.
#: The client's own errors, of the connection, are numbered from 2000 to 2999.
_AWAY = frozenset(
    {
        *(1020, 1021, 1030, 1040, 1041, 1042, 1043, 1044, 1045, 1049, 1053, 1054, 1114, 1129),
        *(1130, 1142, 1143, 1146, 1152, 1158, 1159, 1160, 1161, 1180, 1184, 1203, 1205, 1213),
        *(1226, 1227, 1290, 1317, 1792, 1836, 1927, 1969, 3024, 4031),
    }
)


def fit(model: Any) -> None:
    """Have the table of a bound model made so that it holds what the model says.

    A model that is bound to another database is left as it is.
    """
    meta = model._meta
    if not isinstance(meta.database, MySQLDatabase):
        return
    meta.table_settings = meta.table_settings or _TABLE
    for field in meta.sorted_fields:
        if field.field_type == "TEXT":
            # Its TEXT ends at 64 KiB, which is less than a traceback may have.
            field.field_type = "LONGTEXT"


def use_four_bytes(database: MySQLDatabase) -> None:
    """Have connections to *database* pass every character on.

    MySQL's "utf8", which peewee asks for by default before 4.5, has none beyond U+FFFF: it would
    store an emoji as four other characters.
    """
    if database.connect_params.get("charset") in ("utf8", "utf8mb3"):
        database.connect_params["charset"] = "utf8mb4"


#: How texts are compared so that those differ too which differ by trailing spaces: in MariaDB,
#: and in MySQL from 8.0.17 on.
_UNPADDED = ("utf8mb4_nopad_bin", "utf8mb4_0900_bin")


def tell_apart(model: Any) -> None:
    """Have the short texts of a table compared as elsewhere: trailing spaces are not left aside.

    A table that is so already, or is not there, is left as it is.
    """
    database, table = model._meta.database, model._meta.table_name
    param = database.param
    known = database.execute_sql(
        "SELECT collation_name FROM information_schema.collations "
        f"WHERE collation_name IN ({param}, {param})",
        _UNPADDED,
    ).fetchall()
    if not known:
        # An older MySQL, that has no such thing.
        return
    ((collation, *_), *_) = known
    # A foreign key must be compared as what it leads to.
    foreign = {field.column_name for field in model._meta.refs}
    columns = database.execute_sql(
        "SELECT column_name, column_type, is_nullable FROM information_schema.columns "
        f"WHERE table_schema = database() AND table_name = {param} "
        "AND data_type = 'varchar' AND collation_name = 'utf8mb4_bin' ORDER BY ordinal_position",
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


def prepare_session(database: Database, timeout: int) -> None:
    """Set what a connection that writes needs; *timeout* is in milliseconds."""
    ((version,),) = database.execute_sql("SELECT version()").fetchall()
    seconds = max(1, timeout // 1000)
    limit = (
        f"max_statement_time = {seconds}"
        if "mariadb" in str(version).lower()
        else f"max_execution_time = {timeout}"
    )
    database.execute_sql(
        # What does not fit is refused, and not cut in silence.
        "SET SESSION sql_mode = 'ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION,"
        "STRICT_ALL_TABLES', "
        f"SESSION innodb_lock_wait_timeout = {seconds}, SESSION lock_wait_timeout = {seconds}, "
        f"SESSION {limit}"
    )
    # With gaps locked, as is the default, batches would wait for rows that are not theirs.
    database.execute_sql("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")


def is_away(number: int) -> bool:
    """Tell by an error's number a database that cannot be asked now from one that refuses."""
    return number in _AWAY or 2000 <= number < 3000
