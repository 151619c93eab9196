"""Submits an event to a log here and in a spawned child process: ``python spawn_sender.py URL``."""

from __future__ import annotations

import multiprocessing
import sys

from dramatiq_joblog import JobLog
from dramatiq_joblog.recording.events import Enqueued


def send(url, jid):
    JobLog(url).core.writer.put(
        Enqueued(
            {
                "jid": jid,
                "actor": "work",
                "queue": "default",
                "state": "enqueued",
                "attempt": 1,
                "created_at": 0,
                "updated_at": 0,
            },
        )
    )


if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=send, args=(sys.argv[1], "spawned"))
    child.start()
    send(sys.argv[1], "parent")
    child.join()
    sys.exit(child.exitcode)
