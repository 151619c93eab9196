"""The screens of a log with long names: each fits the terminal, and none is an empty table."""

from __future__ import annotations

import re

import crowded
import pytest
from rich.cells import cell_len

from dramatiq_joblog import JobLog

SCREENS = (
    *("status", "list", "list state:dead", "types", "queues", "locks", "workers", "stats", "diff"),
    *("alerts", "actions", "doctor", "show {dead}", "show {family}", "why {waiting}"),
)
#: What is said where there is nothing to show.
NOTHING = {
    "list": "the log has no jobs yet",
    "types": "no job ended in this time",
    "queues": "no queue is known",
    "locks": "no key is held",
    "workers": "no worker of this log is known",
    "alerts": "no worker has checked any alert yet",
    "actions": "no action has been recorded yet",
    "searches": "no search is saved yet",
}
_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Return the URL of a log with everything that can be shown, and its jids."""
    url = f"sqlite:///{tmp_path_factory.mktemp('screens')}/jobs.db"
    log = JobLog(url)
    log.create_tables()
    jids = crowded.crowd(log)
    log.close()
    return url, jids


@pytest.mark.full
@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_is_wider_than_its_terminal(crowd, terminal, screen, columns):
    """However long names are, each line of a screen fits, at both usual widths."""
    url, jids = crowd
    words = [word.format(**jids) for word in screen.split()]
    code = 1 if words[0] in {"status", "doctor"} else 0
    shown = terminal("--database", url, *words, columns=columns, code=code)

    lines = _STYLE.sub("", shown).split("\n")
    assert len(lines) > 2
    assert [line for line in lines if cell_len(line) > columns] == []


@pytest.mark.few(3)
@pytest.mark.parametrize("command", NOTHING)
def test_nothing_to_show(sqlite_database, terminal, command):
    """Without content, a command says so, and draws no empty table."""
    shown = terminal("--database", sqlite_database, command, code=1)
    assert [f"dramatiq-joblog: {NOTHING[command]}"] == [
        line.partition(": none has")[0] for line in _STYLE.sub("", shown).splitlines()
    ]
