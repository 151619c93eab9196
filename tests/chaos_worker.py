"""A worker of the chaos: jobs that keep their own record of every start and end.

A record is a line in a file of its process, in a folder that the log knows nothing of.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware, current_job

FOLDER = Path(os.environ["CHAOS_FOLDER"])

joblog = JobLog(os.environ["CHAOS_DATABASE"], spool=FOLDER / "spool")
broker = RedisBroker(
    url=os.environ["CHAOS_REDIS"],
    namespace="chaos",
    # A killed worker's messages come back soon, not after a minute.
    heartbeat_timeout=3_000,
    maintenance_chance=200_000,
)
broker.add_middleware(CurrentMessage())
broker.add_middleware(JobLogMiddleware(joblog, heartbeat=500, heartbeat_timeout=4_000))
dramatiq.set_broker(broker)

_lock = threading.Lock()
_descriptors: dict[int, int] = {}


def record(*words: object) -> None:
    """Append a line; what the kernel has taken outlives this process."""
    with _lock:
        pid = os.getpid()
        if pid not in _descriptors:
            path = FOLDER / "records" / str(pid)
            _descriptors[pid] = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(_descriptors[pid], (" ".join(map(str, words)) + "\n").encode())


def attempt() -> int:
    return int(CurrentMessage.get_current_message().options.get("retries", 0)) + 1


@dramatiq.actor(max_retries=3, min_backoff=20, max_backoff=200)
def plain(number, fails, milliseconds):
    """Fail as often as told, after a while."""
    jid = CurrentMessage.get_current_message().message_id
    run = random.getrandbits(40)
    record("began", jid, attempt(), run, time.time())
    time.sleep(milliseconds / 1000)
    if attempt() <= fails:
        record("failed", jid, attempt(), run, time.time())
        raise ValueError(f"attempt {attempt()} of {number}")
    record("finished", jid, attempt(), run, time.time())


@dramatiq.actor(
    max_retries=3,
    min_backoff=20,
    max_backoff=200,
    exclusive=Exclusive("{key}", on_conflict="wait", ttl=4_000),
)
def guarded(number, key, fails, milliseconds):
    """Be alone with a key, which a lock of the kernel's tells; it goes with its process."""
    jid = CurrentMessage.get_current_message().message_id
    run = random.getrandbits(40)
    job = current_job()
    record("began", jid, attempt(), run, time.time(), key, job.fence)
    with (FOLDER / "keys" / key).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            record("second", jid, attempt(), run, time.time(), key, job.fence)
        time.sleep(milliseconds / 1000)
        lost = job.lease_lost
    outcome = "failed" if attempt() <= fails else "finished"
    record(outcome, jid, attempt(), run, time.time(), key, job.fence, int(lost))
    if outcome == "failed":
        raise ValueError(f"attempt {attempt()} of {number}")
