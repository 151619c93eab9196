"""What of a log's parts those need who read messages for it, send them again or import jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from peewee import Database

    from dramatiq_joblog.locking.locks import Locks
    from dramatiq_joblog.payload.encryption import Seal
    from dramatiq_joblog.payload.redaction import Redactor
    from dramatiq_joblog.schema.tables import Tables

    from .newest import Newest
    from .transitions import Transitions
    from .writer import Writer


C_co = TypeVar("C_co", covariant=True)


class Log(Protocol[C_co]):
    """A log, whose parts may be others at another time: tests have it on their own database."""

    @property
    def core(self) -> C_co:
        """What it is made of now."""


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
    def locks(self) -> Locks:
        """The statements on keys."""

    @property
    def writer(self) -> Writer:
        """Where events are written."""

    @property
    def record(self) -> Callable[..., Any]:
        """Writes down what someone did."""


class Keyed(Protocol):
    """Where keys are held, and what takes them."""

    @property
    def database(self) -> Database:
        """Where they are."""

    @property
    def locks(self) -> Locks:
        """The statements on keys."""

    @property
    def newest(self) -> Newest:
        """The statements on keys of which the newest message is kept."""

    @property
    def writer(self) -> Writer:
        """Where events are written."""

    def may_wait(self) -> bool:
        """Return whether this thread may wait for the writer."""


class Describing(Protocol):
    """Knows what a message alone decides."""

    def describe(self, data: Mapping[str, Any], user_from: str | None = None) -> dict[str, Any]:
        """Return the columns of a message, by the options of its actor; none if it has none."""


class Imported(Stored, Protocol):
    """Where jobs are imported to."""

    @property
    def sender(self) -> Describing | None:
        """Knows the actors that this process declared, if it did."""
