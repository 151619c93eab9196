"""What a dialect must define; the defaults are those of a server."""

from __future__ import annotations

import contextlib
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
    """Why commits of a database may be lost, or be slow."""

    text: str
    cure: str


class Dialect(ABC):
    """What differs between kinds of databases.

    It keeps nothing of any database: those are handed in.  Any: a peewee Database, the drivers'
    own connections, and models, none of which have types that help here.  What does nothing by
    default (B027) is what one kind alone needs.
    """

    #: What it is called in a URL.
    kind: ClassVar[str]
    #: The expression for the database's time, in milliseconds since 1970.
    now: ClassVar[str]
    #: What commits survive, where :meth:`weakness` finds nothing.
    durability: ClassVar[str] = "commits survive a power cut of the server"
    #: Whether one transaction at a time writes, and no row needs a lock.
    writes_alone: ClassVar[bool] = False
    #: Whether one statement can insert a row or, if a guard lets it, change the one that is there,
    #: and return what it wrote.
    guards_upserts: ClassVar[bool] = True
    #: Whether several writes can be the steps of one statement.
    joins_writes: ClassVar[bool] = False
    #: Whether an index can be of some rows.
    has_partial_indexes: ClassVar[bool] = True
    #: Whether the names of indexes are shared by all tables.
    shares_index_names: ClassVar[bool] = True
    #: Whether ILIKE leaves case aside whatever the column.
    folds_case: ClassVar[bool] = True

    #: What a value is cast to that is to be read as a text.
    text_type: ClassVar[str] = "TEXT"
    #: Whether poolers that hand connections on stand in front of its servers.
    has_poolers: ClassVar[bool] = False

    # What a database is, and whether it can be used.

    def check(self, database: Any) -> None:  # noqa: B027
        """Make a database fit for a log before it is opened.

        Raises:
          ConfigurationError: If it cannot be.
        """

    def file_of(self, database: Any) -> Path | None:
        """Return the file that a database is; None if a server has it."""
        return None

    @abstractmethod
    def version(self, database: Any) -> str:
        """Ask for the name and version of what answers, for people."""

    def weakness(self, database: Any) -> Weakness | None:
        """Ask why commits may be lost; None if they survive a crash."""
        return None

    # How it is written to.

    @abstractmethod
    def prepare(self, database: Any, timeout: int) -> None:
        """Set what a connection of this thread that writes needs.

        A statement, or a lock, is waited for *timeout* milliseconds.
        """

    def begin(self, database: Any) -> AbstractContextManager[Any]:
        """Return a transaction that writes, or a part of the one that is open."""
        return database.atomic()  # type: ignore[no-any-return]

    def begin_in_turn(self, database: Any) -> AbstractContextManager[Any]:
        """Return a transaction that reads and then writes, which may wait for its turn."""
        return database.atomic()  # type: ignore[no-any-return]

    def in_order(self, model: Any, condition: Any, order: Any) -> Any:
        """Return the condition of an update that locks its rows in an order, if it can.

        Who locks several rows waits for nobody who locks them in the same order and waits.
        """
        return condition

    def lock(self, query: Any) -> Any:
        """Return a select whose rows nobody else changes until the transaction ends."""
        return query.for_update()

    def upsert(self, rule: Rule) -> Upsert:
        """Return what writes rows by a rule."""
        return Upsert(rule)

    def is_busy(self, error: BaseException | None) -> bool:
        """Return whether an error says that another connection writes, and soon will no more."""
        return False

    def check_rights(self, database: Any, table: str) -> None:  # noqa: B027
        """Ask for rights that an empty insert does not need.

        Raises:
          peewee.OperationalError: If one is missing.
        """

    # How it is asked.

    @abstractmethod
    def bounded(self, database: Any, timeout: int) -> AbstractContextManager[None]:
        """Cut questions of the block that take longer than *timeout* milliseconds."""

    @abstractmethod
    def text_at(self, field: Any, steps: Sequence[str]) -> Any:
        """Return the expression for the text that names lead to in a column's JSON document.

        It is NULL if there is none.  A text is itself, a number as it is written, and truth
        ``true`` or ``false``.  What is no JSON, however it came there, has none.

        Parameters:
          field: The column.
          steps: Keys of objects and, as digits, places in lists.
        """

    def remainder(self, value: Any, divisor: int) -> Any:
        """Return the expression for what is left of a division."""
        return fn.MOD(value, divisor)

    # How its tables are made.

    @contextlib.contextmanager
    def migrating(self, database: Any) -> Iterator[None]:
        """Keep out every other process that migrates, in a transaction where DDL allows it."""
        with database.atomic():
            yield

    def fit(self, model: Any) -> None:  # noqa: B027
        """Have the table of a bound model made so that it holds what the model says."""

    def tell_apart(self, model: Any) -> None:  # noqa: B027
        """Have a table that is there distinguish texts as elsewhere."""

    @abstractmethod
    def is_index(self, model: Any, name: str) -> bool:
        """Return whether the name of an index of a bound model is taken."""

    def rename_index(self, model: Any, former: str, name: str) -> bool:
        """Rename an index; return False where that cannot be."""
        return False


def path_of(steps: Sequence[str]) -> Value:
    """Return the path to a value in a JSON document, for databases that know such."""
    text = "".join(f"[{step}]" if step.isdigit() else f'."{step}"' for step in steps)
    return Value(f"${text}", converter=False)
