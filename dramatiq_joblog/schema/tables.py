"""The tables of one log: its models, bound to its database."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Generic

from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.database.url import describe
from dramatiq_joblog.errors import ConfigurationError

from .models import (
    Action,
    AlertState,
    Bond,
    Deploy,
    Failure,
    Job,
    Line,
    Lock,
    Mark,
    Mute,
    SavedSearch,
    Total,
    Worker,
    add_indexes,
)
from .query import J

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from peewee import Database


@dataclass(frozen=True)
class Tables(Generic[J]):
    """The models of one log's tables, bound to one database."""

    job: type[J]
    failure: type[Failure]
    worker: type[Worker]
    lock: type[Lock]
    line: type[Line]
    total: type[Total]
    action: type[Action]
    mark: type[Mark]
    alert: type[AlertState]
    deploy: type[Deploy]
    search: type[SavedSearch]
    mute: type[Mute]

    @property
    def database(self) -> Database:
        """The database of the tables."""
        # Any: peewee's stubs do not know this attribute.
        meta: Any = self.job._meta
        database: Database = meta.database
        return database

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the models, jobs first, in the order in which migrations know them."""
        return (getattr(self, field.name) for field in fields(self))


def bind_tables(
    model: type[J], database: Database, *, on_select: Callable[[], None] | None = None
) -> Tables[J]:
    """Return the tables of a log.

    Parameters:
      model: The job model: the package's own, or a subclass of it.
      database: The database of the tables.
      on_select: Called before jobs are queried.

    Raises:
      ConfigurationError: If it is not such a model, or is bound to another database.
    """
    job = _bind_job(model, database)
    meta: Any = job._meta
    prefix = meta.table_name.removesuffix("_job")
    tables = Tables(
        job,
        _bind(Failure, prefix, database),
        _bind(Worker, prefix, database),
        _bind(Lock, prefix, database),
        _bind(Line, prefix, database),
        _bind(Total, prefix, database),
        _bind(Action, prefix, database),
        _bind(Mark, prefix, database),
        _bind(AlertState, prefix, database),
        _bind(Deploy, prefix, database),
        _bind(SavedSearch, prefix, database),
        _bind(Mute, prefix, database),
    )
    bond = Bond(tables.failure, tables.line, on_select)
    job.join(bond)
    tables.failure.join(bond)
    return tables


def own_fields(model: type[Job]) -> dict[str, Any]:
    """Return the fields that a user's own model adds, by name.

    Raises:
      ConfigurationError: If one of them is required, so that jobs could not be logged.
    """
    base: Any = Job
    # Any: peewee's stubs do not know it.
    meta: Any = model._meta
    inherited = {f.name for f in base._meta.sorted_fields}
    own = {f.name: f for f in meta.sorted_fields if f.name not in inherited}
    for name, field in own.items():
        if not field.null and field.default is None and name != "user":
            raise ConfigurationError(
                f"the column {name!r} of {model.__name__} is neither nullable nor has a default, "
                "so a job that does not name it could not be logged; add null=True or default=..."
            )
        if name == "user" and not field.null:
            raise ConfigurationError(
                f"the column 'user' of {model.__name__} must be null=True: not every job has one"
            )
    return own


def _bind_job(model: Any, database: Database) -> Any:
    if not (isinstance(model, type) and issubclass(model, Job)):
        raise ConfigurationError(f"model={model!r} is not a subclass of dramatiq_joblog.Job")
    if model is Job:
        # The package's own class stays unbound, so that two logs never share it.
        bound: Any = _bind(Job, "joblog", database)
        add_indexes(bound)
        return bound
    meta: Any = model._meta
    if meta.database not in (None, database):
        raise ConfigurationError(
            f"the model {model.__name__} is bound to another database, "
            f"{describe(meta.database)}; make one subclass of Job for each log"
        )
    model.bind(database)
    if not any(getattr(i, "_name", "") == f"{meta.table_name}_active" for i in meta.indexes):
        add_indexes(model)
    dialect_of(model._meta.database).fit(model)
    return model


def _bind(model: Any, prefix: str, database: Database) -> Any:
    """Return *model* bound to the database; its table is named *prefix* and its class."""
    table = f"{prefix}_{model.__name__.lower()}"
    meta = type("Meta", (), {"table_name": table, "database": database})
    # Copies of the fields: peewee's own deep copies would take many times as long.
    copies = {f.name: f.clone() for f in model._meta.sorted_fields if not f.primary_key}
    attributes = {"__module__": model.__module__, "Meta": meta, **copies}
    bound = type(model.__name__, (model,), attributes)
    dialect_of(database).fit(bound)
    return bound
