"""Marks of changes: written by an application or a deploy, shown on charts and by problems."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone

import pytest
from pages import opened
from starlette.testclient import TestClient

from dramatiq_joblog import ConfigurationError

MINUTE, DAY = 60_000, 86_400_000


def ago(milliseconds):
    return int(time.time() * 1000) - milliseconds


def test_a_mark(joblog):
    """A mark has its name, its time by the database's clock, and its author; newest first."""
    joblog.mark(" v411 ", at=datetime(2026, 11, 24, tzinfo=timezone.utc))
    row = joblog.mark("v412", who="ada")

    assert ["v412", "v411"] == [mark.name for mark in joblog.marks]
    assert ("ada", "unknown") == tuple(mark.who for mark in joblog.marks)
    assert row.at.timestamp() == pytest.approx(time.time(), abs=60)
    assert "2026-11-24T00:00:00.000Z" == joblog.marks[1].as_dict()["at"]
    assert joblog.database.is_closed()


@pytest.mark.parametrize("name", ["", "  ", None, 412])
def test_a_mark_without_a_name(joblog, name):
    """An invalid name is refused with a sentence."""
    with pytest.raises(ConfigurationError, match="a mark needs a name"):
        joblog.mark(name)


def test_a_mark_of_any_text(joblog):
    """A name may have any characters, and is cut to the length of the column."""
    joblog.mark("v\x00\ud800é" + "x" * 300)

    (row,) = joblog.marks
    assert row.name.startswith("v")
    assert len(row.name) <= 255


def test_a_log_of_before(joblog):
    """An upgrade adds the table of marks, and keeps existing rows."""
    joblog.database.execute_sql("DROP TABLE joblog_deploy")
    joblog.database.execute_sql("DELETE FROM joblog_job_migration WHERE name = '0005_deploys'")
    joblog.release()
    (found,) = [p for p in joblog.problems() if p.subject == "schema"]
    assert "0005_deploys" in found.text

    joblog.create_tables()

    assert "v412" == joblog.mark("v412").name


def test_what_came_with_a_change(joblog, job_factory):
    """A new error reports how soon after a mark it appeared, if within an hour."""
    job_factory(created_at=ago(3 * DAY))
    died = ago(10 * MINUTE)
    job_factory(state="dead", error_type="FeedError", finished_at=died, actor="import")
    joblog.mark("v411", at=died - 2 * DAY)

    def text():
        joblog.release()
        (found,) = [p.text for p in joblog.problems() if p.kind == "new_error"]
        return found

    assert "v411" not in text()
    joblog.mark("v412", at=died - 3 * MINUTE)
    assert re.search(
        r"FeedError is new in import since \d\d:\d\d UTC, 3:00 min after v412: ", text()
    )


def test_the_chart(joblog, job_factory):
    """The overview draws each mark of its range, escaped, and has them as JSON."""
    job_factory()
    joblog.mark("<b>v412", at=ago(10 * MINUTE), who="ada")
    joblog.mark("old", at=ago(2 * DAY))

    with TestClient(opened(joblog), base_url="http://localhost") as page:
        text = page.get("/?range=1h").text
        (mark,) = page.get("/overview.json?range=1h").json()["marks"]

    assert 3 == text.count('class="deploy"')
    assert "&lt;b&gt;v412, " in text
    assert "<b>v412" not in text
    assert ("<b>v412", "ada") == (mark["name"], mark["who"])


def test_the_command(joblog, ask):
    """``mark`` adds a mark, also for an earlier time, and lists them."""
    assert "v412 is marked at " in ask("mark", "v412").stdout
    ask("mark", "v411", "--at", "2h", "--who", "ci")

    rows = [row.split("\t") for row in ask("mark").stdout.splitlines()]

    assert [("v412",), ("v411", "ci")] == [(rows[0][0],), (rows[1][0], rows[1][-1])]
    assert "is not a time" in ask("mark", "v413", "--at", "soon", code=2).stderr
