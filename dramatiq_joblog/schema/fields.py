"""The columns' types: each makes fit what is stored and what is asked for, and reads what it can.

A row may have been written by an older or a newer version, or by hand: no value of it keeps a
reader from the others.
"""

from __future__ import annotations

import json
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any

from peewee import (
    BigIntegerField,
    CharField,
    FieldAccessor,
    IntegerField,
    Model,
    TextField,
)

from dramatiq_joblog.errors import SearchError
from dramatiq_joblog.payload.sanitize import (
    clean_optional,
    fit_name,
    fold_jid,
    read_json,
    text_of,
    write_json,
)
from dramatiq_joblog.payload.values import (
    MAX_BIGINT,
    MAX_INT,
    as_int,
    as_millis,
    shown,
    start_of,
    to_millis,
)
from dramatiq_joblog.states import State


def instant_of(millis: int) -> datetime:
    """Return the aware UTC datetime of milliseconds since 1970, the nearest that there is."""
    seconds, rest = divmod(as_millis(millis) or 0, 1000)
    return datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=rest * 1000)


def millis_of(instant: Any) -> int:
    """Return an instant that is given, in milliseconds since 1970.

    Parameters:
      instant: An aware datetime, a date for the begin of that day in UTC, or milliseconds.

    Raises:
      ValueError: If a datetime has no time zone.
      TypeError: If it is not an instant.
    """
    if isinstance(instant, datetime):
        return to_millis(instant)
    if isinstance(instant, date):
        return to_millis(start_of(instant))
    millis = None if isinstance(instant, str) else as_millis(instant)
    if millis is None:
        raise TypeError(
            f"{shown(instant)} is not an instant: use an aware datetime, as "
            "datetime.now(timezone.utc), a date, or milliseconds since 1970"
        )
    return millis


class InstantField(BigIntegerField):
    """An instant: an aware UTC datetime, kept as milliseconds since 1970.

    A number reads the same on every database and driver, and whatever the session's time zone.
    """

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field of what it is declared to hold."""

    def db_value(self, value: datetime | date | int | None) -> int | None:
        """Accept an aware datetime, a date for the begin of that day in UTC, or milliseconds.

        Raises:
          ValueError: If a datetime has no time zone.
          TypeError: If it is not an instant.
        """
        return None if value is None else millis_of(value)

    def python_value(self, value: Any) -> datetime | None:
        """Return an aware UTC datetime, the nearest there is; None for what is not a number."""
        millis = as_millis(value)
        return None if millis is None else instant_of(millis)


class NumberField(IntegerField):
    """A whole number; what is none is read as None."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field of what it is declared to hold."""

    def python_value(self, value: Any) -> int | None:
        """Return the number."""
        return value if value is None or type(value) is int else as_int(value, least=-MAX_INT)


class BigNumberField(BigIntegerField):
    """A whole number of any size that a database knows; what is none is read as None."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field of what it is declared to hold."""

    def python_value(self, value: Any) -> int | None:
        """Return the number."""
        if value is None or type(value) is int:
            return value
        return as_int(value, least=-MAX_BIGINT, most=MAX_BIGINT)


def _read_text(value: Any) -> str | None:
    """Return the text of a column, whatever a database without types keeps in it."""
    if value is None or type(value) is str:
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else text_of(value)


class KeyField(CharField):
    """A text that names something, as a jid: one that is too long is kept as its digest."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field of what it is declared to hold."""

    def db_value(self, value: Any) -> str | None:
        """Accept anything that has a text."""
        return None if value is None else fold_jid(value)

    def python_value(self, value: Any) -> str | None:
        """Return the text."""
        return _read_text(value)


class NameField(CharField):
    """A short text: one that is too long ends in a digest of the whole."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field of what it is declared to hold."""

    def db_value(self, value: Any) -> str | None:
        """Accept anything that has a text."""
        return fit_name(value, self.max_length)

    def python_value(self, value: Any) -> str | None:
        """Return the text."""
        return _read_text(value)


class ProseField(TextField):
    """A text of any length."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field of what it is declared to hold."""

    def db_value(self, value: Any) -> str | None:
        """Accept anything that has a text."""
        return None if value is None else clean_optional(value, None)

    def python_value(self, value: Any) -> str | None:
        """Return the text."""
        return _read_text(value)


class StateField(NameField):
    """A state as short text, read back as a :class:`State`."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field of what it is declared to hold."""

    def python_value(self, value: Any) -> str | None:
        """Return the member, or the text itself if a newer version wrote it."""
        text = _read_text(value)
        try:
            return None if text is None else State(text)
        except ValueError:
            return text


class _UserIdAccessor(FieldAccessor):
    """Gives a row the id as it was sent: ids may share a text, and another column says which."""

    def __get__(self, instance: Any, instance_type: Any = None) -> Any:
        value = super().__get__(instance, instance_type)  # type: ignore[no-untyped-call]
        if type(value) is int and instance is not None and instance.__data__.get("user_is_text"):
            return str(value)
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        super().__set__(instance, value)
        if is_text_of_number(value):
            instance.user_is_text = True


class UserIdField(CharField):
    """A user's id of any kind, kept as text: ``7`` and ``"7"`` are the same to those who ask.

    A row has it as it was sent, as `user_is_text` says so; in a select without that column, and
    in rows of versions that had none, a whole number is an ``int``.
    """

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field of what it is declared to hold."""

    accessor_class = _UserIdAccessor

    def db_value(self, value: Any) -> str | None:
        """Accept a number, text, or anything whose ``str`` is the id, as a UUID."""
        return None if value is None else fold_jid(user_id_of(value))

    def python_value(self, value: Any) -> int | str | None:
        """Return ``7`` for what was stored from ``7`` or ``"7"``."""
        text = _read_text(value)
        number = _number_of(text)
        return text if number is None else number


def is_text_of_number(value: Any) -> bool:
    """Return whether a user's id is a text whose column reads like that of a number."""
    return isinstance(value, str) and _number_of(text_of(value)) is not None


def _number_of(text: str | None) -> int | None:
    """Return the number of which *text* is what Python writes."""
    if text is None or len(text) > 40 or not text.removeprefix("-").isascii():
        return None
    if not text.removeprefix("-").isdigit():
        return None
    number = int(text)
    return number if str(number) == text else None


def user_id_of(user: Any) -> Any:
    """Return the primary key of a user's row, of peewee or of Django; any other value itself."""
    if isinstance(user, Model):
        return user.get_id()
    if not isinstance(user, (str, int)) and hasattr(user, "pk"):
        return user.pk
    return user


def user_asked(field: Any, user: Any) -> Any:
    """Return a user that is asked for as the column *field* has it.

    Parameters:
      field: The column of users.
      user: An id, or the row of a user.

    Raises:
      SearchError: If it cannot be the id of a user.
    """
    key = user_id_of(user)
    if key is None and user is not None:
        raise SearchError(
            f"{shown(user)} is not a stored user: it has no primary key; save it first"
        )
    if _is_row(key):
        raise SearchError(f"{shown(user)} is not an id of a user: give its primary key, as user.id")
    target = getattr(field, "rel_field", field)
    try:
        value = target.db_value(key)
    except (TypeError, ValueError, ArithmeticError) as e:
        raise SearchError(f"{shown(user)} cannot be the id of a user of this log") from e
    is_number = isinstance(value, int)
    if (isinstance(target, IntegerField) and not is_number and value is not None) or (
        is_number and not -MAX_BIGINT <= value <= MAX_BIGINT
    ):
        # No column has it, and drivers raise.
        raise SearchError(f"{shown(user)} cannot be the id of a user of this log")
    return clean_optional(value, None) if isinstance(value, str) else value


def _is_row(key: Any) -> bool:
    """Return whether what is given for an id is an object of the application's own instead."""
    # Any: the methods of a class are compared.
    kind: Any = type(key)
    if kind is object:
        return True
    if key is None or kind.__module__ == "builtins" or hasattr(kind, "__index__"):
        return False
    return hasattr(key, "id") or (kind.__str__ is object.__str__ and not isinstance(key, str))


class JsonField(TextField):
    """A JSON document kept as text, which every database and driver reads in the same way."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field of what it is declared to hold."""

    def db_value(self, value: Any) -> str | None:
        """Accept anything; what JSON cannot hold is kept as text."""
        if value is None:
            return None
        try:
            return write_json(value)[0]
        except ValueError:
            return json.dumps(clean_optional(shown(value, 10_000), None))

    def python_value(self, value: Any) -> Any:
        """Return the document, or the text of what is none."""
        return None if value is None else read_json(value)
