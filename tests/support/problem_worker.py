"""A worker whose jobs fail if a file requests it: ``dramatiq problem_worker``."""

from __future__ import annotations

import os
import time
from pathlib import Path

import brokers
import dramatiq

from dramatiq_joblog import Exclusive, Expect, JobLog, JobLogMiddleware

folder = Path(os.environ["PROBLEM_FOLDER"])
joblog = JobLog(
    os.environ["PROBLEM_DATABASE"],
    alerts=[Expect("nightly", every=2_000, grace=500)] if "PROBLEM_EXPECTS" in os.environ else [],
    alerts_every=1_000,
)
broker = brokers.connect(os.environ["PROBLEM_BROKER"], namespace="problem", impatient=True)
broker.add_middleware(JobLogMiddleware(joblog, heartbeat=100, heartbeat_timeout=1000))
dramatiq.set_broker(broker)
#: Blocks that are never left.
entered = []


class FeedError(Exception):
    """The error of failing jobs."""


@dramatiq.actor(max_retries=0, job_type="import")
def imports():
    """Work; slowly, or failing, if a file requests it."""
    if (folder / "slow").exists():
        time.sleep(0.3)
    if (folder / "broken").exists():
        raise FeedError("the feed is closed")


@dramatiq.actor(max_retries=0)
def fails():
    """Fail with a known error."""
    raise FeedError("the feed is closed")


@dramatiq.actor(max_retries=3, min_backoff=3_600_000)
def retries():
    """Fail, and be retried in an hour."""
    raise FeedError("the feed is closed")


@dramatiq.actor(max_retries=3)
def loses_its_retry():
    """Fail while the broker has no memory for the retry."""
    broker.client.config_set("maxmemory", 1)
    raise FeedError("the feed is closed")


@dramatiq.actor(exclusive=Exclusive("erp", on_conflict="wait"), max_retries=0)
def holds():
    """Hold a section until a file ends it."""
    run_on()


@dramatiq.actor(max_retries=0)
def runs_on():
    """Run until a file ends it."""
    run_on()


def run_on():
    (folder / "began").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)


@dramatiq.actor(max_retries=0)
def never_lets_go():
    """Lock a key by hand for an hour, and end without leaving its block."""
    lock = joblog.lock("erp", ttl=3_600_000)
    lock.__enter__()
    entered.append(lock)


@dramatiq.actor(queue_name="other")
def elsewhere():
    """Do nothing, in another queue."""
