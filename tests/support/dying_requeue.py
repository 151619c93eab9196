"""Runs all dead jobs of a log again, and dies after COUNT messages: LOG BROKER COUNT."""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware

from dramatiq_joblog import JobLog, JobLogMiddleware
from dramatiq_joblog.broker import bulk

bulk.BATCH = 4


class Dies(Middleware):
    """Ends the process after a number of messages."""

    left = int(sys.argv[3])

    def after_enqueue(self, broker, message, delay):
        """Count a message that the broker has."""
        self.left -= 1
        if self.left == 0:
            # At once: neither the log's writer nor any hook can run.
            os._exit(3)


joblog = JobLog(sys.argv[1])
# The last middleware is called first, before the log.
broker = RedisBroker(url=sys.argv[2], middleware=[JobLogMiddleware(joblog), Dies()])
dramatiq.set_broker(broker)
work = dramatiq.actor(lambda: None, actor_name="work")
joblog.requeue_all(joblog.jobs.dead())
