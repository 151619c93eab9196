"""What needs attention costs as many questions where jobs die of many errors as where of one."""

from __future__ import annotations

import time

from dramatiq_joblog import JobLog

MINUTE, DAY = 60_000, 86_400_000


def died(log, errors, before):
    """Make a job dead with each of some errors, a time ago."""
    at = time.time_ns() // 1_000_000 - before
    rows = [
        {
            "jid": f"{before}-{number}", "actor": f"actor_{number % 7}", "queue": "default",
            "state": "dead", "attempt": 1, "created_at": at, "started_at": at, "updated_at": at,
            "finished_at": at, "error_type": f"Error{number}", "dead_reason": "no_retries",
        }
        for number in range(errors)
    ]  # fmt: skip
    log.Job.insert_many(rows).execute()


def questions(url, errors, asked):
    """Return the number of queries that the problems take after known errors recur."""
    log = JobLog(url)
    died(log, errors, 3 * DAY)
    died(log, errors, 5 * MINUTE)
    log.problems()
    with asked() as statements:
        assert log.problems() == []
    log.close()
    return len(statements)


def test_known_errors_of_many_kinds(sqlite_database, tmp_path, asked):
    """One query checks whether errors outside the totals are new, for all of them."""
    other = JobLog(f"sqlite:///{tmp_path}/other.db")
    other.create_tables()
    other.close()

    few = questions(sqlite_database, 1, asked)
    many = questions(f"sqlite:///{tmp_path}/other.db", 60, asked)

    assert many == few
