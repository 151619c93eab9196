"""A worker module with a middleware that fails: Dramatiq logs the error and continues."""

import os

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware


class Faulty(Middleware):
    """Fails when a worker process boots, if FAULT is set."""

    def after_process_boot(self, broker):
        """Fail."""
        if os.environ.get("FAULT"):
            raise RuntimeError("the middleware broke")


dramatiq.set_broker(StubBroker(middleware=[Faulty()]))
