"""``alerts`` on a terminal: what is open is shown in full, the rest in a list."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
from rich.cells import cell_len
from rich.console import Console

from dramatiq_joblog.cli.app import Session
from dramatiq_joblog.cli.main import program
from dramatiq_joblog.cli.table import Screen


@pytest.fixture
def database_url(sqlite_database):
    """Return the URL of a database: queries are tested on each kind elsewhere."""
    return sqlite_database


@pytest.fixture
def alert(joblog):
    """Return a function that stores the state of an alert."""
    now = joblog.now()

    def make(name, **facts):
        seen = {"first_seen_at": now, "seen_at": now, "sent_at": now, "sent": "opened"}
        joblog.core.tables.alert.create(key=name, name=name, **seen | facts)

    return make


@pytest.fixture
def seen(joblog, database_url):
    """Return a function that returns the lines of the command on a terminal of some width."""

    def show(width):
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, color_system=None, width=width)
        session = Session()
        session.screen = Screen(console)
        joblog.release()
        arguments = ["--database", database_url, "alerts"]
        program.main(arguments, obj=session, standalone_mode=False)
        return [line.rstrip() for line in out.getvalue().splitlines()]

    return show


@pytest.mark.parametrize("width", [80, 120])
def test_many_alerts(joblog, alert, seen, width):
    """Nothing of an open alert, or of a notice that was not sent, is cut; no line is too long."""
    since = joblog.now() - timedelta(hours=3)
    summary = "1000 or more jobs (more than 0) within 1 h: state:dead type:import,reconciliation."
    error = "ConnectionError: " + " ".join(["the pager does not respond"] * 6)
    alert("dead jobs", is_open=True, since=since, summary=summary, search="state:dead type:import")
    alert("given up", error=error)
    for number in range(30):
        alert(f"rule {number}", sent="resolved")

    lines = seen(width)

    assert "1 of 32 alerts is open" == lines[0]
    text = " ".join(line.strip() for line in lines)
    assert "■ dead jobs  since 3 h ago; last notice: opened" in text
    assert f"{summary} dramatiq-joblog list state:dead type:import" in text
    assert (
        f"✓ given up  not open; last notice: given up 1 s ago the notice was not sent: {error}"
        in (text.replace("0 s ago", "1 s ago"))
    )
    assert 30 == sum("rule " in line and "resolved" in line for line in lines)
    assert all(cell_len(line) <= width for line in lines)


def test_no_alert_is_open(alert, seen):
    """The first line says that none is open."""
    alert("many retries", sent="resolved")

    lines = seen(80)

    assert "✓ No alert is open" == lines[0]
    assert any("many retries" in line and "resolved" in line for line in lines)
