"""The command line is documented: each command and option, with examples that work.

``python tests/cli/test_cli_docs.py`` updates the commands' help in docs/cli.md.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dramatiq_joblog.cli.app import PROGRAM
from dramatiq_joblog.cli.main import program

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = sorted(program.commands)


def help_of(*arguments):
    """Return what ``--help`` shows in a terminal of 80 columns."""
    done = CliRunner().invoke(program, [*arguments, "--help"], prog_name=PROGRAM, terminal_width=80)
    return done.output


def with_current_help(text):
    """Return the documentation with the current help of every command."""
    block = re.compile(rf"(```console\n\$ {PROGRAM}((?: [a-z-]+)?) --help\n).*?```", re.DOTALL)
    return block.sub(lambda m: f"{m[1]}{help_of(*m[2].split())}```", text)


def test_the_documentation_shows_the_help_as_it_is():
    """docs/cli.md has the help of every command, as the command shows it."""
    text = DOCS.read_text(encoding="utf-8")

    assert COMMANDS == sorted(re.findall(rf"^\$ {PROGRAM} ([a-z-]+) --help$", text, re.MULTILINE))
    assert f"\n$ {PROGRAM} --help\n" in text
    assert with_current_help(text) == text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_and_examples(name):
    """A command's help has a summary, all options, and valid examples."""
    command = program.commands[name]

    assert command.help
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []
    assert command.examples
    for arguments, effect in command.examples:
        assert effect
        words = shlex.split(re.split(r" [|>] ", arguments)[0])
        at = words.index(name)
        with program.make_context(PROGRAM, words[:at]) as parent:
            command.make_context(name, words[at + 1 :], parent=parent).close()


def test_each_line_of_help_fits():
    """No help is wider than a terminal of 80 columns, except for examples that cannot be split."""
    for arguments in ([], *([name] for name in COMMANDS)):
        wide = [row for row in help_of(*arguments).splitlines() if len(row) > 80]
        assert [] == [row for row in wide if not row.startswith(f"  {PROGRAM} ")]


if __name__ == "__main__":
    DOCS.write_text(with_current_help(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
