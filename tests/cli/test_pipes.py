"""What commands write for programs, in a pipe and as JSON."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest
from click.testing import CliRunner

from dramatiq_joblog import Problem, ProblemKind
from dramatiq_joblog.cli.main import program

#: A time of the last minutes as programs read it.
INSTANT = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

MINUTE, DAY = 60_000, 86_400_000


@pytest.fixture
def piped(joblog):
    """Fill a log; return a function that returns the output of a command in a pipe."""
    now = joblog.now()
    joblog.mark("v412", who="ada")
    joblog.save_search("dead imports", "state:dead type:import", who="ada")
    problem = Problem(ProblemKind.QUEUES, "mail", now, 3, "Jobs wait", "Jobs wait.", "Start one.")
    joblog.mute(problem, until=now + timedelta(hours=1), reason="ticket 12", who="ada")
    seen = {"first_seen_at": now, "seen_at": now, "sent_at": now, "since": now, "is_open": True}
    alert = joblog.core.tables.alert
    alert.create(key="many", name="many", sent="opened", count=3, **seen)
    alert.create(key="unsent", name="unsent", error="TimeoutError", **seen)

    def run(*arguments):
        done = CliRunner().invoke(program, [*arguments], obj=None, env={"JOBLOG_DATABASE": url})
        assert done.exit_code == 0, done.output
        return done.stdout

    url = f"sqlite:///{joblog.database.database}"
    yield run
    joblog.release()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("command", ["mark", "searches", "mute", "alerts"])
def test_times_in_a_pipe(piped, command):
    """In a pipe, each line has its times in ISO 8601, and nothing in a form for people."""
    rows = piped(command).splitlines()

    assert rows
    assert all(INSTANT.search(row) for row in rows)
    assert not re.search(r"UTC|\+00:00|\(|\d s\b", "".join(rows))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_last_notice_in_a_pipe(piped):
    """The last notice of an alert is its event and its time; one that failed is given up."""
    notices = {row.split("\t")[1]: row.split("\t")[4:] for row in piped("alerts").splitlines()}

    assert re.fullmatch(rf"opened {INSTANT.pattern}", notices["many"][0])
    assert re.fullmatch(rf"given up {INSTANT.pattern}", notices["unsent"][0])
    assert "the notice was not sent: TimeoutError" == notices["unsent"][1]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_is_taken_away_as_json(piped):
    """With ``--json``, taking something away answers with a document too."""
    assert "mail" == json.loads(piped("mute", "queues", "--off", "--json"))["subject"]
    assert {"deleted": "dead imports"} == json.loads(
        piped("searches", "--delete", "dead imports", "--json")
    )


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_changes_left_out_in_a_pipe(joblog, job_factory):
    """In a pipe, ``diff`` says how many changes it left out; an option shows all."""
    now = int(joblog.now().timestamp() * 1000)
    for at in (now - 7 * DAY - MINUTE, now - MINUTE):
        ended = dict.fromkeys(("created_at", "started_at", "finished_at", "updated_at"), at)
        job_factory(**ended, job_type="import")
    for error in range(60):
        dead = {"state": "dead", "dead_reason": "retries_exhausted", "error_type": f"E{error}"}
        job_factory(**ended | dead, job_type="import")
    joblog.release()

    def run(*arguments):
        url = f"sqlite:///{joblog.database.database}"
        done = CliRunner().invoke(program, ["--database", url, "diff", *arguments])
        return done.stdout.splitlines(), done.stderr

    found = json.loads(run("--json")[0][0])["changes"]
    assert len(found) >= 60
    rows, said = run()
    assert (50, f"{len(found) - 50} more; see --limit\n") == (len(rows), said)
    rows, said = run("--limit", "1000")
    assert (len(found), "") == (len(rows), said)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["values", "json"])
def test_what_a_list_left_out(joblog, job_factory, form):
    """Beside values and JSON, standard error says that a list goes on, and how."""
    jids = [job_factory(jid=f"job-{n}", state="dead").jid for n in range(5)]
    joblog.dismiss(*jids, who="ada")
    joblog.release()

    def run(*arguments):
        url = f"sqlite:///{joblog.database.database}"
        done = CliRunner().invoke(program, ["--database", url, *arguments, *form])
        return done.stdout, done.stderr

    shown, said = run("list", "--limit", "3")
    place = re.fullmatch(r"for older ones add: --before (\S+)\n", said)[1]
    rest, said = run("list", "--limit", "3", "--before", place)
    assert "" == said
    assert [3, 2] == [sum(jid in text for jid in jids) for text in (shown, rest)]
    assert "older ones were left out; see --limit\n" == run("actions", "--limit", "4")[1]
    assert "" == run("actions", "--limit", "5")[1]
