"""The command line, as run by users and scripts: a process, on a real database."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import dramatiq
import pytest
from click.testing import CliRunner
from commands import PROGRAM
from dramatiq.middleware import SkipMessage

from dramatiq_joblog import JobLog, current_job
from dramatiq_joblog.cli.main import program
from dramatiq_joblog.cli.tail import Changes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path):
    """Return a function that runs the installed command, or another, in an empty folder."""

    def run(*arguments, command=(PROGRAM,), **variables):
        return subprocess.run(
            [*command, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "80", "PYTHONPATH": ""} | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def without_colour(text):
    return re.sub("\x1b\\[[0-9;]*m", "", text)


@pytest.fixture
def jobs(joblog, make_broker, worker):
    """Run real jobs: one finished, one dead after a retry, one skipped; return them by actor."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(job_type="reconciliation", job_user="user_id", max_retries=1, min_backoff=1)
    def reconcile(user_id, account):
        raise ValueError(f"account {account} is [bold]closed[/bold]\x1b[31m")

    @dramatiq.actor(job_type="import", job_user="user_id")
    def load(user_id, symbol="AAPL"):
        pass

    @dramatiq.actor(actor_name="verify", max_retries=0)
    def verify():
        raise SkipMessage("nothing to verify")

    sent = [load.send(7, symbol="MSFT"), reconcile.send(8, "savings"), verify.send()]
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)
        broker.join("default.DQ", timeout=20_000, fail_fast=False)
        broker.join("default", timeout=20_000, fail_fast=False)
    found = {m.actor_name: joblog.get(m.message_id) for m in sent}
    assert ["finished", "dead", "skipped"] == [j.state for j in found.values()]
    joblog.release()
    return found


@pytest.mark.full
@pytest.mark.new_database
def test_a_log_is_made_and_asked(installed, ask, database_url):
    """``migrate`` creates the tables and can be repeated; for an empty log, lists exit with 1."""
    done = installed("migrate", "--database", database_url)
    assert (0, "") == (done.returncode, done.stderr)
    assert "up to date" in done.stdout
    assert "up to date" in ask("migrate").stdout

    done = installed("workers", "--json", JOBLOG_DATABASE=database_url)
    assert (1, []) == (done.returncode, json.loads(done.stdout))
    for command in ("actions", "list", "locks", "workers"):
        assert "" == ask(command, code=1).stdout


def test_tables_of_an_older_version(joblog, ask):
    """A missing column is reported with the command that adds it."""
    joblog.database.execute_sql("ALTER TABLE joblog_job DROP COLUMN note")
    joblog.release()

    told = ask("list", code=3).stderr
    assert "the log's tables are of an older version" in told
    assert told.endswith("migrate\n")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["locks"], 2, "which log? Give --database URL or --app module:joblog"),
        (["lokcs"], 2, "there is no command 'lokcs'; did you mean locks?"),
        (["locks", "--foo"], 2, "no such option"),
        (["--foo"], 2, "no such option"),
        (["--database", "jobs.db", "locks"], 2, "'jobs.db' does not begin with a known database"),
        (["--database", "sqlite:///no.db", "locks"], 3, "/no.db'; to make"),
        (["--database", "sqlite:///", "locks"], 2, "is in memory"),
        (["--database", "oracle://a:secret@b/c", "locks"], 2, "oracle://a:[redacted]@b/c"),
        (
            ["--database", "postgresql://ada:secret@127.0.0.1:1/x", "locks"],
            3,
            "is unavailable: connection failed",
        ),
        (["--app", "nosuch.place:joblog", "locks"], 2, "there is no module 'nosuch'"),
        (["--app", "a b", "locks"], 2, "is not of the form module:name"),
        (["--app", "json:joblog", "locks"], 2, "the module json has no 'joblog'; it has no log"),
        (["--app", "json:dumps", "locks"], 2, "that is a function, and not a JobLog"),
        (["--app", "a:b", "--database", "c", "locks"], 2, "name two logs; give one of them"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(tmp_path, monkeypatch, arguments, code, text):
    """Bad usage is exit 2 and an unavailable database exit 3; no traceback, no password."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    done = CliRunner().invoke(program, arguments)

    assert code == done.exit_code
    assert "" == done.stdout
    assert done.stderr.startswith("dramatiq-joblog: ")
    assert text in done.stderr
    assert 1 == done.stderr.count("\n")
    assert "secret" not in done.stderr
    assert not (tmp_path / "no.db").exists()


@pytest.mark.new_database
def test_a_database_without_tables(cli, database_url, tmp_path):
    """A database without a log is reported with the command that creates one."""
    (tmp_path / "joblog.db").touch()
    done = cli("workers", "--database", database_url)

    assert 3 == done.returncode
    assert "the log's tables are not there; make them with: dramatiq-joblog" in done.stderr
    assert done.stderr.endswith("migrate\n")


@pytest.mark.full
def test_the_log_of_an_application(installed, cli, tmp_path, sqlite_url):
    """``--app module:name`` imports a module of the current folder, and reports where it fails."""
    (tmp_path / "shop.py").write_text(
        f"from dramatiq_joblog import JobLog\nlog = JobLog({sqlite_url!r})\n"
    )
    (tmp_path / "broken.py").write_text("\nimport shop\nshop.prices()\n")
    (tmp_path / "needy.py").write_text("import not_installed\n")

    assert 0 == installed("--app", "shop:log", "migrate").returncode
    assert 1 == cli("--app", "shop:log", "locks").returncode
    assert "has no 'joblog'; its logs are log" in cli("--app", "shop", "locks").stderr
    done = cli("--app", "broken", "locks")
    assert (2, 1) == (done.returncode, done.stderr.count("\n"))
    assert "importing broken failed with AttributeError: module 'shop' has no" in done.stderr
    assert done.stderr.endswith("broken.py, line 3)\n")
    assert "importing needy failed with ModuleNotFoundError" in cli("--app=needy", "locks").stderr


def test_it_runs_as_a_module(installed):
    """``python -m dramatiq_joblog`` is the same program; alone it shows its help."""
    done = installed(command=[sys.executable, "-m", "dramatiq_joblog"])

    assert 0 == done.returncode
    assert done.stdout.startswith("Usage: dramatiq-joblog ")


@pytest.mark.full
@pytest.mark.parametrize("missing", ["click", "rich"])
def test_a_missing_extra_is_told_with_its_command(installed, tmp_path, missing):
    """Without the extra, the program names the missing package and the install command."""
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('gone', name={missing!r})")
    done = installed("locks", PYTHONPATH=str(tmp_path))

    assert 1 == done.returncode
    assert (
        f"dramatiq-joblog needs {missing}, which is not installed: "
        "pip install 'dramatiq-joblog[cli]'\n"
    ) == done.stderr


# list


def test_jobs_are_listed_for_programs(jobs, ask):
    """In a pipe, each job is a line of tab-separated values, with the full jid and no colour."""
    text = ask("list").stdout
    rows = {row.split("\t")[0]: row.split("\t")[1:] for row in text.splitlines()}

    assert {job.jid for job in jobs.values()} == set(rows)
    skipped, dead = rows[jobs["verify"].jid], rows[jobs["reconcile"].jid]
    assert ["skipped", "-", "verify", "-", "1"] == skipped[:5]
    assert ["dead", "reconciliation", "reconcile", "8", "2"] == dead[:5]
    assert ["default", "ValueError: account savings is [bold]closed[/bold]\\x1b[31m"] == dead[-2:]
    assert {10} == {len(row) for row in rows.values()}
    assert "\x1b" not in text


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "arguments",
    [
        ["state:dead", "type:reconciliation", "since:1h"],
        ["state:dead type:reconciliation since:1h"],
        ["--state", "dead", "--type", "reconciliation", "--since", "1h"],
        ["--user", "8", "--actor", "reconcile", "--queue", "default"],
        ["--error", "ValueError", "--until", "2199-01-01 12:00"],
        ["-state:finished", "-state:skipped"],
        ["savings"],
    ],
)
def test_words_and_options_filter_alike(jobs, ask, arguments):
    """Search words filter like on the dashboard, and so do options of the same names."""
    listed = json.loads(ask("list", *arguments, "--json").stdout)

    assert [jobs["reconcile"].jid] == [job["jid"] for job in listed]
    assert jobs["reconcile"].as_dict() == listed[0]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_list_looks_back_as_far_as_it_must(joblog, job_factory, ask, monkeypatch):
    """A search without an index checks all jobs, although a page checks only some."""
    monkeypatch.setattr("dramatiq_joblog.schema.query.LOOK", 3)
    wanted = job_factory(state="dead", error_type="E", error_message="out of cheese")
    for _ in range(10):
        job_factory()

    assert None is not joblog.search("cheese").page().looked_back_to
    assert wanted.jid == ask("list", "cheese").stdout.split("\t")[0]
    assert wanted.jid == json.loads(ask("export", "cheese").stdout)["jid"]
    ask("list", "cheddar", code=1)


def test_nothing_that_matches_is_exit_1(jobs, ask):
    """A list without jobs is empty, with a message on standard error."""
    done = ask("list", "state:dead", "--user", "7", code=1)

    assert ("", "dramatiq-joblog: no job matches 'state:dead user:7'\n") == (
        done.stdout,
        done.stderr,
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["stat:dead"], "did you mean state:?"),
        (["--state", "ded"], "ded is not a state: did you mean dead?"),
        (["state:x"], "state:x is not a state: use active, in_progress, enqueued"),
        (["--since", "tomorrow"], "'tomorrow' is not a time"),
        (["since:25:61"], "is not a time"),
        (["--limit", "0"], "'--limit'"),
        (["--before", "x"], "'x' is not a place in a list"),
        (['type:"a'], "quote that is not closed"),
    ],
)
def test_a_filter_that_is_not_understood(joblog, ask, arguments, text):
    """An unknown word, state or time is exit 2, with what to write instead."""
    done = ask("list", *arguments, code=2)

    assert text in done.stderr
    assert 1 == done.stderr.count("\n")


def test_a_list_goes_on_where_it_ended(joblog, job_factory, ask):
    """``--before`` takes the cursor of a page, and no job is left out or shown twice."""
    made = [job_factory().jid for _ in range(7)]
    listed, place = [], []
    for _ in range(3):
        page = joblog.search("").page(limit=3, before=place[1] if place else None)
        listed += [row.split("\t")[0] for row in ask("list", "-n", 3, *place).stdout.splitlines()]
        place = ["--before", page.older]

    assert made[::-1] == listed


@pytest.mark.full
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_list_fits_its_terminal(jobs, terminal, database_url):
    """On a terminal, less important columns are dropped, and no line is too wide."""
    for columns, heading in (
        (170, "Job State Type Actor User Run Queued Took Ago Why"),
        (80, "Job State Type User Run Took Ago Why"),
        (40, "Job State Type"),
    ):
        written = terminal("--database", database_url, "list", columns=columns)
        lines = without_colour(written).splitlines()
        assert heading == " ".join(lines[0].split())
        assert max(map(len, lines)) <= columns
        assert {"─"} == set(lines[1])
        (dead,) = (row for row in lines if "■ dead" in row)
        assert jobs["reconcile"].jid[: 36 if columns == 170 else 8] == dead.split()[0]
        assert "\x1b[38;2;212;73;86m■ dead" in written


@pytest.mark.full
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_colour_where_none_is_wanted(jobs, terminal, database_url):
    """With NO_COLOR, shapes and words remain."""
    written = terminal("--database", database_url, "list", NO_COLOR="1")

    assert "38;2" not in written
    assert "✓ finished" in without_colour(written)


# show


def test_all_of_a_job(jobs, ask):
    """A job is shown with error, times, runs and the last traceback, complete in a pipe."""
    job = jobs["reconcile"]
    text = ask("show", job.jid[:8]).stdout

    assert text.startswith(f"reconciliation\n■ dead  {job.jid}\n")
    assert "account savings is [bold]closed[/bold]\\x1b[31m  (retries_exhausted)" in text
    assert re.search(r'^actor +reconcile\(8, "savings"\)$', text, re.MULTILINE)
    assert re.search("^attempt +2 of 2$", text, re.MULTILINE)
    assert re.search(r"^↻ Run 1, retried  ValueError +━+ ", text, re.MULTILINE)
    assert re.search(r"^■ Run 2, dead  ValueError +━+ ", text, re.MULTILINE)
    assert 1 == text.count("Traceback (most recent call last)")
    assert 2 == ask("show", job.jid, "--traceback").stdout.count("Traceback (most recent")
    assert "\x1b" not in text


def test_all_of_a_job_for_programs(jobs, ask):
    """``show --json`` is the job's document with its failed runs, lines and family."""
    told = json.loads(ask("--json", "show", jobs["reconcile"].jid).stdout)

    assert jobs["reconcile"].as_dict().items() <= told.items()
    assert ["retried", "dead"] == [run["outcome"] for run in told["failures"]]
    assert ([], []) == (told["lines"], told["family"])


def test_part_of_a_jid_is_enough(joblog, job_factory, ask):
    """A unique prefix of a jid is enough; an ambiguous one lists the jids; otherwise exit 1."""
    for jid in ("aa11", "aa22-3", "bb'%_\"", "bb\\"):
        job_factory(jid=jid)

    assert "✓ finished  aa22-3\n" in ask("show", "aa2").stdout
    assert "✓ finished  aa11\n" in ask("show", "aa11").stdout
    done = ask("show", "aa", code=2)
    assert "more than one job begins with 'aa':\n  aa" in done.stderr
    for nothing in ("a%", "cc", "aa22-34", "b_"):
        assert f"the log has no job {nothing!r}" in ask("show", nothing, code=1).stderr


def test_a_family_is_drawn(joblog, job_factory, ask):
    """A job's family is a tree, even with inconsistent rows."""
    job_factory(jid="root", actor="close")
    job_factory(jid="one", parent_jid="root", root_jid="root")
    job_factory(jid="two", parent_jid="one", root_jid="root", state="dead", error_type="E")
    job_factory(jid="three", parent_jid="root", root_jid="root")
    job_factory(jid="lost", parent_jid="pruned", root_jid="root")

    text = ask("show", "one").stdout
    assert text.partition("Family  5 jobs\n")[2].splitlines() == [
        "✓ close  root  0 ms",
        "├ ✓ work  one  this job",
        "│ └ ■ work  two  E",
        "└ ✓ work  three  0 ms",
        "✓ work  lost  0 ms",
    ]


# tail


def states(told):
    return [one["job"]["state"] for one in told if "job" in one]


def test_what_happens_is_told_while_it_happens(database_url, joblog, make_broker, worker):
    """``tail`` shows each job that changes, and its log lines, until SIGINT, which is exit 130."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(max_retries=0)
    def work(number):
        current_job().log("half way")

    with subprocess.Popen(
        [PROGRAM, "--database", database_url, "tail", "--json", "--lines", "--every", "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        message = work.send(1)
        told = [json.loads(process.stdout.readline())]
        assert (message.message_id, "enqueued") == (told[0]["job"]["jid"], told[0]["job"]["state"])
        with worker(broker):
            while not ("finished" in states(told) and any("line" in one for one in told)):
                told.append(json.loads(process.stdout.readline()))
                assert "dead" not in states(told)
        process.send_signal(signal.SIGINT)
        left, errors = process.communicate(timeout=30)

    assert (130, "", "") == (process.returncode, left, errors)
    assert "finished" == states(told)[-1]
    assert ["half way"] == [one["line"]["text"] for one in told if "line" in one]
    joblog.release()


def test_only_what_is_asked_for_is_told(joblog, job_factory):
    """Words filter the output; a job is shown once for each state, and old jobs are not."""
    old = datetime.now(timezone.utc) - timedelta(hours=1)
    job_factory(jid="old", created_at=old, updated_at=old, finished_at=old)
    changes = Changes(joblog, joblog.search("user:7"), 0)

    def told():
        return [(row.jid, str(row.state)) for _, _, row in changes.look()]

    assert [] == told()
    job_factory(jid="other", user_id=8)
    mine = job_factory(jid="mine", user_id=7, state="started", finished_at=None)
    assert [("mine", "started")] == told()
    assert [] == told()
    now = joblog.now()
    joblog.Job.update(state="dead", finished_at=now, updated_at=now).where(
        joblog.Job.id == mine.id
    ).execute()
    assert [("mine", "dead")] == told()


# Completion


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["sh"], {"show"}),
        (["list", "state:de"], {"state:dead", "state:delayed"}),
        (["--database", "sqlite:///nowhere.db", "list", "type:"], set()),
        *(
            pytest.param(typed, expected, marks=pytest.mark.full)
            for typed, expected in [
                (["list", "--user", ""], {"7"}),
                (["list", "sta"], {"state:"}),
                (["list", "-args.fe"], {"-args.feed:"}),
                (["list", "-type:"], {"-type:reconciliation"}),
                (["list", "--state", "fin"], {"finished"}),
                (["tail", "--type", "rec"], {"reconciliation"}),
                (["list", "--act"], {"--actor"}),
                (["show", "ab"], {"abc", "abd"}),
                (["prune", "--keep", "d"], {"dead="}),
            ]
        ),
    ],
)
def test_a_shell_completes(sqlite_database, cli, typed, expected):
    """Commands, options, words and their values complete, from the log itself; never an error."""
    joblog = JobLog(sqlite_database)
    row = {"actor": "w", "queue": "q", "state": "dead", "attempt": 1, "created_at": 1}
    for jid in ("abc", "abd"):
        joblog.Job.create(
            jid=jid, job_type="reconciliation", user_id=7, updated_at=1, kwargs={"feed": 7}, **row
        )
    joblog.close()

    done = cli(
        JOBLOG_DATABASE=sqlite_database,
        _DRAMATIQ_JOBLOG_COMPLETE="bash_complete",
        COMP_WORDS=shlex.join(["dramatiq-joblog", *typed]),
        COMP_CWORD=str(len(typed)),
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert expected == {line.partition(",")[2] for line in done.stdout.splitlines() if line}


# Pipes


@pytest.mark.full
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_reader_that_has_enough(jobs, database_url, job_factory):
    """A pipe that is closed early causes no error message."""
    for _ in range(300):
        job_factory(error_message="x" * 2000, error_type="E", state="dead")
    read, write = os.pipe()
    process = subprocess.Popen(
        [PROGRAM, "--database", database_url, "list", "-n", "300"],
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert os.read(read, 10)
    os.close(read)

    assert b"" == process.communicate(timeout=30)[1]
