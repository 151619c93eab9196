"""A worker that kills itself with SIGKILL at one named point, once: ``dramatiq kill_worker``.

There is a point between every two steps of a job's path.  Each job records its own runs, one line
per run, in a file unknown to the log.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import brokers
import dramatiq
from dramatiq.middleware import Middleware

from dramatiq_joblog import JobLog, JobLogMiddleware
from dramatiq_joblog.broker.acks import HandedAcks

folder = Path(os.environ["KILL_FOLDER"])
point = os.environ["KILL_AT"]
way = os.environ["KILL_ACKS"]


def reached(name: str) -> None:
    """Die here if this is the point, unless an earlier process has."""
    if name != point:
        return
    try:
        (folder / "killed").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class BeforeTheAcknowledgement(Middleware):
    """Comes after the log in the list, so that the outcome is committed when this is called."""

    def before_ack(self, broker, message):
        if not message.queue_name.endswith(".DQ"):
            reached("before_ack")

    before_nack = before_ack

    def after_ack(self, broker, message):
        if not message.queue_name.endswith(".DQ"):
            reached("after_ack")

    after_nack = after_ack


joblog = JobLog(os.environ["KILL_DATABASE"])
write = joblog.core.transitions.write


def write_or_die(events):
    kinds = {event.kind for event in events}
    for kind in ("start", "end"):
        if kind in kinds:
            reached(f"before_{kind}_commit")
    answers = write(events)
    for kind in ("start", "end"):
        if kind in kinds:
            reached(f"after_{kind}_commit")
    return answers


joblog.core.transitions.write = write_or_die
send = HandedAcks._try


def send_or_die(self, acks):
    reached("before_pipeline")
    refused = send(self, acks)
    reached("after_pipeline")
    return refused


HandedAcks._try = send_or_die
broker = brokers.connect(os.environ["KILL_BROKER"], namespace="kill", impatient=True)
broker.add_middleware(JobLogMiddleware(joblog, acks=way))
if way == "plain":
    broker.add_middleware(BeforeTheAcknowledgement())
dramatiq.set_broker(broker)


def record(line: str) -> None:
    with (folder / "runs").open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


@dramatiq.actor(max_retries=0)
def works():
    record("began")
    reached("in_body")
    record("ended")


@dramatiq.actor(max_retries=0)
def breaks():
    record("began")
    reached("in_body")
    record("ended")
    raise ValueError("row 7 is broken")
