"""Starts concurrent with another process's extension of waiters: no deadlock."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict

import pytest

from dramatiq_joblog import Exclusive, JobLog
from dramatiq_joblog.locking.admission import Admission
from dramatiq_joblog.recording.events import Started
from dramatiq_joblog.recording.tokens import new_token


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_rows_are_locked_in_the_order_of_all(joblog, database_url, job_factory, monkeypatch):
    """Starts that are answered one by one lock their jobs in the common order."""
    now = time.time_ns() // 1_000_000
    for jid in ("job-2", "job-9"):
        job_factory(jid=jid, state="waiting", waiting_since=now, eta=now + 9_000, section=jid)
    # By their keys the other comes first.
    events = [_start("job-9", "a key", now), _start("job-2", "z key", now)]
    first_is_in, errors = threading.Event(), []
    admit, other = Admission.admit, JobLog(database_url)

    def slowly(self, *args):
        if not first_is_in.is_set():
            first_is_in.set()
            # Until the other process has one of the rows, or waits for the first.
            time.sleep(0.5)
        return admit(self, *args)

    def heartbeat():
        first_is_in.wait(20)
        try:
            with other.database.connection_context():
                other.core.locks.presence.heartbeat(["job-2", "job-9"])
        except Exception as e:  # noqa: BLE001
            errors.append(e)

    monkeypatch.setattr(Admission, "admit", slowly)
    thread = threading.Thread(target=heartbeat)
    thread.start()
    with joblog.database.connection_context():
        answers = joblog.core.sections.write(events)
    thread.join(20)
    other.close()
    assert [] == errors
    assert all(answers[event.jid].granted for event in events)


def _start(jid, key, now):
    row = {"jid": jid, "actor": "work", "queue": "default", "attempt": 1, "state": "started"}
    row |= dict.fromkeys(("enqueued_at", "started_at", "created_at", "updated_at"), now)
    row |= {"process": None, "worker": "here", "token": new_token(f"delivery of {jid}")}
    # With a limit of two it is answered by itself.
    return Started(row, section=asdict(Exclusive(key, limit=2, on_conflict="wait")))
