"""The stories on real worker processes: ``dramatiq story_worker``, with its environment."""

from __future__ import annotations

import os

import brokers
import dramatiq
import stories
from dramatiq.middleware import Retries

from dramatiq_joblog import JobLog, JobLogMiddleware

joblog = JobLog(os.environ["STORY_DATABASE"])
middleware = stories.middleware()
place = {
    "first": 0,
    "last": len(middleware),
    "before_retries": [type(m) for m in middleware].index(Retries),
}[os.environ["STORY_POSITION"]]
middleware.insert(place, JobLogMiddleware(joblog))
broker = brokers.connect(
    os.environ["STORY_BROKER"], namespace=os.environ["STORY_NAMESPACE"], middleware=middleware
)
dramatiq.set_broker(broker)
stories.declare(broker)
