"""Queries that return the connection that was opened for them, and the models that make them.

All rows of a select are read before the connection is returned.  ``iterator()`` reads rows one by
one, and returns the connection at its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from peewee import (  # type: ignore[attr-defined]
    Field,
    InterfaceError,
    Model,
    ModelCompoundSelectQuery,
    ModelDelete,
    ModelInsert,
    ModelRaw,
    ModelSelect,
    ModelUpdate,
    __exception_wrapper__,
    quote,
)

from .checkout import checked_out

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peewee import Database

    # The base of the mixins for peewee's queries, whose types are peewee's own.
    _Query: Any = object
else:
    _Query = object


class _Lent(_Query):  # type: ignore[misc]
    """A query that opens a connection if its thread has none, and returns it afterwards."""

    # Any: peewee's queries are untyped, as are their results.

    def execute(self, database: Database | None = None) -> Any:
        """Execute the query; see peewee."""
        database = self._bound_to(database)
        with checked_out(database) as opened:
            result = super().execute(database)
            if opened and hasattr(result, "fill_cache"):
                with __exception_wrapper__:
                    result.fill_cache()
            return result

    def about_to_ask(self) -> None:
        """Prepare for the query, before a connection is opened."""

    def _bound_to(self, database: Database | None) -> Database:
        self.about_to_ask()
        found: Database | None = database or self._database
        if found is None:
            raise InterfaceError(
                f"{self.model.__name__} is bound to no log: use the model of one, "
                "such as joblog.Job"
            )
        return found


class _LentSelect(_Lent):
    """A select whose terminal methods use one connection."""

    #: peewee's cached result, once there is one.
    _cursor_wrapper: Any

    def iterator(self, database: Database | None = None) -> Iterator[Any]:
        """Iterate without keeping rows; see peewee."""
        database = self._bound_to(database)
        with checked_out(database):
            yield from super().iterator(database)

    def scalars(self, database: Database | None = None) -> Iterator[Any]:
        """Iterate over the first column; see peewee."""
        yield from [row[0] for row in self.tuples().execute(database)]

    def count(self, database: Database | None = None, clear_limit: Any = False) -> int:
        """Count the rows; see peewee."""
        database = self._bound_to(database)
        with checked_out(database):
            return int(super().count(database, clear_limit))

    def exists(self, database: Database | None = None) -> bool:
        """Return whether there is a row; see peewee."""
        database = self._bound_to(database)
        with checked_out(database):
            return bool(super().exists(database))

    def peek(self, database: Database | None = None, n: int = 1) -> Any:
        """Return the first rows; see peewee."""
        database = self._bound_to(database)
        with checked_out(database) as opened:
            rows = super().peek(database, n)
            if opened:
                self._let_go()
            return rows

    def __getitem__(self, value: Any) -> Any:
        if self._cursor_wrapper is not None or self._database is None:
            return super().__getitem__(value)
        with checked_out(self._database) as opened:
            rows = super().__getitem__(value)
            if opened:
                self._let_go()
            return rows

    def __sql_selection__(self, ctx: Any, is_subquery: bool = False) -> Any:
        """Write the columns of a whole row at once; see peewee.

        Node by node, the forty columns of a job take longer than the rest of the query.
        """
        meta, columns = self.model._meta, self._returning
        whole = self._is_default and not is_subquery and len(columns) == len(meta.sorted_fields)
        # By identity: peewee's fields compare to a condition, which is true.
        if not whole or not all(
            column is field and type(field).__sql__ is Field.__sql__
            for column, field in zip(columns, meta.sorted_fields, strict=True)
        ):
            return super().__sql_selection__(ctx, is_subquery)
        table, quotes = ctx.alias_manager[meta.table], ctx.state.quote
        return ctx.literal(
            ", ".join([quote((table, field.column_name), quotes) for field in columns])
        )

    def _let_go(self) -> None:
        """Forget a result that was only partly read, because its connection is returned."""
        result = self._cursor_wrapper
        if result is not None and not result.populated:
            self._cursor_wrapper = None

    def union_all(self, rhs: Any) -> Any:
        """Return all rows of both; see peewee."""
        return CompoundSelect(self.model, self, "UNION ALL", rhs)

    def union(self, rhs: Any) -> Any:
        """Return the rows of either; see peewee."""
        return CompoundSelect(self.model, self, "UNION", rhs)

    def intersect(self, rhs: Any) -> Any:
        """Return the rows of both; see peewee."""
        return CompoundSelect(self.model, self, "INTERSECT", rhs)

    def except_(self, rhs: Any) -> Any:
        """Return the rows of one that are not of the other; see peewee."""
        return CompoundSelect(self.model, self, "EXCEPT", rhs)

    __add__, __or__, __and__, __sub__ = union_all, union, intersect, except_


if TYPE_CHECKING:
    from typing_extensions import Self, TypeVar

    #: The model of the rows.
    M = TypeVar("M", bound=Model, default=Model)

    class Select(ModelSelect[M]):
        """A select of rows, typed where the stubs of peewee leave parameters untyped."""

        def first(self, database: Any = None, n: int = 1) -> M | None:
            """See peewee."""

        def limit(self, value: int | None = None) -> Self:
            """See peewee."""

        def offset(self, value: int | None = None) -> Self:
            """See peewee."""

        def order_by(self, *values: Any) -> Self:
            """See peewee."""

        def where(self, *expressions: Any) -> Self:
            """See peewee."""

    CompoundSelect: Any = ModelCompoundSelectQuery
else:
    from typing import TypeVar

    M = TypeVar("M")

    class Select(_LentSelect, ModelSelect, Generic[M]):
        """A select of rows."""

    class CompoundSelect(_LentSelect, ModelCompoundSelectQuery):
        """Two selects in one."""


class _Raw(_Lent, ModelRaw):  # type: ignore[misc]
    """A statement in SQL."""


class _Insert(_Lent, ModelInsert):  # type: ignore[misc]
    """An insert."""


class _Update(_Lent, ModelUpdate):  # type: ignore[misc]
    """An update."""


class _Delete(_Lent, ModelDelete):  # type: ignore[misc]
    """A deletion."""


def _as(kind: Any, query: Any) -> Any:
    """Return *query* as another class of query, in the way peewee clones queries."""
    own = kind.__new__(kind)
    own.__dict__.update(query.__dict__)
    return own


class LentModel(Model):
    """A model whose queries return the connection that was opened for them."""

    class Meta:
        # Indexes are named after the table: the classes of two tables may have the same name.
        legacy_table_names = False

    # Any: what peewee's own methods take and return.

    @classmethod
    def select(cls, *fields: Any) -> Select[Self]:
        """Select rows; see peewee."""
        return Select(cls, fields or cls._meta.sorted_fields, is_default=not fields)

    @classmethod
    def insert(cls, *args: Any, **values: Any) -> Any:
        """Insert a row; see peewee."""
        return _as(_Insert, super().insert(*args, **values))

    @classmethod
    def insert_many(cls, *args: Any, **options: Any) -> Any:
        """Insert rows; see peewee."""
        return _as(_Insert, super().insert_many(*args, **options))

    @classmethod
    def insert_from(cls, *args: Any, **options: Any) -> Any:
        """Insert what a query returns; see peewee."""
        return _as(_Insert, super().insert_from(*args, **options))

    @classmethod
    def update(cls, *args: Any, **values: Any) -> Any:
        """Update rows; see peewee."""
        return _as(_Update, super().update(*args, **values))

    @classmethod
    def delete(cls) -> Any:
        """Delete rows; see peewee."""
        return _as(_Delete, super().delete())

    @classmethod
    def raw(cls, *args: Any, **options: Any) -> Any:
        """Write a statement in SQL; see peewee."""
        return _as(_Raw, super().raw(*args, **options))
