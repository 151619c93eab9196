"""``manage.py joblog ...``: the command line for the project's log."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dramatiq_joblog.cli.app import Session
from dramatiq_joblog.cli.main import program
from dramatiq_joblog.django.conf import discover_actors, get_joblog

if TYPE_CHECKING:
    from dramatiq_joblog.joblog import JobLog


class Command(BaseCommand):
    """See which jobs ran, find out what failed, and run it again."""

    help = "See which jobs ran, find out what failed, and run it again: manage.py joblog --help."
    # Each command reports errors of the log, and some are needed when there are any.
    requires_system_checks = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Run the command line, and end the process with its exit code."""
        name = f"{Path(argv[0]).name} {argv[1]}"
        program.main(argv[2:], prog_name=name, obj=Session(_log, name))

    def add_arguments(self, parser: CommandParser) -> None:
        """Accept all arguments, for ``call_command("joblog", "list", "state:dead")``."""
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def handle(self, *_: Any, arguments: list[str], **__: Any) -> None:
        """Run one command.

        Raises:
          CommandError: If its exit code is not 0.
        """
        session = Session(_log, "manage.py joblog")
        try:
            program.main([*arguments], "manage.py joblog", obj=session, standalone_mode=False)
        except click.exceptions.Exit as e:
            if e.exit_code:
                raise CommandError(f"it ended with {e.exit_code}", returncode=e.exit_code) from e
        except click.ClickException as e:
            raise CommandError(e.message, returncode=e.exit_code) from e


def _log() -> JobLog[Any]:
    """Return the project's log after importing its actors, which are needed to run jobs again."""
    discover_actors()
    return get_joblog()
