"""The history of another log, brought into this one."""

from .admin.import_django import import_django_dramatiq

__all__ = ["import_django_dramatiq"]
