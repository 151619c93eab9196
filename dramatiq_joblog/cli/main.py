"""All commands together, each imported when it is called."""

from __future__ import annotations

import sys

import click

from .app import PROGRAM, Commands, Program

#: For each command its module, its name there and what it does: help imports none of them.
_COMMANDS = {
    "actions": ("audit", "actions", "Show the audit log."),
    "alerts": ("alerts", "alerts", "Show alerts: what is open, what was sent, what failed."),
    "cancel": ("actions", "cancel", "Give up jobs that do not run."),
    "diff": ("changes", "diff", "Show what changed between two times."),
    "dismiss": ("actions", "dismiss", "Mark dead jobs as handled."),
    "doctor": ("doctor", "doctor", "Look for what is wrong with the log."),
    "expect": ("alerts", "expect", "Show which jobs run regularly, for Expect()."),
    "export": ("export", "export", "Write jobs as JSON lines or CSV."),
    "import-django-dramatiq": (
        "import_django",
        "import_django",
        "Take over the tasks of django_dramatiq.",
    ),
    "limit": ("limit", "limit", "Set the limit of a key, while jobs run."),
    "list": ("jobs", "list_jobs", "Show jobs, newest first."),
    "locks": ("locks", "locks", "Show who holds which key, and who waits."),
    "logs": ("logs", "logs", "Show what a job logged; with -f, while it does so."),
    "mark": ("mark", "mark", "Mark a new version, or another change."),
    "migrate": ("schema", "migrate", "Make the tables, or bring them up to date."),
    "prune": ("prune", "prune", "Delete jobs that ended long ago."),
    "queues": ("queues", "queues", "Show what piles up in which queue, and who takes it."),
    "requeue": ("actions", "requeue", "Run jobs again, as new jobs."),
    "searches": ("searches", "searches", "Show saved searches; save or delete one."),
    "show": ("show", "show", "Show all of one job."),
    "stats": ("stats", "stats", "Show how many, how long, what fails."),
    "status": ("status", "status", "Show what needs someone; exit 1 if anything does."),
    "tail": ("tail", "tail", "Show what happens, while it happens."),
    "types": ("changes", "types", "Show how each job type does, against a week ago."),
    "unlock": ("audit", "unlock", "Free a section whose holder is gone."),
    "web": ("web", "web", "Serve the page of the log."),
    "why": ("why", "why", "Say why a job is where it is, and how it came there."),
    "workers": ("workers", "workers", "Show the worker processes."),
}


@click.group(
    PROGRAM,
    cls=Program,
    commands=Commands(_COMMANDS),
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


def main() -> None:
    """Run the command line, and end the process."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding gets what it has no sign for as a question mark.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    program(prog_name=PROGRAM)
