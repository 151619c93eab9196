"""The command line as people and scripts run it: a process, on a real database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = str(Path(sys.executable).parent / "dramatiq-joblog")


@pytest.fixture
def cli(tmp_path):
    """Return a function that runs the installed command in an empty folder."""

    def run(*arguments, input="", program=(PROGRAM,), **variables):
        return subprocess.run(
            [*program, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "80", "PYTHONPATH": ""} | variables,
            input=input,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_a_log_is_made_and_asked(cli, database_url):
    """``migrate`` makes the tables, safe to repeat; an empty log has nothing, which is exit 1."""
    for _ in range(2):
        done = cli("migrate", "--database", database_url)
        assert (0, "") == (done.returncode, done.stderr)
        assert "up to date" in done.stdout

    for command in ("locks", "workers"):
        done = cli("--database", database_url, command)
        assert (1, "") == (done.returncode, done.stdout)
        done = cli(command, "--json", JOBLOG_DATABASE=database_url)
        assert [] == json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["locks"], 2, "which log? Give --database URL or --app module:joblog"),
        (["lokcs"], 2, "there is no command 'lokcs'; did you mean locks?"),
        (["locks", "--foo"], 2, "no such option"),
        (["--foo"], 2, "no such option"),
        (["--database", "jobs.db", "locks"], 2, "'jobs.db' begins with no known database"),
        (["--database", "sqlite:///no.db", "locks"], 3, "there is no file 'no.db'; to make"),
        (["--database", "sqlite:///", "locks"], 2, "lives in memory"),
        (["--database", "oracle://a:secret@b/c", "locks"], 2, "oracle://a:[redacted]@b/c"),
        (
            ["--database", "postgresql://ada:secret@127.0.0.1:1/x", "locks"],
            3,
            "cannot be asked: connection failed",
        ),
        (["--app", "nosuch.place:joblog", "locks"], 2, "there is no module 'nosuch'"),
        (["--app", "a b", "locks"], 2, "is not of the form module:name"),
        (["--app", "json:joblog", "locks"], 2, "the module json has no 'joblog'; it has no log"),
        (["--app", "json:dumps", "locks"], 2, "that is a function, and no JobLog"),
        (["--app", "a:b", "--database", "c", "locks"], 2, "name two logs; give one of them"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(cli, tmp_path, arguments, code, text):
    """Bad usage is exit 2 and a database that cannot be asked exit 3; no traceback, no password."""
    done = cli(*arguments)

    assert code == done.returncode
    assert "" == done.stdout
    assert done.stderr.startswith("dramatiq-joblog: ")
    assert text in done.stderr
    assert 1 == done.stderr.count("\n")
    assert "secret" not in done.stderr
    assert not (tmp_path / "no.db").exists()


def test_a_database_without_tables(cli, database_url, tmp_path):
    """A database in which there is no log yet is told with the command that makes one."""
    (tmp_path / "joblog.db").touch()
    done = cli("workers", "--database", database_url)

    assert 3 == done.returncode
    assert "the log's tables are not there; make them with: dramatiq-joblog" in done.stderr
    assert done.stderr.endswith("migrate\n")


def test_the_log_of_an_application(cli, tmp_path, sqlite_url):
    """``--app module:name`` imports a module of the current folder, and tells where it fails."""
    (tmp_path / "shop.py").write_text(
        f"from dramatiq_joblog import JobLog\nlog = JobLog({sqlite_url!r})\n"
    )
    (tmp_path / "broken.py").write_text("\nimport shop\nshop.prices()\n")
    (tmp_path / "needy.py").write_text("import not_installed\n")

    assert 0 == cli("--app", "shop:log", "migrate").returncode
    assert 1 == cli("--app", "shop:log", "locks").returncode
    assert "has no 'joblog'; its logs are log" in cli("--app", "shop", "locks").stderr
    done = cli("--app", "broken", "locks")
    assert (2, 1) == (done.returncode, done.stderr.count("\n"))
    assert "importing broken failed with AttributeError: module 'shop' has no" in done.stderr
    assert done.stderr.endswith("broken.py, line 3)\n")
    assert "importing needy failed with ModuleNotFoundError" in cli("--app=needy", "locks").stderr


def test_it_runs_as_a_module(cli):
    """``python -m dramatiq_joblog`` is the same program; alone it shows its help."""
    done = cli(program=[sys.executable, "-m", "dramatiq_joblog"])

    assert 0 == done.returncode
    assert done.stdout.startswith("Usage: dramatiq-joblog ")


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_a_missing_extra_is_told_with_its_command(cli, tmp_path, missing):
    """Without the extra the program names what is missing and the command that installs it."""
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('gone', name={missing!r})")
    done = cli("locks", PYTHONPATH=str(tmp_path))

    assert 1 == done.returncode
    assert (
        f"dramatiq-joblog needs {missing}, which is not installed: "
        "pip install 'dramatiq-joblog[cli]'\n"
    ) == done.stderr
