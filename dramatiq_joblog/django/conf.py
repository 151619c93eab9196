"""The setting ``JOBLOG``, which defines a project's log.

It is read when the broker is made, before Django has loaded its models.
"""

from __future__ import annotations

import difflib
import functools
from typing import Any

from django.conf import settings
from django.core.exceptions import AppRegistryNotReady
from django.utils.module_loading import autodiscover_modules, import_string

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.joblog import JobLog

#: The keys of the setting.
KEYS = ("DATABASE", "LOG", "MIDDLEWARE", "OPTIONS", "PAGE")
#: Options of a log that may be dotted paths, because settings should not import anything.
_PATHS = ("job_types", "model", "on_dead", "redact")


@functools.cache
def get_joblog() -> JobLog[Any]:
    """Return the project's log, as the setting ``JOBLOG`` defines it; it is made once.

    Without the setting, it is in the database ``default``.

    Raises:
      ConfigurationError: If the setting is invalid.
    """
    return make_joblog()


def make_joblog() -> JobLog[Any]:
    """Return a new log, as the setting ``JOBLOG`` now defines it.

    Raises:
      ConfigurationError: If it is invalid.
    """
    given = setting()
    path = given.get("LOG")
    if path is None:
        options = {name: _named(name, value) for name, value in given.get("OPTIONS", {}).items()}
        try:
            return JobLog.from_django(given.get("DATABASE", "default"), **options)
        except TypeError as e:
            raise ConfigurationError(f"JobLog() does not accept JOBLOG['OPTIONS']: {e}") from e
    if "OPTIONS" in given or "DATABASE" in given:
        raise ConfigurationError(
            f"JOBLOG names the log {path!r}, which has its own options: leave out DATABASE and "
            "OPTIONS"
        )
    log = imported("LOG", path)
    if not isinstance(log, JobLog):
        raise ConfigurationError(
            f"JOBLOG['LOG'] is {path!r}, a {type(log).__name__}, and not a JobLog"
        )
    return log


def setting() -> dict[str, Any]:
    """Return the setting ``JOBLOG`` as a dictionary; a single text is the path of a log.

    Raises:
      ConfigurationError: If it has an unknown key.
    """
    given = getattr(settings, "JOBLOG", None) or {}
    if isinstance(given, str):
        return {"LOG": given}
    if not isinstance(given, dict):
        raise ConfigurationError(
            f"JOBLOG is a {type(given).__name__}: give a dictionary, or the dotted path of a JobLog"
        )
    for key in given:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key).upper(), KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(KEYS)}"
            raise ConfigurationError(f"JOBLOG has the key {key!r}, which is unknown; {hint}")
    return given


def discover_actors() -> None:
    """Import the modules of the project's apps that declare actors, as django_dramatiq does.

    Their name is ``tasks``, unless ``DRAMATIQ_AUTODISCOVER_MODULES`` sets others.
    """
    autodiscover_modules(*getattr(settings, "DRAMATIQ_AUTODISCOVER_MODULES", ("tasks",)))


def imported(key: str, path: str) -> Any:
    """Return the object that a dotted path of the setting names.

    Raises:
      ConfigurationError: If it does not exist, or cannot be imported that early.
    """
    try:
        return import_string(path)
    except ImportError as e:
        raise ConfigurationError(f"JOBLOG[{key!r}] names {path!r}: {e}") from e
    except AppRegistryNotReady as e:
        raise ConfigurationError(
            f"JOBLOG[{key!r}] names {path!r}, whose module imports models of Django: the log is "
            "made before those are loaded, so give it a module of its own"
        ) from e


def _named(name: str, value: Any) -> Any:
    is_path = isinstance(value, str) and (
        name in _PATHS or (name == "notify" and "://" not in value)
    )
    return imported(f"OPTIONS.{name}", value) if is_path else value
