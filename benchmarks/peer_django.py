"""django_dramatiq with favourable settings: connections that are kept, WAL, patient locks."""

from __future__ import annotations

from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.management import call_command


def set_up(url: str) -> None:
    """Configure Django for the database at *url*."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        database = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": parts.path[1:],
            "OPTIONS": {
                "timeout": 30,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;",
            },
        }
    else:
        database = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts.path[1:],
            "USER": parts.username,
            "HOST": parts.hostname,
            "PORT": parts.port,
        }
    settings.configure(
        DATABASES={"default": database | {"CONN_MAX_AGE": None}},
        DRAMATIQ_BROKER={"BROKER": "dramatiq.brokers.stub.StubBroker", "MIDDLEWARE": []},
        INSTALLED_APPS=["django_dramatiq"],
        LOGGING_CONFIG=None,
        USE_TZ=True,
    )
    django.setup()


def create_tables() -> None:
    """Create its tables."""
    call_command("migrate", verbosity=0)


def rows() -> tuple[int, int]:
    """Return how many rows say that their job is done, and how many there are."""
    # Django's models exist only once it is set up.
    from django_dramatiq.models import Task  # noqa: PLC0415

    return Task.tasks.filter(status=Task.STATUS_DONE).count(), Task.tasks.count()


if __name__ == "__main__":
    import sys

    set_up(sys.argv[2])
    if sys.argv[1] == "create":
        create_tables()
    else:
        print(*rows())
