"""The columns' types: each converts values that are stored or searched, and reads what it can.

A row may have been written by an older or a newer version, or by hand: a value that cannot be read
must not hide the others.
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
    """Return the aware UTC datetime of milliseconds since 1970, or the nearest one that exists."""
    seconds, rest = divmod(as_millis(millis) or 0, 1000)
    return datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=rest * 1000)


def millis_of(instant: Any, name: str = "") -> int:
    """Return a given instant in milliseconds since 1970.

    Parameters:
      instant: An aware datetime, a date for the start of that day in UTC, or milliseconds.
      name: The parameter that it was given as, for the error.

    Raises:
      ValueError: If a datetime has no time zone.
      TypeError: If it is not an instant.
    """
    if isinstance(instant, datetime):
        return to_millis(instant, name)
    if isinstance(instant, date):
        return to_millis(start_of(instant))
    millis = None if isinstance(instant, str) else as_millis(instant)
    if millis is None:
        raise TypeError(
            f"{name and name + '='}{shown(instant)} is not an instant: use an aware datetime, "
            "such as datetime.now(timezone.utc), a date, or milliseconds since 1970"
        )
    return millis


class InstantField(BigIntegerField):
    """An instant: an aware UTC datetime, stored as milliseconds since 1970.

    A number reads the same on every database and driver, and in every session time zone.
    """

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field, typed by the kind of its values."""

    def db_value(self, value: datetime | date | int | None) -> int | None:
        """Accept an aware datetime, a date for the start of that day in UTC, or milliseconds.

        Raises:
          ValueError: If a datetime has no time zone.
          TypeError: If it is not an instant.
        """
        return None if value is None else millis_of(value)

    def python_value(self, value: Any) -> datetime | None:
        """Return an aware UTC datetime, the nearest that exists; None for anything but a number."""
        millis = as_millis(value)
        return None if millis is None else instant_of(millis)


class NumberField(IntegerField):
    """A whole number; anything else is read as None."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field, typed by the kind of its values."""

    def python_value(self, value: Any) -> int | None:
        """Return the number."""
        return value if value is None or type(value) is int else as_int(value, least=-MAX_INT)


class BigNumberField(BigIntegerField):
    """A big integer; anything else is read as None."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field, typed by the kind of its values."""

    def python_value(self, value: Any) -> int | None:
        """Return the number."""
        if value is None or type(value) is int:
            return value
        return as_int(value, least=-MAX_BIGINT, most=MAX_BIGINT)


def _read_text(value: Any) -> str | None:
    """Return the text of a column, whatever a database without strict types has stored in it."""
    if value is None or type(value) is str:
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else text_of(value)


class KeyField(CharField):
    """A text that identifies something, such as a jid; too long a text is stored as its digest."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field, typed by the kind of its values."""

    def db_value(self, value: Any) -> str | None:
        """Accept anything that has a text."""
        return None if value is None else fold_jid(value)

    def python_value(self, value: Any) -> str | None:
        """Return the text."""
        return _read_text(value)


class NameField(CharField):
    """A short text; if it is too long, it ends in a digest of the whole."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field, typed by the kind of its values."""

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
            """Return a field, typed by the kind of its values."""

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
            """Return a field, typed by the kind of its values."""

    def python_value(self, value: Any) -> str | None:
        """Return the member, or the text itself if a newer version wrote it."""
        text = _read_text(value)
        try:
            return None if text is None else State(text)
        except ValueError:
            return text


class _UserIdAccessor(FieldAccessor):
    """Returns a row's id as it was sent: 7 and "7" share a text, and another column says which."""

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
    """A user's id of any kind, stored as text: a search for ``7`` or ``"7"`` finds both.

    A row returns it as it was sent, by means of `user_is_text`.  In a select without that column,
    and in rows of versions without it, a whole number is an ``int``.
    """

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field, typed by the kind of its values."""

    accessor_class = _UserIdAccessor

    def db_value(self, value: Any) -> str | None:
        """Accept a number, a text, or anything whose ``str`` is the id, such as a UUID."""
        return None if value is None else fold_jid(user_id_of(value))

    def python_value(self, value: Any) -> int | str | None:
        """Return ``7`` if ``7`` or ``"7"`` was stored."""
        text = _read_text(value)
        number = _number_of(text)
        return text if number is None else number


def is_text_of_number(value: Any) -> bool:
    """Return whether a user's id is a text that looks like a whole number."""
    return isinstance(value, str) and _number_of(text_of(value)) is not None


def _number_of(text: str | None) -> int | None:
    """Return the number that Python writes as *text*, if there is one."""
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
    """Return a user to search for, in the form of the column *field*.

    Parameters:
      field: The column of users.
      user: An id, or the row of a user.

    Raises:
      SearchError: If it cannot be a user's id.
    """
    key = user_id_of(user)
    if key is None and user is not None:
        raise SearchError(
            f"{shown(user)} is not a stored user: it has no primary key; save it first"
        )
    if _is_row(key):
        raise SearchError(
            f"{shown(user)} is not an id of a user: give its primary key, such as user.id"
        )
    target = getattr(field, "rel_field", field)
    try:
        value = target.db_value(key)
    except (TypeError, ValueError, ArithmeticError) as e:
        raise SearchError(f"{shown(user)} cannot be the id of a user of this log") from e
    is_number = isinstance(value, int)
    if (isinstance(target, IntegerField) and not is_number and value is not None) or (
        is_number and not -MAX_BIGINT <= value <= MAX_BIGINT
    ):
        # No column holds it, and drivers raise.
        raise SearchError(f"{shown(user)} cannot be the id of a user of this log")
    return clean_optional(value, None) if isinstance(value, str) else value


def _is_row(key: Any) -> bool:
    """Return whether an object of the application was given instead of an id."""
    # Any: the methods of a class are compared.
    kind: Any = type(key)
    if kind is object:
        return True
    if key is None or kind.__module__ == "builtins" or hasattr(kind, "__index__"):
        return False
    return hasattr(key, "id") or (kind.__str__ is object.__str__ and not isinstance(key, str))


class JsonField(TextField):
    """A JSON document, stored as text, which every database and driver reads in the same way."""

    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Return a field, typed by the kind of its values."""

    def db_value(self, value: Any) -> str | None:
        """Accept anything; what JSON cannot express is stored as text."""
        if value is None:
            return None
        try:
            return write_json(value)[0]
        except ValueError:
            return json.dumps(clean_optional(shown(value, 10_000), None))

    def python_value(self, value: Any) -> Any:
        """Return the document, or the text if it is not JSON."""
        return None if value is None else read_json(value)
