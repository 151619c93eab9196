"""A worker on a separate host: ``dramatiq fleet_worker``, configured by its environment."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import brokers
import dramatiq

from dramatiq_joblog import JobLog, JobLogMiddleware

folder = Path(os.environ["FLEET_FOLDER"])
joblog = JobLog(os.environ["FLEET_DATABASE"])
broker = brokers.connect(os.environ["FLEET_BROKER"], namespace="fleet", impatient=True)
broker.add_middleware(JobLogMiddleware(joblog, heartbeat=200, heartbeat_timeout=2000))
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0)
def waits(name):
    here = f"{name}-{socket.gethostname()}"
    (folder / f"began-{here}").touch()
    while not (folder / f"go-{here}").exists():
        time.sleep(0.01)
    (folder / f"ended-{here}").touch()
