"""A process that hands 200 rows over and ends at once: the database's URL, and how it ends."""

from __future__ import annotations

import sys

from dramatiq_joblog import JobLog
from dramatiq_joblog.recording.events import Enqueued

if __name__ == "__main__":
    joblog = JobLog(sys.argv[1])
    for n in range(200):
        row = {"jid": f"j{n}", "actor": "work", "queue": "default", "state": "enqueued"}
        row |= {"attempt": 1, "enqueued_at": 0, "created_at": 0, "updated_at": 0}
        joblog.core.writer.put(Enqueued(row))
    if sys.argv[2] == "exit":
        sys.exit(3)
    if sys.argv[2] == "raise":
        raise ValueError
