"""``status``: what needs attention, as text, in pipes and as JSON."""

from __future__ import annotations

import json
import re
import shlex

import pytest


@pytest.fixture
def database_url(sqlite_database):
    """Return the URL of a database: queries are tested on each kind elsewhere."""
    return sqlite_database


def plain(text):
    """Return what a terminal shows without its colours."""
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def test_all_is_well(job_factory, ask, terminal, database_url):
    """For a log without problems, one line says so, and the exit code is 0."""
    job_factory()

    assert ask("status").stdout == ""
    assert {"well": True, "problems": [], "muted": []} == json.loads(ask("status", "--json").stdout)
    assert "✓ All is well\n✓ finished 1" in plain(terminal("--database", database_url, "status"))


@pytest.mark.parametrize("columns", [80, 140])
def test_what_needs_someone(job_factory, ask, terminal, database_url, columns):
    """What needs someone is said with its cure and its search, none of it wider than the screen."""
    job_factory(state="lost", worker="web1:17:3")
    job_factory(state="dead", dead_reason="retry_lost")

    kinds = [row.split("\t")[0] for row in ask("status", code=1).stdout.splitlines()]
    assert ["lost", "retries_lost"] == kinds
    found = json.loads(ask("status", "--json", code=1).stdout)
    assert (False, ["lost", "retries_lost"]) == (
        found["well"],
        [problem["kind"] for problem in found["problems"]],
    )
    shown = plain(terminal("--database", database_url, "status", code=1, columns=columns))
    assert "2 things need attention" in shown
    assert "1 job is lost with its worker web1:17" in " ".join(shown.split())
    assert "dramatiq-joblog list state:lost" in shown
    assert max(map(len, shown.splitlines())) <= columns


@pytest.mark.few(2)
@pytest.mark.parametrize("queue", ["a;b", "$(touch x)", "it's `x`", 'a "b" & c', "a|b>c", "~/*?"])
def test_a_command_is_safe_to_copy(job_factory, terminal, joblog, database_url, queue):
    """Hostile names are quoted for the shell, and the command still finds the jobs."""
    waits = dict.fromkeys(("created_at", "enqueued_at", "updated_at"), 1_700_000_000_000)
    job_factory(state="enqueued", queue=queue, **waits)

    shown = plain(terminal("--database", database_url, "status", code=1, columns=200))
    (line,) = [text for text in shown.splitlines() if "dramatiq-joblog list" in text]
    words = shlex.split(line)
    assert ["dramatiq-joblog", "list"] == words[:2]
    assert 1 == joblog.search(" ".join(words[2:])).count()
    # Between quotes alone stands what is not plain.
    assert not re.sub(r"'[^']*'|\\.|\"'\"", "", line).strip(" abcdefghijklmnopqrstuvwxyz:-_")


def test_no_database(tmp_path, terminal):
    """An unavailable database is exit 3, as for every command."""
    shown = terminal("--database", "postgresql://ada@127.0.0.1:1/shop", "status", code=3)

    assert "The database does not respond" in plain(shown)
