"""All commands, each imported when it is called."""

from __future__ import annotations

import sys

import click

from .app import PROGRAM, Commands, Program

#: For each command its module, its name there, and what it does, so that help imports none.
_COMMANDS = {
    "actions": ("audit", "actions", "Show the audit log."),
    "alerts": ("alerts", "alerts", "Show alerts: what is open, what was sent, what failed."),
    "cancel": ("actions", "cancel", "Cancel jobs that are not running."),
    "diff": ("changes", "diff", "Show what changed between two times."),
    "dismiss": ("actions", "dismiss", "Mark dead jobs as handled."),
    "doctor": ("doctor", "doctor", "Check the log, its database and its workers."),
    "expect": ("alerts", "expect", "Show which jobs run regularly, for Expect()."),
    "export": ("export", "export", "Write jobs as JSON lines or CSV."),
    "import-django-dramatiq": (
        "import_django",
        "import_django",
        "Import the tasks of django_dramatiq.",
    ),
    "limit": ("limit", "limit", "Change the limit of a key while jobs run."),
    "list": ("jobs", "list_jobs", "Show jobs, newest first."),
    "locks": ("locks", "locks", "Show who holds each key, and which jobs wait."),
    "logs": ("logs", "logs", "Show the log lines of a job; -f follows them."),
    "mark": ("mark", "mark", "Record a deployment, or another change."),
    "migrate": ("schema", "migrate", "Create the tables, or upgrade them."),
    "mute": ("mute", "mute", "Mute a known problem until a given time."),
    "prune": ("prune", "prune", "Delete old jobs."),
    "queues": ("queues", "queues", "Show the backlog and the workers of each queue."),
    "requeue": ("actions", "requeue", "Run jobs again, as new jobs."),
    "searches": ("searches", "searches", "Show saved searches; save or delete one."),
    "show": ("show", "show", "Show everything about one job."),
    "stats": ("stats", "stats", "Show counts, durations and failures."),
    "status": ("status", "status", "Show what needs attention; exit 1 if anything does."),
    "tail": ("tail", "tail", "Follow jobs live."),
    "types": ("changes", "types", "Compare each job type with a week ago."),
    "unlock": ("audit", "unlock", "Free a section whose holder is gone."),
    "web": ("web", "web", "Serve the dashboard."),
    "why": ("why", "why", "Explain the state of a job, and how it got there."),
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
    """See which jobs ran, find out what failed, and run it again.

    Name the log with --database, --app, or JOBLOG_DATABASE.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Run the command line, and end the process."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding shows characters that it lacks as question marks.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    program(prog_name=PROGRAM)
