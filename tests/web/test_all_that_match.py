"""An action on "all that match" takes all, or reports how far back it looked."""

from __future__ import annotations

import pytest
from pages import opened
from starlette.testclient import TestClient

from dramatiq_joblog import JobLog
from dramatiq_joblog.schema import query
from dramatiq_joblog.web import subjects

#: A search that no index answers.
WORDS = "needle"
START = 1_700_000_000_000
#: How many jobs one page looks at here.
LOOK = 500


@pytest.fixture
def log(sqlite_database, monkeypatch):
    """Return a log with three old jobs that match, more others than one page looks at, and one."""
    monkeypatch.setattr(query, "LOOK", LOOK)
    log = JobLog(sqlite_database)
    matches = (0, 1, 2, LOOK + 10)
    rows = [
        {
            "jid": f"j{at}",
            "actor": "work",
            "queue": "default",
            "state": "dead",
            "attempt": 1,
            "error_type": "ValueError",
            "error_message": "a needle" if at in matches else "hay",
            **dict.fromkeys(("enqueued_at", "created_at", "updated_at"), START + at),
        }
        for at in range(LOOK + 11)
    ]
    with log.database.atomic():
        for first in range(0, len(rows), 1_000):
            log.Job.insert_many(rows[first : first + 1_000]).execute()
    log.release()
    yield log
    log.close()


@pytest.fixture
def page(log):
    """Return a client of the page, on this machine."""
    with TestClient(opened(log), base_url="http://localhost", client=("127.0.0.1", 1)) as client:
        yield client


def test_all_are_taken(log, page):
    """All matching jobs are taken, however many others come before them."""
    text = page.get("/confirm/dismiss", params={"q": WORDS}).text
    assert "Dismiss 4" in text
    assert "was not searched" not in text

    page.post(
        "/do/dismiss",
        data={"q": WORDS, "back": "/jobs", "csrf": page.cookies["joblog_csrf"]},
    )
    assert {"j0", "j1", "j2", f"j{LOOK + 10}"} == {job.jid for job in log.jobs.dismissed()}


def test_the_bound_is_said(page, monkeypatch):
    """If there is no time to check all jobs, the question says how far back it looked."""
    monkeypatch.setattr(subjects, "LOOK_FOR", -1)

    text = page.get("/confirm/dismiss", params={"q": WORDS}).text

    assert "Dismiss work?" in text
    assert "Jobs older than 2023-11-14" in text
    assert "were not searched, and are not included" in text


def test_nothing_was_found_so_far(page, monkeypatch):
    """If nothing was found in time, the question does not claim that there is nothing."""
    monkeypatch.setattr(subjects, "LOOK_FOR", -1)

    text = page.get("/confirm/dismiss", params={"q": "nothing"}).text

    assert "None was found back to 2023-11-14" in text
