"""A process that makes the tables of a log, and writes a job: the database's URL, and the jid."""

from __future__ import annotations

import sys

from dramatiq_joblog import JobLog
from dramatiq_joblog.recording.events import Enqueued

if __name__ == "__main__":
    joblog = JobLog(sys.argv[1])
    joblog.create_tables()
    row = {"jid": sys.argv[2], "actor": "work", "queue": "default", "state": "enqueued"}
    row |= {"attempt": 1, "enqueued_at": 0, "created_at": 0, "updated_at": 0}
    joblog.core.writer.write(Enqueued(row))
    joblog.close()
