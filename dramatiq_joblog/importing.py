"""Imports of other logs."""

from .admin.import_django import import_django_dramatiq

__all__ = ["import_django_dramatiq"]
