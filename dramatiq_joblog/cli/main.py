"""All commands together."""

from __future__ import annotations

import sys

import click

from .actions import cancel, dismiss, requeue
from .alerts import alerts, expect
from .app import PROGRAM, Program
from .audit import actions, unlock
from .doctor import doctor
from .export import export
from .import_django import import_django
from .jobs import list_jobs
from .limit import limit
from .locks import locks
from .mark import mark
from .prune import prune
from .schema import migrate
from .show import show
from .stats import stats
from .status import status
from .tail import tail
from .web import web
from .workers import workers

COMMANDS = (
    actions,
    alerts,
    cancel,
    dismiss,
    doctor,
    expect,
    export,
    import_django,
    limit,
    list_jobs,
    locks,
    mark,
    migrate,
    prune,
    requeue,
    show,
    stats,
    status,
    tail,
    unlock,
    web,
    workers,
)


@click.group(
    PROGRAM,
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
)
@click.version_option(package_name="dramatiq-joblog", prog_name=PROGRAM)
@click.pass_context
def program(context: click.Context) -> None:
    """See what jobs ran, find what broke, run it again.

    The log is named by --database, by --app, or by JOBLOG_DATABASE.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for one in COMMANDS:
    program.add_command(one)


def main() -> None:
    """Run the command line, and end the process."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding gets what it has no sign for as a question mark.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    program(prog_name=PROGRAM)
