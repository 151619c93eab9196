"""A worker of the chaos: jobs that record each start and end themselves.

A record is a line in a file of its process, in a folder unknown to the log.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import threading
import time
from pathlib import Path

import brokers
import dramatiq
from dramatiq.middleware import CurrentMessage

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware, current_job

FOLDER = Path(os.environ["CHAOS_FOLDER"])

#: Milliseconds; short, because the chaos waits for them.
LEASE, HEARTBEAT_TIMEOUT = 4_000, 4_000

joblog = JobLog(os.environ["CHAOS_DATABASE"], spool=FOLDER / "spool")
broker = brokers.connect(
    os.environ["CHAOS_BROKER"],
    namespace="chaos",
    # A killed worker's messages are redelivered soon, not after a minute.
    redis_options={"heartbeat_timeout": 3_000, "maintenance_chance": 200_000},
)
broker.add_middleware(CurrentMessage())
broker.add_middleware(
    JobLogMiddleware(
        joblog,
        acks=os.environ["CHAOS_ACKS"],
        heartbeat=500,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
    )
)
dramatiq.set_broker(broker)

_lock = threading.Lock()
_descriptors: dict[int, int] = {}


def attempt():
    """Return the number of this attempt, by the message."""
    return int(CurrentMessage.get_current_message().options.get("retries", 0)) + 1


class Run:
    """One run of a job, which records itself."""

    def __init__(self, **more):
        message = CurrentMessage.get_current_message()
        self.attempt = attempt()
        self.facts = more | {
            "jid": message.message_id,
            "run": random.getrandbits(48),
            "attempt": self.attempt,
            "worker": f"{socket.gethostname()}:{os.getpid()}:{threading.get_native_id()}",
        }

    def record(self, what, **more):
        """Append a line; once written, it survives the end of this process."""
        line = json.dumps(self.facts | more | {"what": what, "at": time.time()})
        with _lock:
            pid = os.getpid()
            if pid not in _descriptors:
                path = FOLDER / "records" / str(pid)
                _descriptors[pid] = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.write(_descriptors[pid], f"{line}\n".encode())

    def end(self, fails, **more):
        if self.attempt <= fails:
            self.record("failed", **more)
            raise ValueError(f"attempt {self.attempt} of {fails} that fail")
        self.record("finished", **more)


@dramatiq.actor(max_retries=3, min_backoff=20, max_backoff=200)
def plain(number, fails, milliseconds):
    """Fail as often as the arguments require, after a while."""
    run = Run()
    run.record("began")
    time.sleep(milliseconds / 1000)
    run.end(fails)


@dramatiq.actor(
    max_retries=3,
    min_backoff=20,
    max_backoff=200,
    exclusive=Exclusive("{key}", on_conflict="wait", ttl=LEASE),
)
def guarded(number, fails, milliseconds, key):
    """Check with a kernel lock, which ends with its process, that no other job has the key."""
    job = current_job()
    run = Run(key=key, fence=job.fence)
    run.record("began")
    with (FOLDER / "keys" / key).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # One of the two was paused for longer than its lease, and its lease_lost is set.
            run.record("second")
        time.sleep(milliseconds / 1000)
    # Checked after the file is unlocked: a later pause does no harm.
    lost = job.lease_lost
    run.end(fails, lost=lost)
