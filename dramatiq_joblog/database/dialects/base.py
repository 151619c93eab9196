"""The methods of a dialect; the defaults suit a database server."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from peewee import Value, fn

from dramatiq_joblog.database.upsert import Upsert

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from dramatiq_joblog.database.upsert import Rule


class Weakness(NamedTuple):
    """Why commits of a database may be lost, or are slow."""

    text: str
    cure: str


class Dialect(ABC):
    """What differs between kinds of databases.

    It stores nothing of any database; each method receives one.  Any: a peewee Database,
    connections of drivers, and models, none of which have types that help here.  Methods that do
    nothing by default (B027) are needed by one kind only.
    """

    #: Its name in a URL.
    kind: ClassVar[str]
    #: The expression for the database's time, in milliseconds since 1970.
    now: ClassVar[str]
    #: What commits survive if :meth:`weakness` finds nothing.
    durability: ClassVar[str] = "commits survive a power cut of the server"
    #: Whether only one transaction writes at a time, so that rows need no locks.
    writes_alone: ClassVar[bool] = False
    #: Whether one statement can insert a row or, if a guard holds, update the existing one, and
    #: return what it wrote.
    guards_upserts: ClassVar[bool] = True
    #: Whether several writes can be the steps of one statement.
    joins_writes: ClassVar[bool] = False
    #: Whether an index can cover only some rows.
    has_partial_indexes: ClassVar[bool] = True
    #: Whether index names are unique across all tables.
    shares_index_names: ClassVar[bool] = True
    #: Whether ILIKE ignores case for every column.
    folds_case: ClassVar[bool] = True
    #: Whether an index gives rows in the order of a column behind one that is NULL in all of them.
    skips_nulls: ClassVar[bool] = True

    #: The type to which a value is cast to read it as text.
    text_type: ClassVar[str] = "TEXT"
    #: Whether connection poolers may be in front of its servers.
    has_poolers: ClassVar[bool] = False

    # What the database is, and whether it can be used.

    def check(self, database: Any) -> None:  # noqa: B027
        """Prepare a database for a log before it is opened.

        Raises:
          ConfigurationError: If it cannot be.
        """

    def file_of(self, database: Any) -> Path | None:
        """Return the file of a database; None if it is on a server."""
        return None

    @abstractmethod
    def version(self, database: Any) -> str:
        """Query the server's name and version, for people."""

    def weakness(self, database: Any) -> Weakness | None:
        """Query why commits may be lost; None if they survive a crash."""
        return None

    # Writing.

    @abstractmethod
    def prepare(self, database: Any, timeout: int) -> None:
        """Configure this thread's connection for writing.

        Statements and locks time out after *timeout* milliseconds.
        """

    def begin(self, database: Any) -> AbstractContextManager[Any]:
        """Return a transaction that writes, or a savepoint of the open one."""
        return database.atomic()  # type: ignore[no-any-return]

    def begin_in_turn(self, database: Any) -> AbstractContextManager[Any]:
        """Return a transaction that reads and then writes, and may first wait for its turn."""
        return database.atomic()  # type: ignore[no-any-return]

    def in_order(self, model: Any, condition: Any, order: Any) -> Any:
        """Return the condition of an update that locks its rows in a fixed order, if possible.

        Transactions that lock their rows in the same order cannot deadlock.
        """
        return condition

    def lock(self, query: Any, *, wait: bool = True) -> Any:
        """Return a select that locks its rows until the transaction ends.

        If others have locked them, it waits; without *wait* it fails, to be done again.
        """
        return query.for_update(nowait=not wait)

    def upsert(self, rule: Rule) -> Upsert:
        """Return an object that writes rows by a rule."""
        return Upsert(rule)

    def is_busy(self, error: BaseException | None) -> bool:
        """Return whether an error means that another connection is writing, which soon ends."""
        return False

    def check_rights(self, database: Any, table: str) -> None:  # noqa: B027
        """Check rights that an empty insert does not need.

        Raises:
          peewee.OperationalError: If one is missing.
        """

    # Querying.

    @abstractmethod
    def bounded(self, database: Any, timeout: int) -> AbstractContextManager[None]:
        """Abort queries of the block that take longer than *timeout* milliseconds."""

    @abstractmethod
    def text_at(self, field: Any, steps: Sequence[str]) -> Any:
        """Return the expression for the text at a path in a column's JSON document.

        It is NULL if there is nothing.  A text is returned as it is, a number as it is written, and
        a boolean as ``true`` or ``false``.  Text that is not JSON counts as nothing.

        Parameters:
          field: The column.
          steps: Keys of objects, and digits for positions in lists.
        """

    def remainder(self, value: Any, divisor: int) -> Any:
        """Return the expression for the remainder of a division."""
        return fn.MOD(value, divisor)

    # Tables.

    @contextlib.contextmanager
    def migrating(self, database: Any) -> Iterator[None]:
        """Exclude other processes that migrate; in a transaction, if DDL allows it."""
        with database.atomic():
            yield

    def fit(self, model: Any) -> None:  # noqa: B027
        """Adjust a bound model so that its new table can hold what the model declares."""

    def tell_apart(self, model: Any) -> None:  # noqa: B027
        """Make an existing table distinguish texts as on other databases."""

    @abstractmethod
    def is_index(self, model: Any, name: str) -> bool:
        """Return whether the name of an index is taken."""

    def rename_index(self, model: Any, former: str, name: str) -> bool:
        """Rename an index; return False if that is not possible."""
        return False


def path_of(steps: Sequence[str]) -> Value:
    """Return the path to a value in a JSON document, for databases that have such paths."""
    # Names are compared as they are written, and the log's documents are ASCII.
    text = "".join(f"[{step}]" if step.isdigit() else f".{json.dumps(step)}" for step in steps)
    return Value(f"${text}", converter=False)
