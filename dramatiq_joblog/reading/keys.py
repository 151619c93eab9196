"""The keys of a search; imports nothing, because shell completion needs it."""

from __future__ import annotations

#: The keys and their meanings, most useful first.
KEYS: dict[str, str] = {
    "id": "a full jid",
    "state": "enqueued, delayed, waiting, started, retrying, lost, finished, dead, skipped, "
    "in_progress (started or retrying), or active (not ended)",
    "type": "the job type",
    "actor": "the actor's name",
    "user": "the user's id",
    "queue": "the queue's name",
    "error": "the class of the last error",
    "worker": "a host, host:pid or host:pid:thread of the last run",
    "section": "the key of its critical section",
    "since": "created at or after: 30m, 2h, 1d, 2w ago, today, yesterday, 14:05, or "
    "2026-11-24T12:00",
    "until": "created before this time",
    "ended": "ended at or after this time, or within 14:05..14:10",
    "overdue": "delayed, retrying or waiting, and due for longer than 5m, 1h",
    "duration": "the time of the last run: >10s, <=500ms, or 1s..5s",
    "queue_time": "the wait before the first run: >10s, <=500ms, or 1s..5s",
    "attempt": "the number of the last attempt: 3, >2, or 2..4",
    "reason": "why it is dead or was skipped: retries_exhausted, cancelled, ...",
    "args": "a part of the arguments; args.order.city: is one value, by name",
    "lines": "a part of a log line",
    "family": "the jid of a family's first job: all jobs of that family",
    "saved": "the name of a saved search",
    "dismissed": "yes or no: whether someone dismissed the dead job",
}
