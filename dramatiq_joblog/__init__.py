"""A job log for Dramatiq, in SQL: see what ran, find out why it failed, decide what runs next."""

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
from .locking.needs import Exclusive, Rate, Unique
from .middleware import JobLogMiddleware, enqueue_once
from .recording.current import current_job, require_current_job
from .recording.log_handler import JobContextFilter
from .schema.models import Action, AlertState, Deploy, Failure, Job, Line, Lock, Worker
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
    "Notice",
    "Outcome",
    "OutcomeFormatter",
    "Problem",
    "ProblemKind",
    "QueryTimeout",
    "Rate",
    "RequeueError",
    "RequeueInterruptedError",
    "SearchError",
    "State",
    "Unique",
    "WaitTimeout",
    "Worker",
    "current_job",
    "enqueue_once",
    "require_current_job",
]
