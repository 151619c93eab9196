"""The display of numbers, durations and odd characters is the same on pages and terminals."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timedelta, timezone

import pytest
from starlette.testclient import TestClient

from dramatiq_joblog.cli import style
from dramatiq_joblog.reading import display
from dramatiq_joblog.web import dashboard, formats

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
NOW = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)

#: Turns the direction of writing, moves a terminal's cursor, shows nothing.
HOSTILE = "a\u202egpj\x1b[2J\x9b\u200bz"
#: What a spreadsheet would run.
FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "\uff0b1")


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0 s"),
        (59 * SECOND, "59 s"),
        (HOUR - 1, "59 min"),
        (30 * HOUR, "30 h"),
        (48 * HOUR, "2 d"),
        (-5, "0 s"),
    ],
)
def test_an_age_is_the_same_everywhere(milliseconds, text):
    """Pages and the terminal show an age as the same figure."""
    assert text == display.rough(milliseconds)
    assert text == style.rough(milliseconds)
    assert text == formats.rough(milliseconds).replace("\u00a0", " ")
    assert text == style.age(NOW - timedelta(milliseconds=milliseconds), NOW)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (840, "840 ms"),
        (59_949, "59.9 s"),
        (59_950, "1:00 min"),
        (HOUR - 1, "1:00 h"),
        (47 * HOUR, "47:00 h"),
        (2.5 * DAY, "2.5 d"),
        (12.5 * DAY, "12 d"),
    ],
)
def test_a_duration_is_the_same_everywhere(milliseconds, text):
    """Pages and the terminal show a duration as the same figures."""
    assert text == style.duration(milliseconds)
    assert text == formats.plain_duration(milliseconds).replace("\u00a0", " ")


def test_what_cannot_be_seen_is_shown():
    """Control characters, and those that change the writing direction, are escaped."""
    assert r"a\u202egpj\x1b[2J\x9b\u200bz" == display.visible(HOSTILE)
    assert "two\nlines\tand a tab" == display.visible("two\nlines\tand a tab")
    assert "żółć 漢字 שלום" == display.visible("żółć 漢字 שלום")


@pytest.mark.parametrize(
    "text", ["می\u200cشود", "क्\u200dष", "🧑🏽\u200d🚀", "❤️\u200d🔥", "🏳️\u200d🌈"]
)
def test_joiners_stay_where_they_are_written(text):
    """A joiner within Persian, Hindi or an emoji stays, on terminals and in data as well."""
    assert text == display.visible(text) == display.escaped_json(text)


@pytest.mark.parametrize(
    "text", ["a\u200db", "a\u200cb", "\u200d", "🚀\u200d", "🚀\u200c🚀", "م\u200d\u200dم"]
)
def test_joiners_elsewhere_are_shown(text):
    """A joiner elsewhere is escaped, because two names would look the same."""
    assert "\\u200" in display.visible(text)


def test_a_json_document_means_the_same():
    """A document without invisible characters is read back as what was written."""
    document = display.escaped_json(json.dumps({HOSTILE: [HOSTILE]}, ensure_ascii=False))

    assert "\u202e" not in document
    assert {HOSTILE: [HOSTILE]} == json.loads(document)


@pytest.fixture
def odd_job(joblog, job_factory):
    """Return a job whose texts are hostile."""
    return job_factory(
        state="dead", error_type="Error", error_message=HOSTILE, user_id=HOSTILE, args=[HOSTILE]
    )


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("formula", FORMULAS)
def test_an_exported_cell_is_no_formula(ask, job_factory, formula):
    """In CSV, a text that a spreadsheet would run begins with a quote; a number stays one."""
    job_factory(state="dead", error_message=formula, duration=-1)

    (row,) = csv.DictReader(io.StringIO(ask("export", "--format", "csv").output))

    assert row["error_message"].startswith("'")
    assert row["error_message"].lstrip("'").replace("\\r", "\r") == formula
    assert "-1" == row["duration"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_exports_hold_no_invisible_characters(ask, joblog, odd_job):
    """Neither exports nor JSON contain characters that mislead terminals or people."""
    lines, table = ask("export").output, ask("export", "--format", "csv").output
    listed, detail = ask("list", "--json").output, ask("show", odd_job.jid, "--json").output
    with TestClient(dashboard(joblog, authorize=lambda _: "all")) as page:
        data = page.get("/jobs.json").text

    for text in (lines, table, listed, detail, data):
        assert not set("\u202e\x1b\x9b\u200b") & set(text)
    assert HOSTILE == json.loads(lines)["error_message"]
    assert HOSTILE == json.loads(listed)[0]["error_message"]
    assert HOSTILE == json.loads(data)["jobs"][0]["error_message"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_page_holds_no_invisible_characters(joblog, odd_job):
    """Pages show such characters as escapes, and links still lead to the right user."""
    with TestClient(dashboard(joblog, authorize=lambda _: "all")) as client:
        pages = [client.get(path).text for path in ("/jobs", f"/jobs/{odd_job.jid}", "/dead")]

    assert all("\u202e" not in page and "\x1b" not in page for page in pages)
    assert any(r"\u202egpj\x1b[2J" in page for page in pages)
    assert "%E2%80%AE" in pages[0]
