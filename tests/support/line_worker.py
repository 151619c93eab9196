"""A worker whose jobs wait for one section, and record how long each was in it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import brokers
import dramatiq

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware

joblog = JobLog(os.environ["LINE_DATABASE"])
broker = brokers.connect(os.environ["LINE_BROKER"], namespace="line")
broker.add_middleware(JobLogMiddleware(joblog))
dramatiq.set_broker(broker)


@dramatiq.actor
def later():
    """Only wait in the memory of the worker."""


@dramatiq.actor(exclusive=Exclusive("line", on_conflict="wait"))
def in_line(milliseconds, folder=None):
    """Stay in the section for a while; with a folder, until its file ``go`` exists."""
    began = time.monotonic()
    if folder is None:
        time.sleep(milliseconds / 1000)
        return
    while not (Path(folder) / "go").exists():
        # Not part of the measurement.
        time.sleep(0.2)
    time.sleep(milliseconds / 1000)
    with (Path(folder) / f"stays-{os.getpid()}-{os.uname().nodename}").open("a") as file:
        file.write(f"{began} {time.monotonic()}\n")
