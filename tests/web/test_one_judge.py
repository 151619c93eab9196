"""A problem of a job type is a change for the worse on each page, and in the terminal."""

from __future__ import annotations

import json
import time

import pytest
from pages import opened
from starlette.testclient import TestClient

MINUTE, DAY = 60_000, 86_400_000


@pytest.fixture
def database_url(sqlite_database):
    """Return the URL of a database: queries are tested on each kind elsewhere."""
    return sqlite_database


@pytest.fixture
def ended(job_factory):
    """Return a function that inserts jobs of one type that ended some time ago."""

    def make(number, before, **facts):
        at = int(time.time() * 1000) - before
        times = dict.fromkeys(("created_at", "started_at", "finished_at", "updated_at"), at)
        for _ in range(number):
            job_factory(**times | {"job_type": "import", "duration": 200} | facts)

    return make


def dead(number):
    return {"state": "dead", "dead_reason": "retries_exhausted", "error_type": f"E{number}"}


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["slower", "failing"])
@pytest.mark.parametrize("number", [15, 40], ids=["few", "many"])
def test_a_problem_of_a_type_is_no_usual_thing(joblog, ended, ask, kind, number):
    """A type that the first line says is slower, or fails more, is not as usual below it."""
    ended(number, 7 * DAY)
    if kind == "slower":
        ended(number, MINUTE, duration=2_000)
    else:
        ended(number, MINUTE)
        for error in range(number):
            # None of these errors is new, or rises by itself.
            ended(1, 5 * DAY, **dead(error), job_type="mail")
            ended(1, MINUTE, **dead(error))
    assert kind in {problem.kind.value for problem in joblog.problems()}

    with TestClient(opened(joblog), base_url="http://localhost") as page:
        (row,) = [r for r in page.get("/types.json").json()["types"] if r["name"] == "import"]
        changed = page.get("/compare.json?with=week").json()
    assert row["is_worse"]
    assert row["said"]
    wanted = {"slower": "duration", "failing": "failed"}[kind]
    assert wanted in json.dumps(changed)
    assert wanted in json.dumps(json.loads(ask("diff", "week", "--json").stdout))
