"""The log's columns for Django: instants are milliseconds, documents are text."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.db import models
from django.utils import timezone

from dramatiq_joblog.schema.fields import instant_of, millis_of


class InstantField(models.DateTimeField):
    """An instant, stored as milliseconds since 1970; lookups compare it with aware datetimes."""

    def get_internal_type(self) -> str:
        """Return the type of the column."""
        return "BigIntegerField"

    def from_db_value(self, value: Any, *_: Any) -> Any:
        """Return an aware datetime, or a naive one of the current zone without USE_TZ."""
        if value is None:
            return None
        at = instant_of(value)
        return at if settings.USE_TZ else timezone.make_naive(at)

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        """Return the milliseconds of an instant."""
        if value is None or isinstance(value, int):
            return value
        at = super().to_python(value)
        return millis_of(timezone.make_aware(at) if timezone.is_naive(at) else at)


class DocumentField(models.TextField):
    """A JSON document, stored as text."""

    def from_db_value(self, value: Any, *_: Any) -> Any:
        """Return the document, or the text if it is not JSON."""
        if value is None:
            return None
        try:
            return json.loads(value)
        except ValueError:
            return value
