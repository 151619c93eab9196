"""``doctor``: checks of the log, with cures."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.text import Text

from dramatiq_joblog.states import State

from .app import NOTHING, Session, command
from .style import QUIET, TITLE, line, shape


@command(
    "doctor",
    "Check the log, its database and its workers.",
    examples=[
        ("doctor", "check the log; exit code 1 if something is wrong"),
        ("--app shop.jobs:joblog doctor", "also check the broker and its middleware"),
        ("doctor --json", "for programs"),
    ],
)
def doctor(session: Session) -> None:
    """Check the log: its database, its workers, its files.

    It changes nothing. It reports the result of each check, and the cure for each fault.
    """
    joblog = session.joblog
    broker = getattr(joblog.core.sender, "broker", None)
    findings = joblog.doctor(broker)
    screen = session.screen
    if session.json:
        screen.json([asdict(finding) for finding in findings])
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            state = State.FINISHED if finding.ok else State.DEAD
            name = (f"{finding.name:<{width}}", "" if finding.ok else TITLE)
            text = Text.assemble(shape(state), " ", name, "  ", line(finding.text))
            screen.hanging(text, width + 4)
            if finding.cure:
                screen.paragraph(Text(line(finding.cure), QUIET), width + 4)
    if not all(finding.ok for finding in findings):
        raise click.exceptions.Exit(NOTHING)
