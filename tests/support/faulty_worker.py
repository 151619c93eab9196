"""A worker module with a middleware that breaks: the host goes on and reports it."""

import os

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware


class Faulty(Middleware):
    """Breaks when a worker process boots, if FAULT is set."""

    def after_process_boot(self, broker):
        """Break."""
        if os.environ.get("FAULT"):
            raise RuntimeError("the middleware broke")


dramatiq.set_broker(StubBroker(middleware=[Faulty()]))
