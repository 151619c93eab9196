"""A worker to be killed: ``dramatiq victim_worker``, configured by its environment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import brokers
import dramatiq

from dramatiq_joblog import JobLog, JobLogMiddleware

folder = Path(os.environ["VICTIM_FOLDER"])
joblog = JobLog(os.environ["VICTIM_DATABASE"])
broker = brokers.connect(os.environ["VICTIM_BROKER"], namespace="victim", impatient=True)
broker.add_middleware(JobLogMiddleware(joblog, heartbeat=100, heartbeat_timeout=1000))
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0)
def waits():
    (folder / "began").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)


def die_once_ready():
    # The command hangs if one of its workers dies during the start.
    while not (folder / "go").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@dramatiq.actor(max_retries=0)
def poison():
    die_once_ready()


@dramatiq.actor(max_retries=0, max_interruptions=3)
def bounded_poison():
    die_once_ready()


@dramatiq.actor(queue_name="other")
def elsewhere():
    pass


@dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=20)
def breaks_once():
    broken = folder / "broken"
    if not broken.exists():
        broken.touch()
        raise ValueError("breaks once")
