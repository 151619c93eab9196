"""Runs all dead jobs of a log again, and dies once the broker has so many: LOG BROKER COUNT."""

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
    """Ends the process after as many messages as are left to it."""

    left = int(sys.argv[3])

    def after_enqueue(self, broker, message, delay):
        """Note a message that the broker has."""
        self.left -= 1
        if self.left == 0:
            # Without a word: neither the log's writer nor any hook has a turn.
            os._exit(3)


joblog = JobLog(sys.argv[1])
# The last of the list hears of it first, before the log does.
broker = RedisBroker(url=sys.argv[2], middleware=[JobLogMiddleware(joblog), Dies()])
dramatiq.set_broker(broker)
work = dramatiq.actor(lambda: None, actor_name="work")
joblog.requeue_all(joblog.jobs.dead())
