"""The command line, as run by scripts and by users."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner

from dramatiq_joblog.cli.main import program

if TYPE_CHECKING:
    from prepared import Command, Prepared

#: The installed command.
PROGRAM = str(Path(sys.executable).parent / "dramatiq-joblog")


def ask(database_url, *arguments, code=0):
    """Run the command in this process, with its output as in a pipe, and check its exit code."""
    done = CliRunner().invoke(program, ["--database", database_url, *map(str, arguments)])
    assert code == done.exit_code, (done.exit_code, done.output, done.stderr)
    return done


def start(
    prepared: Prepared | None, arguments, *, folder, environment, files
) -> subprocess.Popen[bytes] | Command:
    """Start the command, from a *prepared* process if there is one.

    *files* are its standard input, output and error.
    """
    if prepared is not None:
        arguments = ("-m", "dramatiq_joblog", *arguments)
        return prepared.start(arguments, folder=folder, environment=environment, files=files)
    stdin, stdout, stderr = files
    return subprocess.Popen(
        [PROGRAM, *arguments],
        cwd=folder,
        env=environment,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


def run(
    prepared: Prepared | None, folder, *arguments, input="", **variables
) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process, in a *folder*, and return its output."""
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": ""} | variables
    if prepared is not None:
        arguments = ("-m", "dramatiq_joblog", *arguments)
        return prepared.run(arguments, folder=folder, environment=environment, input=input)
    return subprocess.run(
        [PROGRAM, *map(str, arguments)],
        cwd=folder,
        env=environment,
        input=input,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def on_terminal(
    prepared: Prepared | None,
    folder,
    *arguments,
    answer="",
    code=0,
    columns=80,
    stdout=None,
    **variables,
):
    """Run the command on a terminal, and return its screen output.

    *answer* is what is typed, and *stdout* a file that its standard output goes to instead.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | variables
    with os.fdopen(theirs, "wb", buffering=0) as terminal:
        process = start(
            prepared,
            [*map(str, arguments)],
            folder=folder,
            environment=environment,
            files=[terminal, stdout or terminal, terminal],
        )
    os.write(ours, answer.encode())
    written = b""
    while True:
        try:
            some = os.read(ours, 65_536)
        except OSError:
            # This is how Linux reports the end of a terminal.
            break
        if not some:
            break
        written += some
    os.close(ours)
    assert code == process.wait(timeout=30), written.decode()
    return written.decode().replace("\r\n", "\n")
