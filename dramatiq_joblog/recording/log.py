"""What of a log those need who read messages for it, send them again or import jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from peewee import Database

    from dramatiq_joblog.payload.encryption import Seal
    from dramatiq_joblog.payload.redaction import Redactor
    from dramatiq_joblog.schema.tables import Tables

    from .transitions import Transitions
    from .writer import Writer


class Kept(Protocol):
    """What is kept of arguments."""

    @property
    def store_args(self) -> bool:
        """Whether they are kept."""

    @property
    def redactor(self) -> Redactor:
        """Takes secrets out of them."""

    @property
    def seal(self) -> Seal | None:
        """Encrypts what is not shown, if anything does."""


class Typed(Kept, Protocol):
    """What is kept of a message, in which columns, and which job types there are."""

    @property
    def tables(self) -> Tables[Any]:
        """The log's tables."""

    @property
    def own_fields(self) -> Mapping[str, Any]:
        """The fields that a model of the user's own adds, by name."""

    @property
    def check_job_type(self) -> Callable[[Any, str], str | None]:
        """Returns the text of a job type, or raises."""


class Stored(Protocol):
    """Where rows are, and what takes secrets out of what is stored there."""

    @property
    def tables(self) -> Tables[Any]:
        """The log's tables."""

    @property
    def database(self) -> Database:
        """Where they are."""

    @property
    def redactor(self) -> Redactor:
        """Takes secrets out of texts."""


class Written(Stored, Protocol):
    """Where rows are, and what writes them."""

    @property
    def transitions(self) -> Transitions:
        """The statements on jobs."""

    @property
    def writer(self) -> Writer:
        """Where events are written."""

    @property
    def record(self) -> Callable[..., Any]:
        """Writes down what someone did."""


class Describing(Protocol):
    """Knows what a message alone decides."""

    def describe(self, data: Mapping[str, Any], user_from: str | None = None) -> dict[str, Any]:
        """Return the columns of a message, by the options of its actor; none if it has none."""


class Imported(Stored, Protocol):
    """Where jobs are imported to."""

    @property
    def sender(self) -> Describing | None:
        """Knows the actors that this process declared, if it did."""
