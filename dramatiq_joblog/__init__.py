"""The life of every Dramatiq job, in SQL: see what ran, find what broke, decide by it."""

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
from .locking.locks import Exclusive, Unique
from .middleware import JobLogMiddleware, enqueue_once
from .recording.current import current_job
from .schema.models import Action, Failure, Job, Line, Lock, Worker
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
