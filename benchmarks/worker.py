"""The worker that is measured: ``dramatiq worker`` in this folder, configured by its environment.

It drains what lies in Redis, with the log, with another's or with none, and at its end leaves
the processor time that it took.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import time
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage, Middleware

LOG = os.environ["BENCH_LOG"]
DATABASE = os.environ["BENCH_DATABASE"]
#: ``""``, ``"always"``, or ``"once"``.
FAILS = os.environ["BENCH_FAILS"]
LINES = int(os.environ["BENCH_LINES"])
OPTIONS = json.loads(os.environ["BENCH_OPTIONS"])
OUTPUT = Path(os.environ["BENCH_OUTPUT"])
SLEEP = int(os.environ["BENCH_SLEEP"]) / 1000
ACTOR = json.loads(os.environ["BENCH_ACTOR"])


def cpu() -> float:
    """Return the seconds of processor time that this process has taken."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Meter(Middleware):
    """Notes the processor time of this process when it begins to work, and when it ends."""

    def after_worker_boot(self, broker, worker):
        self.began = cpu()

    def before_worker_shutdown(self, broker, worker):
        (OUTPUT / f"{os.getpid()}.json").write_text(json.dumps({"cpu": cpu() - self.began}))


broker = RedisBroker(url=os.environ["REDIS_URL"], namespace="bench")
broker.add_middleware(Meter())
broker.add_middleware(CurrentMessage())
if LOG == "ours":
    from dramatiq_joblog import JobLog, JobLogMiddleware

    broker.add_middleware(JobLogMiddleware(JobLog(DATABASE), **OPTIONS))
elif LOG == "django_dramatiq":
    import peer_django

    peer_django.set_up(DATABASE)
    from django_dramatiq.middleware import AdminMiddleware, DbConnectionsMiddleware

    broker.add_middleware(AdminMiddleware())
    broker.add_middleware(DbConnectionsMiddleware())
elif LOG == "find and update":
    import peer_seed

    broker.add_middleware(peer_seed.FindAndUpdate(DATABASE))
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0 if FAILS == "always" else 3, min_backoff=1, max_backoff=1, **ACTOR)
def work(n):
    if SLEEP:
        time.sleep(SLEEP)
    for number in range(LINES):
        logging.getLogger("work").info("line %d of job %d", number, n)
    if FAILS == "always" or (FAILS == "once" and not retries()):
        raise ValueError(f"job {n} is to fail")


def retries():
    """Return how often this job was retried."""
    return CurrentMessage.get_current_message().options.get("retries", 0)
