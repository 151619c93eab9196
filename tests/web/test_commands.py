"""The terminal commands equivalent to pages and questions, for copying."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape

import pytest
from pages import opened
from starlette.testclient import TestClient


@pytest.fixture
def database_url(sqlite_database):
    """Return the URL of a database: queries are tested on each kind elsewhere."""
    return sqlite_database


@pytest.fixture
def command(joblog):
    """Return a function that returns the words of the command on a page."""
    with TestClient(opened(joblog), base_url="http://localhost") as page:

        def find(path, **query):
            html = page.get(path, params=query).text
            found = re.search(r'data-copy="(dramatiq-joblog [^"]*)"[^>]*>Copy as command', html)
            return shlex.split(unescape(found[1])) if found else None

        yield find


@pytest.mark.few(2)
@pytest.mark.parametrize("actor", ["import", "$(touch x)", "it's", 'a "b"', "a;b"])
def test_a_search(command, ask, job_factory, actor):
    """The command finds the jobs that the page shows, whatever their names hold."""
    job_factory(state="dead", actor=actor, jid="this")
    job_factory(state="dead", actor="other")
    quoted = f'actor:"{actor}"' if '"' not in actor else 'actor:"a *b*"'

    program, what, *words = command("/jobs", q=f"state:dead {quoted}")

    assert ("dramatiq-joblog", "list") == (program, what)
    found = json.loads(ask("--json", what, *words).stdout)
    assert ["this"] == [job["jid"] for job in found]


@pytest.mark.few(8)
@pytest.mark.parametrize(
    ("path", "query", "words"),
    [
        ("/", {}, "status"),
        ("/jobs", {}, "list"),
        ("/jobs/this", {}, "why this"),
        ("/dead", {"window": "7d"}, "list state:dead ended:7d"),
        ("/types", {"range": "7d"}, "types --since 7d"),
        ("/types/import", {"range": "7d"}, "list type:import ended:7d"),
        ("/users/7", {}, "list user:7 ended:24h"),
        ("/queues", {}, "queues"),
        ("/locks", {}, "locks"),
        ("/workers", {}, "workers"),
        ("/actions", {}, "actions"),
        ("/alerts", {}, "alerts"),
        ("/compare", {"with": "yesterday", "range": "3h"}, "diff yesterday --since 3h"),
        ("/zone", {}, None),
        ("/confirm/requeue", {"jid": "this"}, "--app MODULE:NAME requeue this"),
        ("/confirm/dismiss", {"q": "state:dead user:7"}, "dismiss state:dead user:7"),
        # The page and the terminal take other jobs of a search without a state.
        ("/confirm/dismiss", {"q": "user:7"}, None),
    ],
)
def test_each_page(command, job_factory, path, query, words):
    """Each page with an equivalent command shows it."""
    job_factory(state="dead", jid="this", job_type="import", user_id="7")

    found = command(path, **query)

    if words is None:
        assert found is None
        return
    program, *line = found
    joined = [word for part in line for word in part.split()]
    assert (program, words.split()) == ("dramatiq-joblog", joined)
