"""The command line starts fast: slow imports are made when they are needed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

import dramatiq_joblog
from dramatiq_joblog.cli.main import program

#: What costs a tenth of a second or more: the host, the databases' drivers, what draws tables.
SLOW = ("dramatiq", "peewee", "psycopg", "pymysql", "rich", "starlette")

#: Runs the command line in the place of the script, and then prints what of it was imported.
PROBE = f"""
import sys
sys.argv[0] = "dramatiq-joblog"
from dramatiq_joblog.__main__ import main
try:
    main()
finally:
    print([name for name in {SLOW} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--help"], {}),
        ([], {}),
        ([], {"COMP_WORDS": "dramatiq-joblog ", "COMP_CWORD": "1"}),
        ([], {"COMP_WORDS": "dramatiq-joblog li", "COMP_CWORD": "1"}),
    ],
    ids=["help", "bare", "completion of all", "completion of one"],
)
def test_help_imports_nothing_slow(arguments, variables):
    """Help and completion import no command, no driver and not Dramatiq."""
    if variables:
        variables |= {"_DRAMATIQ_JOBLOG_COMPLETE": "bash_complete"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    assert "list" in done.stdout
    # A tenth on an idle machine of 2026, and five times that on a loaded one.
    assert after.ru_utime - before.ru_utime < 0.5


def test_what_is_said_of_commands():
    """The list of commands has the same summaries as the commands, in order."""
    names = list(program.commands)
    assert names == sorted(names)
    for name in names:
        command = program.commands[name]
        assert (name, program.commands.effect(name)) == (command.name, command.short_help)


def test_every_public_name_is_found():
    """Public names are imported lazily, but always listed."""
    assert {*dramatiq_joblog.__all__} <= {*dir(dramatiq_joblog)}
    for name in dramatiq_joblog.__all__:
        assert getattr(dramatiq_joblog, name).__name__ == name or name == "Job"
    with pytest.raises(AttributeError, match="has no attribute 'Jobs'"):
        dramatiq_joblog.Jobs  # noqa: B018
