"""The life of every Dramatiq job, in SQL: see what ran, find what broke, decide by it."""

from .current import current_job
from .errors import (
    CancelError,
    ConfigurationError,
    DatabaseAwayError,
    DuplicateJob,
    JobLogError,
    JobNotFound,
    LockNotAcquired,
    QueryTimeout,
    RequeueError,
    SearchError,
)
from .joblog import JobLog
from .locks import Exclusive, Unique
from .middleware import JobLogMiddleware, enqueue_once
from .models import Action, Failure, Job, Line, Lock, Worker
from .states import DeadReason, Outcome, State

__all__ = [
    "Action",
    "CancelError",
    "ConfigurationError",
    "DatabaseAwayError",
    "DeadReason",
    "DuplicateJob",
    "Exclusive",
    "Failure",
    "Job",
    "JobLog",
    "JobLogError",
    "JobLogMiddleware",
    "JobNotFound",
    "Line",
    "Lock",
    "LockNotAcquired",
    "Outcome",
    "QueryTimeout",
    "RequeueError",
    "SearchError",
    "State",
    "Unique",
    "Worker",
    "current_job",
    "enqueue_once",
]
