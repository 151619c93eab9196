"""The life of every Dramatiq job, in SQL: see what ran, find what broke, decide by it."""

from .current import current_job
from .errors import ConfigurationError, JobLogError, JobNotFound
from .joblog import JobLog
from .middleware import JobLogMiddleware
from .models import Failure, Job
from .states import DeadReason, Outcome, State

__all__ = [
    "ConfigurationError",
    "DeadReason",
    "Failure",
    "Job",
    "JobLog",
    "JobLogError",
    "JobLogMiddleware",
    "JobNotFound",
    "Outcome",
    "State",
    "current_job",
]
