"""A worker that notifies: ``dramatiq alert_worker``, configured by its environment."""

from __future__ import annotations

import json
import os
import time
import urllib.request

import brokers
import dramatiq
from dramatiq.errors import ConnectionClosed

from dramatiq_joblog import Alert, Expect, JobLog, JobLogMiddleware


def post(notice):
    """Send a notice to the test's receiver."""
    facts = {"name": notice.name, "event": notice.event, "count": notice.count}
    facts |= {"jids": notice.jids, "text": notice.text, "pid": os.getpid()}
    request = urllib.request.Request(os.environ["ALERT_URL"], json.dumps(facts).encode())
    urllib.request.urlopen(request, timeout=5).close()


def dead(job):
    """Notify the test's receiver of a dead job."""
    facts = {"name": "on_dead", "event": job.dead_reason, "jids": [job.jid], "pid": os.getpid()}
    request = urllib.request.Request(os.environ["ALERT_URL"], json.dumps(facts).encode())
    urllib.request.urlopen(request, timeout=5).close()
    if job.actor == "dies":
        raise ValueError("on_dead fails")


joblog = JobLog(
    os.environ["ALERT_DATABASE"],
    alerts=[
        Alert.problems("retries_lost", "lost"),
        Alert("dead", "state:dead actor:dies"),
        Expect("nightly", every=3_000, grace=1_000),
    ],
    notify=post,
    alerts_every=1_000,
    on_dead=dead,
    page_url="https://shop.example/joblog",
)
broker = brokers.connect(os.environ["ALERT_BROKER"], namespace="alerts")
broker.add_middleware(JobLogMiddleware(joblog, heartbeat=100, heartbeat_timeout=1000))
dramatiq.set_broker(broker)
enqueue = broker.enqueue


def refuse_retries(message, *, delay=None):
    """Refuse the retry of one actor, like an unavailable broker."""
    if message.actor_name == "loses_its_retry" and message.options.get("retries"):
        raise ConnectionClosed("the broker is gone")
    return enqueue(message, delay=delay)


broker.enqueue = refuse_retries


@dramatiq.actor(max_retries=3)
def loses_its_retry():
    raise ValueError("no")


@dramatiq.actor(max_retries=0)
def dies():
    raise ValueError("no")


@dramatiq.actor(max_retries=0, queue_name="victims")
def lasts():
    time.sleep(600)


@dramatiq.actor(job_type="nightly")
def nightly():
    pass
