"""The command line as scripts and people run it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

from click.testing import CliRunner

from dramatiq_joblog.cli.main import program

#: The installed command.
PROGRAM = str(Path(sys.executable).parent / "dramatiq-joblog")


def ask(database_url, *arguments, code=0):
    """Run the command in this process, as a pipe sees it, and expect its exit code."""
    done = CliRunner().invoke(program, ["--database", database_url, *map(str, arguments)])
    assert code == done.exit_code, done.output
    return done


def on_terminal(folder, *arguments, answer="", code=0, columns=80, stdout=None, **variables):
    """Run the command on a terminal of its own, and return what it shows there.

    *answer* is what is typed, and *stdout* a file that its standard output goes to instead.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | variables
    process = subprocess.Popen(
        [PROGRAM, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdin=theirs,
        stdout=stdout or theirs,
        stderr=theirs,
        close_fds=True,
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    written = b""
    while True:
        try:
            some = os.read(ours, 65_536)
        except OSError:
            # So a terminal's end is told on Linux.
            break
        if not some:
            break
        written += some
    os.close(ours)
    assert code == process.wait(timeout=30), written.decode()
    return written.decode().replace("\r\n", "\n")
