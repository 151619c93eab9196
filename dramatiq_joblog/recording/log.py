"""Protocols of a log's parts, for modules that read or send messages, or import jobs."""

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
    """A log.  Its parts may be replaced: tests move it to their own database."""

    @property
    def core(self) -> C_co:
        """Its current parts."""


class Kept(Protocol):
    """How arguments are stored."""

    @property
    def store_args(self) -> bool:
        """Whether they are stored."""

    @property
    def redactor(self) -> Redactor:
        """Removes secrets from them."""

    @property
    def seal(self) -> Seal | None:
        """Encrypts values that are not shown; None without encryption."""


class Typed(Kept, Protocol):
    """How messages are stored, in which columns, and which job types exist."""

    @property
    def tables(self) -> Tables[Any]:
        """The log's tables."""

    @property
    def own_fields(self) -> Mapping[str, Any]:
        """The fields that a custom model adds, by name."""

    @property
    def check_job_type(self) -> Callable[[Any, str], str | None]:
        """Returns the name of a job type, or raises."""


class Stored(Protocol):
    """Where rows are stored, and how they are redacted."""

    @property
    def tables(self) -> Tables[Any]:
        """The log's tables."""

    @property
    def database(self) -> Database:
        """Where they are."""

    @property
    def redactor(self) -> Redactor:
        """Removes secrets from texts."""


class Written(Stored, Protocol):
    """Where rows are stored, and what writes them."""

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
        """Records an action of a user."""


class Writing(Protocol):
    """What writes events."""

    @property
    def writer(self) -> Writer:
        """Where events are written."""

    def may_wait(self) -> bool:
        """Return whether this thread may block on the writer."""


class Keyed(Writing, Protocol):
    """Where keys are stored, and what acquires them."""

    @property
    def database(self) -> Database:
        """Where they are."""

    @property
    def locks(self) -> Locks:
        """The statements on keys."""

    @property
    def newest(self) -> Newest:
        """The statements on unique keys that keep the newest message."""


class Describing(Protocol):
    """Describes messages."""

    def describe(self, data: Mapping[str, Any], user_from: str | None = None) -> dict[str, Any]:
        """Return the columns of a message, from its actor's options; empty if there are none."""


class Imported(Stored, Protocol):
    """Where jobs are imported."""

    @property
    def sender(self) -> Describing | None:
        """Knows the actors that this process declared; None if there are none."""
