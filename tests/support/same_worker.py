"""A worker with or without a log, which kills itself where its program says; see `Program`.

``dramatiq same_worker`` reads the program from the environment; a test sends by the same code.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import brokers
import dramatiq
from dramatiq.errors import Retry
from dramatiq.message import Message
from dramatiq.middleware import CurrentMessage, Middleware, Retries, SkipMessage

from dramatiq_joblog import JobLog, JobLogMiddleware


@dataclass(frozen=True)
class Program:
    """What each job does, by key; and in which of its runs the worker is killed."""

    #: By the number of the retry; later retries do the same as the last.
    ends: dict[str, list[str]]
    #: Where the worker dies, once: the place and the number of the retry, by key.
    dies: dict[str, tuple[str, int]]
    #: Jobs that enqueue their own message again, once: at_once or delayed, by key.
    again: dict[str, str]
    #: alone, twice, delayed, group or pipeline.
    form: str = "alone"
    max_retries: int = 1

    def as_environment(self, folder: Path, url: str, database: str | None) -> dict[str, str]:
        """Return the environment of a worker process in *folder*, with a log or without one."""
        return {
            "SAME_PROGRAM": json.dumps(asdict(self)),
            "SAME_FOLDER": str(folder),
            "SAME_BROKER": url,
            "SAME_DATABASE": database or "",
        }


class KillsItself(Middleware):
    """Comes first, so that no outcome is committed when its ``before_ack`` is called."""

    def __init__(self, stage) -> None:
        self.stage = stage

    def after_consumer_thread_boot(self, broker, thread):
        self.stage.consumers.append(thread)

    def after_process_message(self, broker, message, *, result=None, exception=None):
        self.stage.reached("after_the_body", message)

    def before_ack(self, broker, message):
        if not message.queue_name.endswith(".DQ"):
            self.stage.reached("before_the_ack", message)

    before_nack = before_ack


class Stage:
    """A broker and the actor that runs one program on it."""

    def __init__(self, environment) -> None:
        self.program = Program(**json.loads(environment["SAME_PROGRAM"]))
        self.folder = Path(environment["SAME_FOLDER"])
        stack = [KillsItself(self), Retries(min_backoff=10, max_backoff=20), CurrentMessage()]
        stack += [dramatiq.middleware.Callbacks(), dramatiq.middleware.Pipelines()]
        self.consumers = []
        self.joblog = None
        if environment["SAME_DATABASE"]:
            self.joblog = JobLog(environment["SAME_DATABASE"])
            stack.append(JobLogMiddleware(self.joblog))
        self.broker = brokers.connect(
            environment["SAME_BROKER"],
            namespace=self.folder.name,
            middleware=stack,
            impatient=True,
        )
        self.actor = dramatiq.actor(
            self.work, actor_name="work", broker=self.broker, max_retries=self.program.max_retries
        )

    def work(self, key, *_):
        message = CurrentMessage.get_current_message()
        retries = message.options.get("retries", 0)
        with (self.folder / "runs").open("a") as file:
            file.write(f"{key} {retries}\n")
        how = self.program.again.get(key)
        if how is not None and self.is_first("again", key):
            delay = 100 if how == "delayed" else None
            self.broker.enqueue(Message(**message.asdict()), delay=delay)
        self.reached("in_the_body", message)
        ends = self.program.ends.get(key, ["works"])
        end = ends[min(retries, len(ends) - 1)]
        if end == "raises":
            raise ValueError("row 7 is broken")
        if end == "asks_for_a_retry":
            raise Retry(delay=10)
        if end == "skips":
            raise SkipMessage("closed account")

    def reached(self, place, message):
        """Die here if this is the place, unless an earlier process has."""
        key, retries = message.args[0], message.options.get("retries", 0)
        # Retries has already updated a failed message for its next run.
        wanted = self.program.dies.get(key, (None, None))
        if place == wanted[0] and retries >= wanted[1] and self.is_first("died", key):
            # The command hangs if one of its workers dies during the start.
            ready = Path(os.environ["SAME_READY"])
            while not ready.exists():
                time.sleep(0.01)
            self.send_acks()
            os.kill(os.getpid(), signal.SIGKILL)

    def send_acks(self):
        """Wait until the acknowledgements of other runs are sent.

        With RabbitMQ, a thread sends them shortly after the run, so that a death might or might not
        cause a redelivery of a finished job.
        """
        for thread in self.consumers:
            connection = getattr(thread.consumer, "connection", None)
            if connection is not None:
                sent = threading.Event()
                connection.add_callback_threadsafe(sent.set)
                sent.wait(10)

    def is_first(self, what, key):
        try:
            (self.folder / f"{what}-{key}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def send(self):
        """Send the messages of the program; return them."""
        keys = list(self.program.ends)
        messages = [self.actor.message(key) for key in keys]
        if self.program.form == "group":
            dramatiq.group(messages, broker=self.broker).run()
        elif self.program.form == "pipeline":
            dramatiq.pipeline(messages, broker=self.broker).run()
        else:
            delay = 100 if self.program.form == "delayed" else None
            for _ in range(2 if self.program.form == "twice" else 1):
                for message in messages:
                    self.broker.enqueue(message, delay=delay)
        return messages


if "SAME_PROGRAM" in os.environ:
    dramatiq.set_broker(Stage(os.environ).broker)
