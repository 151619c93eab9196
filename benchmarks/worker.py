"""The worker that is measured: ``dramatiq worker`` in this folder, told by its environment.

It drains what lies in Redis, with or without the log, and at its end leaves what it took.
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware

from dramatiq_joblog import JobLog, JobLogMiddleware

DATABASE = os.environ.get("BENCH_DATABASE")
OUTPUT = Path(os.environ["BENCH_OUTPUT"])
SLEEP = int(os.environ["BENCH_SLEEP"]) / 1000


def cpu() -> float:
    """Return the seconds of processor time that this process has taken."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Meter(Middleware):
    """Notes the processor time of this process when it begins to work, and when it ends."""

    def after_worker_boot(self, broker, worker):
        self.began = cpu()

    def before_worker_shutdown(self, broker, worker):
        taken = {"cpu": cpu() - self.began, "at": time.time()}
        (OUTPUT / f"{os.getpid()}.json").write_text(json.dumps(taken))


broker = RedisBroker(url=os.environ["REDIS_URL"], namespace="bench")
broker.add_middleware(Meter())
if DATABASE:
    options = json.loads(os.environ["BENCH_OPTIONS"])
    broker.add_middleware(JobLogMiddleware(JobLog(DATABASE), **options))
dramatiq.set_broker(broker)


@dramatiq.actor
def work(n):
    if SLEEP:
        time.sleep(SLEEP)
