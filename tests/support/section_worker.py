"""A worker whose jobs check each other: in each section they also lock a file.

The kernel's locks end with their process, and are independent of the log's tables.
"""

from __future__ import annotations

import contextlib
import fcntl
import time

import dramatiq
from chaos_worker import FOLDER, LEASE, Run, joblog

from dramatiq_joblog import Exclusive, JobLogError, Rate, current_job

retried = {"max_retries": 3, "min_backoff": 20, "max_backoff": 200}
seldom = {"min_backoff": 1_000, "max_backoff": 10_000}


def stay(key, lease, milliseconds, *, places=1):
    """Stay in a section for a while, and record whether there was one job too many."""
    stay_in({key: lease.fence}, lease, milliseconds, places=places)


def stay_in(fences, lease, milliseconds, *, places=1):
    """Stay in several sections for a while."""
    runs = {key: Run(key=key, fence=fence) for key, fence in fences.items()}
    for run in runs.values():
        run.record("began")
    with contextlib.ExitStack() as stack:
        for key, run in runs.items():
            for place in range(places):
                file = stack.enter_context((FOLDER / "keys" / f"{key}.{place}").open("a"))
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
            else:
                run.record("second")
        time.sleep(milliseconds / 1000)
    # Checked after the files are unlocked: a later pause does no harm.
    lost = lease.lease_lost if hasattr(lease, "lease_lost") else lease.lost
    for run in runs.values():
        run.record("ended", lost=lost)


def work(number, key, fails, milliseconds, **places):
    stay(key, current_job(), milliseconds, **places)
    attempt = current_job().attempt
    if attempt <= fails:
        raise ValueError(f"attempt {attempt} of {number}")


@dramatiq.actor(exclusive=Exclusive("{key}", on_conflict="wait", ttl=LEASE), **retried)
def alone(number, key, fails, milliseconds):
    work(number, key, fails, milliseconds)


@dramatiq.actor(exclusive=Exclusive("{key}-2", limit=2, on_conflict="wait", ttl=LEASE), **retried)
def pair(number, key, fails, milliseconds):
    work(number, f"{key}-2", fails, milliseconds, places=2)


@dramatiq.actor(
    exclusive=Exclusive("{key}", on_conflict="retry", ttl=LEASE),
    max_retries=10_000,
    # Avoids a retry storm: waiters come first, but their messages are behind it in the queue.
    **seldom,
)
def impatient(number, key, fails, milliseconds):
    stay(key, current_job(), milliseconds)


@dramatiq.actor(exclusive=Exclusive("{key}", ttl=LEASE), **retried)
def optional(number, key, fails, milliseconds):
    stay(key, current_job(), milliseconds)


@dramatiq.actor(exclusive=Exclusive("{key}", on_conflict="fail", ttl=LEASE), **retried)
def strict(number, key, fails, milliseconds):
    stay(key, current_job(), milliseconds)


@dramatiq.actor(
    exclusive=Exclusive("{key}", limit=lambda key: 1, on_conflict="wait", ttl=LEASE, hold="run"),
    **retried,
)
def released(number, key, fails, milliseconds):
    work(number, key, fails, milliseconds)


@dramatiq.actor(max_retries=10_000, **seldom)
def by_hand(number, key, fails, milliseconds):
    with joblog.lock(key, ttl=LEASE, wait=100) as lease:
        stay(key, lease, milliseconds)


@dramatiq.actor(
    exclusive=[
        Exclusive("{key}", on_conflict="wait", ttl=LEASE),
        Exclusive("common", on_conflict="wait", ttl=LEASE),
    ],
    **retried,
)
def both(number, key, fails, milliseconds):
    stay_in(current_job().fences, current_job(), milliseconds)
    if current_job().attempt <= fails:
        raise ValueError(f"attempt {current_job().attempt} of {number}")


@dramatiq.actor(exclusive=Rate("{key}-rate", 5, per=500), **retried)
def limited(number, key, fails, milliseconds):
    began = time.time()
    start = None
    # The start is written after this, and before the body begins.
    with contextlib.suppress(JobLogError):
        row = joblog.get(current_job().jid)
        start = row.started_at.timestamp() if row.token == current_job().token else None
    joblog.release()
    Run(key=f"{key}-rate", fence=0, body=began, start=start).record("began")
