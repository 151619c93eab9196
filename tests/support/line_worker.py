"""A worker whose jobs stand in line for one section."""

from __future__ import annotations

import os
import time

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
def in_line(milliseconds):
    time.sleep(milliseconds / 1000)
