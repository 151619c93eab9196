"""A worker whose jobs stand in line for one section, and write down how long each was inside."""

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
    """Only waits in the memory of the worker."""


@dramatiq.actor(exclusive=Exclusive("line", on_conflict="wait"))
def in_line(milliseconds, folder=None):
    """Be inside for a while; with a folder, one that has seen its file ``go``."""
    began = time.monotonic()
    if folder is None:
        time.sleep(milliseconds / 1000)
        return
    while not (Path(folder) / "go").exists():
        # It is not what is measured.
        time.sleep(0.2)
    time.sleep(milliseconds / 1000)
    with (Path(folder) / f"stays-{os.getpid()}-{os.uname().nodename}").open("a") as file:
        file.write(f"{began} {time.monotonic()}\n")
