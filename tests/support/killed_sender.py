"""Sends a message and is killed meanwhile: ``killed_sender LOG BROKER NAMESPACE PLACE N DELAY``.

PLACE is ``claimed``: the key is held, but the broker does not have the message; or ``enqueued``:
the broker has it, but ``send()`` has not returned.
"""

from __future__ import annotations

import os
import signal
import sys

import brokers
import dramatiq
from dramatiq.middleware import Middleware, default_middleware

from dramatiq_joblog import JobLog, JobLogMiddleware, Unique

database, url, namespace, place, number, delay = sys.argv[1:]


class Killed(Middleware):
    """Comes after the log."""

    def before_enqueue(self, broker, message, delay):
        if place == "claimed":
            os.kill(os.getpid(), signal.SIGKILL)

    def after_enqueue(self, broker, message, delay):
        os.kill(os.getpid(), signal.SIGKILL)


stack = [*(m() for m in default_middleware), JobLogMiddleware(JobLog(database)), Killed()]
broker = brokers.connect(url, namespace=namespace, middleware=stack)
dramatiq.set_broker(broker)
until = None if (said := os.environ["UNIQUE_UNTIL"]) == "ttl" else said
unique = Unique("key", until=until, keep=os.environ["UNIQUE_KEEP"])
work = dramatiq.actor(lambda n: None, actor_name="work", unique=unique)
work.send_with_options(args=(int(number),), delay=int(delay) or None)
