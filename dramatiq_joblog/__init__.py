"""A job log for Dramatiq, in SQL: see what ran, find out why it failed, decide what runs next."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .admin.problem import Problem
    from .alerts.notice import Notice
    from .alerts.rules import Alert, Expect
    from .broker.outcome_log import OutcomeFormatter
    from .errors import (
        CancelError,
        CancelInterruptedError,
        ConfigurationError,
        DatabaseAwayError,
        DuplicateJob,
        JobLogError,
        JobNotFound,
        LockNotAcquired,
        QueryTimeout,
        RequeueError,
        RequeueInterruptedError,
        SearchError,
        WaitTimeout,
    )
    from .joblog import JobLog
    from .locking.options import Exclusive, Rate, Unique
    from .middleware import JobLogMiddleware, enqueue_once
    from .recording.current import current_job, require_current_job
    from .recording.log_handler import JobContextFilter
    from .schema.models import (
        Action,
        AlertState,
        Deploy,
        Failure,
        Job,
        Line,
        Lock,
        Mute,
        SavedSearch,
        Worker,
    )
    from .states import DeadReason, Outcome, ProblemKind, State

__all__ = [
    "Action",
    "Alert",
    "AlertState",
    "CancelError",
    "CancelInterruptedError",
    "ConfigurationError",
    "DatabaseAwayError",
    "DeadReason",
    "Deploy",
    "DuplicateJob",
    "Exclusive",
    "Expect",
    "Failure",
    "Job",
    "JobContextFilter",
    "JobLog",
    "JobLogError",
    "JobLogMiddleware",
    "JobNotFound",
    "Line",
    "Lock",
    "LockNotAcquired",
    "Mute",
    "Notice",
    "Outcome",
    "OutcomeFormatter",
    "Problem",
    "ProblemKind",
    "QueryTimeout",
    "Rate",
    "RequeueError",
    "RequeueInterruptedError",
    "SavedSearch",
    "SearchError",
    "State",
    "Unique",
    "WaitTimeout",
    "Worker",
    "current_job",
    "enqueue_once",
    "require_current_job",
]

#: Where each name is: it is imported when it is asked for, so that help and completion of the
#: command line, which ask for none, begin at once.
_MODULES = {
    "Action": ".schema.models",
    "Alert": ".alerts.rules",
    "AlertState": ".schema.models",
    "CancelError": ".errors",
    "CancelInterruptedError": ".errors",
    "ConfigurationError": ".errors",
    "DatabaseAwayError": ".errors",
    "DeadReason": ".states",
    "Deploy": ".schema.models",
    "DuplicateJob": ".errors",
    "Exclusive": ".locking.options",
    "Expect": ".alerts.rules",
    "Failure": ".schema.models",
    "Job": ".schema.models",
    "JobContextFilter": ".recording.log_handler",
    "JobLog": ".joblog",
    "JobLogError": ".errors",
    "JobLogMiddleware": ".middleware",
    "JobNotFound": ".errors",
    "Line": ".schema.models",
    "Lock": ".schema.models",
    "LockNotAcquired": ".errors",
    "Mute": ".schema.models",
    "Notice": ".alerts.notice",
    "Outcome": ".states",
    "OutcomeFormatter": ".broker.outcome_log",
    "Problem": ".admin.problem",
    "ProblemKind": ".states",
    "QueryTimeout": ".errors",
    "Rate": ".locking.options",
    "RequeueError": ".errors",
    "RequeueInterruptedError": ".errors",
    "SavedSearch": ".schema.models",
    "SearchError": ".errors",
    "State": ".states",
    "Unique": ".locking.options",
    "WaitTimeout": ".errors",
    "Worker": ".schema.models",
    "current_job": ".recording.current",
    "enqueue_once": ".middleware",
    "require_current_job": ".recording.current",
}


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
