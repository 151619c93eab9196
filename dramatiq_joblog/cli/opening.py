"""Opening a log, and messages for its errors; not imported for help and completion."""

from __future__ import annotations

import functools
import importlib
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from peewee import PeeweeException

from dramatiq_joblog import (
    CancelError,
    DatabaseAwayError,
    JobLog,
    JobLogError,
    JobNotFound,
    LockNotAcquired,
    RequeueError,
)
from dramatiq_joblog.database.dialects import dialect_of

from .app import AWAY, NOTHING, USAGE, Refusal

# The databases' messages when tables of the log, or columns of them, are missing.
_NO_TABLE = re.compile(
    r"no such table|relation .* does not exist|table .* doesn't exist", re.IGNORECASE
)
_NO_COLUMN = re.compile(r"no such column|column .* does not exist|unknown column", re.IGNORECASE)


def open_log(url: str) -> JobLog:
    """Return the log of a database."""
    return JobLog(url)


def file_of(joblog: JobLog) -> Path | None:
    """Return the file of a log; None if it is on a server."""
    return dialect_of(joblog.database).file_of(joblog.database)


def refusal_of(error: Exception, place: str, cure: str) -> Refusal:
    """Return the message for an error.

    Parameters:
      error: What was raised.
      place: The database's name and a space, if the name is known.
      cure: The command that makes the tables.

    Raises:
      Exception: The error itself, if it is neither of the log nor of its database.
    """
    text = " ".join(str(error).split("\n")[0].split())
    if isinstance(error, DatabaseAwayError | PeeweeException):
        if _NO_TABLE.search(text):
            return Refusal(f"the log's tables are not there; make them with: {cure}", AWAY)
        if _NO_COLUMN.search(text):
            return Refusal(
                f"the log's tables are of an older version ({text}); bring them up to date "
                f"with: {cure}",
                AWAY,
            )
        return Refusal(f"the log's database {place}is unavailable: {text}", AWAY)
    if isinstance(error, CancelError | JobNotFound | LockNotAcquired | RequeueError):
        return Refusal(text, NOTHING)
    if not isinstance(error, JobLogError):
        raise error
    return Refusal(text, USAGE if isinstance(error, ValueError) else AWAY)


def log_of(app: str) -> JobLog:
    """Import the application's module and return its log, as ``dramatiq`` finds its brokers."""
    module_name, _, name = app.partition(":")
    name = name or "joblog"
    if not re.fullmatch(r"[\w.]+", module_name) or not re.fullmatch(r"[\w.]+", name):
        raise Refusal(f"--app {app!r} is not of the form module:name, such as shop.jobs:joblog")
    sys.path.insert(0, str(Path.cwd()))
    module = _import(module_name)
    try:
        value = functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        logs = [key for key, v in vars(module).items() if isinstance(v, JobLog)]
        hint = f"its logs are {', '.join(logs)}" if logs else "it has no log"
        raise Refusal(f"--app {app}: the module {module_name} has no {name!r}; {hint}") from None
    if not isinstance(value, JobLog):
        raise Refusal(f"--app {app}: that is a {type(value).__name__}, and not a JobLog")
    return value


def _import(module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name and (module_name == e.name or module_name.startswith(f"{e.name}.")):
            raise Refusal(
                f"--app: there is no module {e.name!r}, in {Path.cwd()} or installed"
            ) from None
        raise _broken(module_name, e) from e
    except SystemExit as e:
        raise Refusal(f"--app: importing {module_name} ended with: {e.code}") from e
    except Exception as e:
        raise _broken(module_name, e) from e


def _broken(module_name: str, error: Exception) -> Refusal:
    """Return the message for an error in the user's module, with the place where it failed."""
    where = ""
    if frames := traceback.extract_tb(error.__traceback__):
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})"
    text = " ".join(str(error).split())
    return Refusal(
        f"--app: importing {module_name} failed with {type(error).__name__}: {text}{where}"
    )
