"""A worker whose jobs wait in a section: ``dramatiq begun_worker``, with its environment."""

from __future__ import annotations

import os
import time
from pathlib import Path

import brokers
import dramatiq

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware

folder = Path(os.environ["BEGUN_FOLDER"])
joblog = JobLog(os.environ["BEGUN_DATABASE"])
broker = brokers.connect(os.environ["BEGUN_BROKER"], namespace="begun", impatient=True)
broker.add_middleware(JobLogMiddleware(joblog, heartbeat=200, heartbeat_timeout=2000))
dramatiq.set_broker(broker)


def stay(name):
    """Stay in the section until the test ends it, or kill this process."""
    with (folder / "runs").open("a") as runs:
        runs.write(f"{name}\n")
    while not (folder / f"go-{name}").exists():
        time.sleep(0.01)


POLICIES = ("skip", "retry", "fail", "wait")
actors = {
    policy: dramatiq.actor(
        stay,
        actor_name=policy,
        max_retries=0,
        exclusive=Exclusive("key", on_conflict=policy, ttl=1_000),
    )
    for policy in POLICIES
}
