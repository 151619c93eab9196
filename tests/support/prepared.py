"""Starts ``dramatiq`` commands from a process that has imported already what they import.

Half of what a worker process costs is importing.  Each command is a process of its own, forked
before it has a thread or a connection, and runs ``python -m dramatiq`` as if it had been started
so.  Run as a program this module is that process; `Prepared` starts and asks it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

#: Bytes of a request, which names a command, its folder and its environment.
MOST = 1 << 20


def why_not() -> str | None:
    """Return why commands cannot be started so, or None."""
    if sys.platform != "linux":
        return "who ends with its parent is arranged by Linux"
    # From Python 3.14 on the host's own workers come from another such process.
    return "workers are not forked" if sys.version_info >= (3, 14) else None


class Command:
    """A command that was started, with what `subprocess.Popen` has of its methods."""

    def __init__(self, said: io.FileIO) -> None:
        self.pid = int(said.readline())
        self.returncode: int | None = None
        self._said = said

    def poll(self) -> int | None:
        """Return how it ended, or None if it runs."""
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends."""
        code = self._ended_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("dramatiq", timeout)
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _ended_within(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._said], [], [], seconds)[0]:
            # Nothing is said if what waits for it was killed.
            self.returncode = int(self._said.readline() or -signal.SIGKILL)
            self._said.close()
        return self.returncode


class Prepared:
    """The process that has imported all, which is started for the first command.

    Parameters:
      launch: Starts a program that ends with this one.
      environment: Its environment.
    """

    def __init__(self, launch, environment) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = launch(
                [sys.executable, str(Path(__file__)), str(theirs.fileno())],
                on_parent_death=signal.SIGKILL,
                env=environment,
                pass_fds=[theirs.fileno()],
            )
        self._socket = ours

    def start(self, arguments, *, folder, environment, output) -> Command:
        """Start ``python -m dramatiq`` with *arguments*; it writes to the file *output*."""
        reading, writing = os.pipe()
        try:
            request = json.dumps([arguments, str(folder), dict(environment)])
            socket.send_fds(self._socket, [request.encode()], [output.fileno(), writing])
        finally:
            os.close(writing)
        return Command(io.FileIO(reading))

    def stop(self) -> None:
        """End the process; commands that run end with it."""
        self._socket.close()
        self._process.wait(timeout=30)


def serve(requests: socket.socket) -> list[str] | None:
    """Fork for each request; return the command's arguments in the fork, and None at the end."""
    while True:
        request, files, _, _ = socket.recv_fds(requests, MOST, 2)
        if not request:
            return None
        if os.fork():
            for file in files:
                os.close(file)
            with contextlib.suppress(ChildProcessError):
                # Those that have ended.
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        requests.close()
        end_with_parent(signal.SIGKILL)
        output, saying = files
        if pid := os.fork():
            os.close(output)
            watch(pid, saying)
        os.close(saying)
        return become(output, *json.loads(request))


def watch(pid: int, saying: int) -> None:
    """Say which process it is, and how it ends."""
    os.write(saying, b"%d\n" % pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(saying, b"%d\n" % code)
    os._exit(0)


def become(output: int, arguments, folder, environment) -> list[str]:
    """Be as a process that was started anew."""
    os.setsid()
    end_with_parent(signal.SIGTERM)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.path[0] = folder
    return arguments


def end_with_parent(number: int) -> None:
    """Have the system send a signal when the parent ends."""
    ctypes.CDLL(None).prctl(1, int(number))


def import_all() -> None:
    """Import what commands import; this must have no effect, which a test of ours checks."""
    for name in ("brokers", "dramatiq.cli", "dramatiq.worker", "dramatiq_joblog"):
        importlib.import_module(name)


if __name__ == "__main__":
    import_all()
    gc.freeze()
    if (command := serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        sys.argv = ["dramatiq", *command]
        runpy.run_module("dramatiq", run_name="__main__", alter_sys=True)
