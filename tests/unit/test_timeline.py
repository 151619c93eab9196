"""How a job spent its time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from dramatiq_joblog.reading.timeline import timeline

BEGIN = datetime(2026, 11, 24, 7, 0, tzinfo=timezone.utc)


def at(seconds):
    return None if seconds is None else BEGIN + timedelta(seconds=seconds)


def job(state, started=None, finished=None, **more):
    row = {
        "state": state,
        "attempt": 1,
        "enqueued_at": BEGIN,
        "created_at": BEGIN,
        "updated_at": at(finished or started or 0),
        "started_at": at(started),
        "finished_at": at(finished),
        "dead_reason": None,
        "waiting_since": None,
        "worker": "web1:1:1",
    }
    return SimpleNamespace(**row | more)


def failure(outcome, started, finished, attempt=1):
    return SimpleNamespace(
        outcome=outcome,
        started_at=at(started),
        finished_at=at(finished),
        attempt=attempt,
        worker="web1:1:1",
        error_type="ValueError",
    )


@pytest.mark.parametrize(
    ("row", "failures", "expected"),
    [
        (job("enqueued"), [], ["queue 0-100 open"]),
        (job("finished", 2, 5), [], ["queue 0-2", "run 2-5 finished"]),
        (job("started", 2), [], ["queue 0-2", "run 2-100 started open"]),
        (
            job("finished", 20, 30, attempt=2),
            [failure("retried", 1, 5)],
            ["queue 0-1", "run 1-5 retried", "back-off 5-20", "run 20-30 finished"],
        ),
        (
            job("retrying", 1),
            [failure("retried", 1, 5)],
            ["queue 0-1", "run 1-5 retried", "back-off 5-100 open"],
        ),
        (
            job("dead", 10, 15, attempt=2),
            [failure("retried", 1, 5), failure("dead", 10, 15, attempt=2)],
            ["queue 0-1", "run 1-5 retried", "back-off 5-10", "run 10-15 dead"],
        ),
        (
            job("finished", 60, 70),
            [failure("interrupted", 1, 5)],
            ["queue 0-1", "run 1-5 interrupted", "nobody 5-60", "run 60-70 finished"],
        ),
        (
            job("lost", 1, updated_at=at(40)),
            [],
            ["queue 0-1", "run 1-40 lost", "nobody 40-100 open"],
        ),
        (
            job("waiting", waiting_since=at(3)),
            [],
            ["queue 0-3", "waiting 3-100 open"],
        ),
        (
            job("finished", 41, 45),
            [failure("waited", 1, 41)],
            ["queue 0-1", "waiting 1-41", "run 41-45 finished"],
        ),
        (job("dead", None, 9), [], ["queue 0-9"]),
        (
            job("dead", 1, 50, dead_reason="cancelled"),
            [failure("interrupted", 1, 5)],
            ["queue 0-1", "run 1-5 interrupted", "nobody 5-50"],
        ),
        (job("finished", -1, 5), [], ["run -1-5 finished"]),
    ],
)
def test_a_job_is_told_in_spans(row, failures, expected):
    """Each moment since the first send is in one span: queue, waiting, run, between runs."""
    told = []
    for span in timeline(row, failures, at(100)):
        start, end = ((i - BEGIN).total_seconds() for i in (span.start, span.end))
        text = f"{span.kind} {start:.0f}-{end:.0f}"
        text += f" {span.state}" if span.kind == "run" else ""
        told.append(text + (" open" if span.open else ""))

    assert expected == told


def test_runs_are_numbered():
    """Runs are numbered across redeliveries within one attempt."""
    spans = timeline(
        job("finished", 60, 70), [failure("interrupted", 1, 5), failure("waited", 50, 60)], at(100)
    )

    assert [1, 2] == [span.run for span in spans if span.kind == "run"]
    assert [4000, 45_000, 10_000, 10_000] == [span.milliseconds for span in spans[1:]]
