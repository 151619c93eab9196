"""A worker whose job logs, reports progress, and waits for a file: ``dramatiq inside_worker``."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import brokers
import dramatiq

from dramatiq_joblog import JobLog, JobLogMiddleware, current_job

joblog = JobLog(os.environ["INSIDE_DATABASE"])
broker = brokers.connect(os.environ["INSIDE_BROKER"], namespace="inside", impatient=True)
broker.add_middleware(JobLogMiddleware(joblog, heartbeat=100, heartbeat_timeout=2_000))
dramatiq.set_broker(broker)


@dramatiq.actor
def work():
    logging.getLogger("shop").info("begun")
    current_job().progress(1, 2)
    while not (Path(os.environ["INSIDE_FOLDER"]) / "go").exists():
        threading.Event().wait(0.05)
    logging.getLogger("shop").info("done")
    current_job().progress(2, 2)
