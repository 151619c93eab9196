"""The log, the broker, and the job."""

from __future__ import annotations

import logging
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from dramatiq_joblog import JobLog, JobLogMiddleware, require_current_job

from .settings import settings

logger = logging.getLogger(__name__)

joblog = JobLog(settings.database)
broker = RedisBroker(url=settings.redis)
broker.add_middleware(JobLogMiddleware(joblog, outcome_log=True))
dramatiq.set_broker(broker)


# One report of a user at a time: `unique` decides in the database, as it is sent.
@dramatiq.actor(job_type="report", job_user="user", unique="report:{user}", max_retries=3)
def make_report(user: str, pages: int = 40) -> None:
    """Write a report."""
    for page in require_current_job().track(range(pages), text="writing"):
        logger.info("page %d for %s", page + 1, user)
        time.sleep(0.2)
