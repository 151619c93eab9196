"""Sends one unique message to a real broker, and dies at once: ``dying_sender LOG BROKER``."""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from dramatiq_joblog import JobLog, JobLogMiddleware

joblog = JobLog(sys.argv[1])
broker = RedisBroker(url=sys.argv[2])
broker.add_middleware(JobLogMiddleware(joblog))
dramatiq.set_broker(broker)
work = dramatiq.actor(lambda: None, actor_name="work", unique="key")
work.send()
# At once: no thread and no exit handler can run.
os._exit(3)
